#    Licensed under the Apache License, Version 2.0 (the "License"); you may
#    not use this file except in compliance with the License. You may obtain
#    a copy of the License at
#
#         http://www.apache.org/licenses/LICENSE-2.0
#
#    Unless required by applicable law or agreed to in writing, software
#    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
#    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
#    License for the specific language governing permissions and limitations
#    under the License.
"""``explain`` with logs of Nova 31 and QEMU 7.2 from the lab.

The faults of the table: ``test_corpus``.
"""

import json
import re
import shutil
import time

import ddt
import fixtures
import testtools

from nova_migfix.status import explain
from nova_migfix.status import faults
from nova_migfix.tests.unit.status import base

QUEUES = 'b1350311-e993-42ad-a310-5a62615e788d'
ARRIVED = 'c0e381ea-85b4-418d-81b9-c8510d1fe903'
IMAGE = 'e88fb035-b57d-4ed3-bcef-d6ff0c27886d'

#: instance: outcome, fault, exit status, text of a line of evidence
EXPLAINED = {
    QUEUES: ('failed', 'vnic-queues', 2, 'Bad config data: i=0x9a'),
    # an earlier migration failed, as its image was lost
    ARRIVED: ('arrived', '', 0, None),
    IMAGE: ('failed', 'image-lost', 2, 'ssh: connect to host compute1'),
    base.uuid(9): ('unknown', 'unknown', 1, None),
}


class ExplainTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.command = self.useFixture(base.Command(''))
        self.configure(f'log_file = {base.DATA / "nova-compute.log"}')
        self.libvirt_log = self.command.directory / 'libvirtd.txt'
        for name, value in (('QEMU_LOGS', self.command.directory),
                            ('LIBVIRT_LOGS', (self.libvirt_log,))):
            self.useFixture(fixtures.MockPatchObject(explain, name, value))
        self.useFixture(fixtures.MonkeyPatch(
            'nova_migfix.status.hypervisor._libvirt', base.FakeLibvirt))
        self.addCleanup(time.tzset)
        self.useFixture(fixtures.EnvironmentVariable('TZ', 'CET-1'))
        time.tzset()

    def configure(self, line, uri=f'test://{base.DATA}/hypervisor.xml'):
        self.command.write(
            f'[DEFAULT]\n{line}\n[libvirt]\nconnection_uri = {uri}\n')

    def explain(self, uuid, *arguments):
        ran = self.command.run('explain', uuid, '--json', *arguments)
        self.assertEqual('', ran.err)
        answer = json.loads(ran.out)
        self.assertEqual(list(explain.Explanation._fields), list(answer))
        return ran.code, answer

    def log(self, *lines):
        path = self.command.directory / 'other.txt'
        path.write_text(''.join(f'{line}\n' for line in lines))
        self.configure(f'log_file = {path}')

    def qemu_log(self):
        shutil.copy(base.DATA / 'instance-00000001.log',
                    self.command.directory)


@ddt.ddt
class TestExplain(ExplainTestCase):

    @ddt.data(*EXPLAINED)
    def test_real_logs_are_explained(self, uuid):
        outcome, fault, code, said = EXPLAINED[uuid]
        found, answer = self.explain(uuid)
        self.assertEqual((outcome, fault, code), (
            answer['outcome'], answer['fault'], found))
        if said:
            self.assertTrue(any(said in line for line in answer['evidence']))

    def test_explanation_has_begin_end_and_request(self):
        _, answer = self.explain(IMAGE)
        self.assertEqual(
            ('req-a6ede1b8-6d44-4001-9687-1634efe5a281',
             '2026-11-25 01:35:10.692', '2026-11-25 01:35:11.739'),
            (answer['request'], answer['begin'], answer['end']))

    def test_evidence_names_file_and_line(self):
        _, answer = self.explain(QUEUES)
        for line in answer['evidence']:
            path, number, text = re.match(
                r'(.+?):(\d+): (.*)', line, re.DOTALL).groups()
            with open(path) as log:
                self.assertIn(text.removesuffix(' ...'),
                              log.read().splitlines()[int(number) - 1])

    def test_fault_is_found_in_the_log_of_qemu_alone(self):
        self.log('2026-11-25 01:31:12.853 1 INFO nothing')
        self.qemu_log()
        code, answer = self.explain(QUEUES)
        self.assertEqual(('vnic-queues', 2), (answer['fault'], code))
        self.assertIn('instance-00000001.log:', answer['evidence'][0])

    def test_only_the_last_start_in_the_log_of_qemu_counts(self):
        self.log('2026-11-25 01:31:12.853 1 INFO nothing')
        self.qemu_log()
        path = self.command.directory / 'instance-00000001.log'
        with open(path, 'a') as log:
            log.write(f'2026-11-25 02:00:00.1+0000: starting up\n'
                      f'-uuid {QUEUES} \\\n')
        self.assertEqual('unknown', self.explain(QUEUES)[1]['fault'])

    @ddt.data('nowhere', 'instance-1.log')
    def test_missing_log_of_qemu_is_noted(self, name):
        path = self.command.directory / name
        if name.endswith('.log'):
            path.mkdir()        # not even root can read it
            path = path.parent
        self.useFixture(fixtures.MockPatchObject(explain, 'QEMU_LOGS', path))
        code, answer = self.explain(QUEUES)
        self.assertEqual(('vnic-queues', 2), (answer['fault'], code))
        self.assertIn('cannot be read', answer['notes'][0])

    def test_failure_for_an_unknown_reason_is_unknown(self):
        request = f'req-{base.uuid(1)}'
        self.log(
            f'2026-11-25 01:00:00.000 1 ERROR nova.x [None {request} - -] '
            f'[instance: {base.uuid(1)}] Live Migration failure: stars')
        code, answer = self.explain(base.uuid(1))
        self.assertEqual(('failed', 'unknown', 1), (
            answer['outcome'], answer['fault'], code))
        self.assertIn('stars', answer['evidence'][0])
        self.assertEqual(explain.COLLECT, answer['remedy'])

    @ddt.data((base.uuid(1), 'paused'), (base.uuid(9), 'absent'))
    @ddt.unpack
    def test_explanation_has_the_domain_state(self, uuid, state):
        self.assertEqual(state, self.explain(uuid)[1]['domain_state'])

    def test_unreachable_libvirt_is_noted(self):
        self.configure(f'log_file = {base.DATA / "nova-compute.log"}',
                       'test:///nonexistent')
        code, answer = self.explain(QUEUES)
        self.assertEqual(('vnic-queues', 2, ''), (
            answer['fault'], code, answer['domain_state']))
        self.assertIn('does not answer: ', ' '.join(answer['notes']))

    REQUEST = f'req-{base.uuid(1)}'

    def migration(self, *announced):
        """Log messages of Nova about a migration, as (level, text)."""
        self.log(*(f'2026-11-25 10:44:4{second}.412 7101 {level} nova.x [None '
                   f'{self.REQUEST} - - - -] [instance: {base.uuid(1)}] {text}'
                   for second, (level, text) in enumerate(announced)))

    # From the lab and Nova's code: messages on the source about a domain that
    # is gone before libvirt reports the error.
    DIED = (
        ('ERROR', 'Live Migration failure: operation failed: domain is not '
                  'running: libvirt.libvirtError: operation failed: domain is '
                  'not running'),
        ('INFO', 'Migration operation has completed'),
        ('INFO', '_post_live_migration() is started..'),
        ('ERROR', 'Live migration failed.: libvirt.libvirtError: operation '
                  'failed: domain is not running'))

    @ddt.data(DIED, DIED[1:3] + DIED[:1], (
        ('ERROR', 'Live Migration failure: Unable to read from monitor: '
                  'Connection reset by peer'), *DIED[1:3]))
    def test_crashed_guest_has_not_arrived(self, announced):
        self.migration(*announced)
        (self.command.directory / 'instance-1.log').write_text(
            f'2026-11-25 08:00:00.1+0000: starting up\n'
            f'-uuid {base.uuid(1)} \\\n'
            '2026-11-25 09:44:45.101+0000: shutting down, reason=crashed\n')
        code, answer = self.explain(base.uuid(1))
        self.assertEqual(('failed', 'source-died', 2), (
            answer['outcome'], answer['fault'], code))
        self.assertIn('Live Migration failure', answer['evidence'][0])
        self.assertIn('reason=crashed', answer['evidence'][-1])

    def test_arrival_after_a_lost_connection_is_not_a_death(self):
        """libvirt restarts; the guest may have arrived."""
        self.migration(
            ('ERROR', 'Live Migration failure: internal error: client socket '
                      'is closed'), *self.DIED[1:3])
        _code, answer = self.explain(base.uuid(1))
        self.assertEqual(('failed', 'libvirt-connection'),
                         (answer['outcome'], answer['fault']))
        self.assertIn('on both hosts before any', answer['notes'][-1])

    def test_guest_missing_on_the_destination_has_not_arrived(self):
        self.migration(
            ('INFO', 'Post operation of migration started'),
            ('ERROR', 'Unexpected error during post live migration at '
                      'destination host.: nova.exception.InstanceNotFound'))
        code, answer = self.explain(base.uuid(1))
        self.assertEqual(('failed', 'unknown', 1), (
            answer['outcome'], answer['fault'], code))

    FAILED = (('ERROR', 'Live Migration failure: stars'),)

    # UTC; Nova's time zone in this test is one hour ahead
    @ddt.data(('2026-11-25 09:44:40.101', 'tap-queues'),
              ('2026-11-25 09:44:50.101', 'unknown'),
              ('2026-11-25 10:44:40.101', 'unknown'))
    @ddt.unpack
    def test_fault_is_found_in_the_log_of_libvirt(self, when, fault):
        self.migration(*self.FAILED)
        self.libvirt_log.write_text(
            f'{when}+0000: 66: info : libvirt version: 9.0.0\n'
            f'{when}+0000: 66: error : virNetDevTapCreate:315 : Unable to '
            'create tap device tap1: Argument list too long\n')
        _code, answer = self.explain(base.uuid(1))
        self.assertEqual(fault, answer['fault'])
        if fault != 'unknown':
            self.assertIn('libvirtd.txt:2: ', answer['evidence'][0])

    def test_log_of_nova_outweighs_the_log_of_libvirt(self):
        self.migration(('ERROR', 'Live Migration failure: No space left on '
                                 'device'))
        self.libvirt_log.write_text(
            '2026-11-25 09:44:40.101+0000: 66: error : x:1 : Unable to '
            'create tap device tap1: Argument list too long\n')
        self.assertEqual('disk-full',
                         self.explain(base.uuid(1))[1]['fault'])

    def test_unreadable_log_of_libvirt_is_noted(self):
        self.migration(*self.FAILED)
        self.libvirt_log.mkdir()        # not even root can read it
        self.assertIn('libvirtd.txt cannot be read',
                      ' '.join(self.explain(base.uuid(1))[1]['notes']))

    def test_lines_of_another_instance_are_ignored(self):
        request = f'req-{base.uuid(1)}'
        self.log(
            f'2026-11-25 01:00:00.000 1 INFO nova.x [None {request} - -] '
            f'[instance: {base.uuid(1)}] Took 1 s for pre_live_migration',
            '2026-11-25 01:00:00.000 1 ERROR nova.x [None req-'
            f'{base.uuid(2)} - -] Lost connection to destination host',
            f'2026-11-25 01:00:01.000 1 INFO nova.x [None {request} - -] '
            'something')
        self.assertEqual('unknown', self.explain(base.uuid(1))[1]['outcome'])

    def test_explanation_is_printed_as_a_table(self):
        ran = self.command.run('explain', QUEUES)
        self.assertEqual(2, ran.code)
        for part in ('| Field ', '| fault ', 'vnic-queues', QUEUES):
            self.assertIn(part, ran.out)

    def test_missing_log_of_nova_compute_is_an_error(self):
        self.configure('log_dir = /nonexistent')
        ran = self.command.run('explain', QUEUES)
        self.assertEqual(255, ran.code)
        self.assertIn('/nonexistent/nova-compute.log cannot be read', ran.err)

    def test_unknown_log_of_nova_compute_is_an_error(self):
        self.configure('')
        ran = self.command.run('explain', QUEUES)
        self.assertEqual(255, ran.code)
        self.assertIn('--log-file', ran.err)

    def test_explain_finds_the_migration_of_a_request(self):
        self.migration(('ERROR', 'Live Migration failure: No space left on '
                                 'device'))
        later = self.REQUEST.replace('1', '7')
        path = self.command.directory / 'other.txt'
        path.write_text(path.read_text() + (
            f'2026-11-25 11:00:00.000 1 ERROR nova.x [None {later} - -] '
            f'[instance: {base.uuid(1)}] Live Migration failure: stars\n'))
        for arguments, fault, request in (
                ((), 'unknown', later),
                (('--request', self.REQUEST), 'disk-full', self.REQUEST)):
            _code, answer = self.explain(base.uuid(1), *arguments)
            self.assertEqual((fault, request),
                             (answer['fault'], answer['request']))

    def test_lines_of_a_later_migration_are_not_of_the_request(self):
        """QEMU's log goes on, and ends at the begin of the next migration."""
        self.test_explain_finds_the_migration_of_a_request()
        (self.command.directory / 'instance-1.log').write_text(
            f'2026-11-25 08:00:00.1+0000: starting up\n-uuid {base.uuid(1)} '
            '\\\n2026-11-25T10:00:01.1Z qemu-kvm: unsupported machine type\n')
        _code, answer = self.explain(base.uuid(1))
        self.assertEqual('machine-type', answer['fault'])
        _code, answer = self.explain(
            base.uuid(1), '--request', self.REQUEST)
        self.assertEqual(('disk-full', []),
                         (answer['fault'], answer['notes']))

    def test_missing_request_is_noted(self):
        self.migration(*self.FAILED)
        request = f'req-{base.uuid(9)}'
        _code, answer = self.explain(base.uuid(1), '--request', request)
        self.assertEqual(('unknown', ''),
                         (answer['outcome'], answer['request']))
        self.assertIn(f'no record of {request}', ' '.join(answer['notes']))

    def test_request_of_another_guest_is_an_error(self):
        self.migration(*self.FAILED)
        ran = self.command.run(
            'explain', base.uuid(2), '--request', self.REQUEST)
        self.assertEqual(255, ran.code)
        self.assertIn(f'not a request of instance {base.uuid(2)}', ran.err)

    @ddt.data(('',), ('x',), (base.uuid(1)[:-1],),
              (base.uuid(1), '--request', 'req-1'),
              (base.uuid(1), '--qemu-log', '-', '--libvirt-log', '-'))
    def test_malformed_argument_is_an_error(self, arguments):
        self.assertEqual(255, self.command.run('explain', *arguments).code)

    def test_uuid_may_be_in_upper_case(self):
        self.assertEqual('vnic-queues',
                         self.explain(QUEUES.upper())[1]['fault'])

    def test_log_of_qemu_may_be_a_file_or_standard_input(self):
        self.log('2026-11-25 01:31:12.853 1 INFO nothing')
        path = base.DATA / 'instance-00000001.log'
        self.assertEqual('vnic-queues', self.explain(
            QUEUES, '--qemu-log', str(path))[1]['fault'])
        with open(path) as log:
            self.useFixture(fixtures.MonkeyPatch('sys.stdin', log))
            _code, answer = self.explain(QUEUES, '--qemu-log', '-')
        self.assertEqual('vnic-queues', answer['fault'])
        self.assertTrue(answer['evidence'][0].startswith('-:'))

    def test_log_of_another_qemu_is_noted(self):
        self.log('2026-11-25 01:31:12.853 1 INFO nothing')
        _code, answer = self.explain(
            base.uuid(1), '--qemu-log',
            str(base.DATA / 'instance-00000001.log'))
        self.assertEqual('unknown', answer['fault'])
        self.assertIn('of another guest', answer['notes'][0])

    @ddt.data(
        '2026-11-25 09:44:40.101+0000: 66: error : x:315 : Unable to create',
        '2026-11-25T10:44:40+0100 compute01 libvirtd[66]: Unable to create',
        '2026-11-25T10:44:40.101+01:00 compute01 virtqemud[66]: Unable to '
        'create')
    def test_log_of_libvirt_may_be_the_journal(self, begin):
        self.migration(*self.FAILED)
        path = self.command.directory / 'journal'
        path.write_text(f'{begin} tap device tap1: Argument list too long\n')
        _code, answer = self.explain(
            base.uuid(1), '--libvirt-log', str(path))
        self.assertEqual('tap-queues', answer['fault'])
        self.assertIn('does not name guests', answer['notes'][-1])

    def test_other_faults_in_the_logs_are_noted(self):
        self.migration(
            ('ERROR', 'Live Migration failure: No space left on device'),
            ('ERROR', 'Live Migration failure: Cannot check QEMU binary /x'))
        _code, answer = self.explain(base.uuid(1))
        self.assertEqual('qemu-binary', answer['fault'])
        self.assertIn('lines of: disk-full.', answer['notes'][-1])

    def test_long_lines_are_cut(self):
        self.migration(('ERROR', 'Live Migration failure: ' + 'x' * 10 ** 6
                        + ' No space left on device'),
                       ('ERROR', 'Live Migration failure: stars'))
        _code, answer = self.explain(base.uuid(1))
        self.assertEqual('unknown', answer['fault'])
        self.assertEqual(2, len(answer['evidence']))
        self.assertIn('other.txt:2: ', answer['evidence'][1])

    def test_evidence_has_no_terminal_control_characters(self):
        self.migration(('ERROR', 'Live Migration failure: Target \x1b[2Jx '
                                 'does not match source'))
        _code, answer = self.explain(base.uuid(1))
        self.assertEqual('guest-abi', answer['fault'])
        self.assertNotIn('\x1b', answer['meaning'] + answer['evidence'][0])

    def test_guest_that_arrived_has_a_remedy_if_it_does_not_answer(self):
        self.assertEqual(explain.UNREACHABLE,
                         self.explain(ARRIVED)[1]['remedy'])


class TestPages(testtools.TestCase):

    def test_page_of_each_fault_exists(self):
        source = base.DATA.parents[4] / 'doc/source'
        for fault in faults.FAULTS:
            self.assertTrue((source / f'{fault.page}.rst').exists(),
                            fault.page)
