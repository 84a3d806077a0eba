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
"""``explain`` with logs of Nova 31 and QEMU 7.2, and with single lines.

The logs are from the lab.
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

#: fault: lines, from the lab, libvirt's and QEMU's sources
LINES = {
    'refused-queues': (
        'MigrationPreCheckError: Migration pre-check error: Instance x runs '
        'with 4 queues on the vNIC fa:16:3e:00:00:01, but the kernel',),
    'vnic-queues': (
        'qemu-system-x86_64: Failed to load virtio-net:virtio',
        'get_pci_config_device: Bad config data: i=0x9a read: 5 device: 9'),
    'vnic-abi': (
        'unsupported configuration: Target network card MTU 1442 does not '
        'match source 1500',),
    'tap-queues': (
        'Unable to create tap device tap1234: Argument list too long',),
    'other-device': (
        "error while loading state for instance 0x0 of device 'x/vga'",
        'qemu-kvm: Failed to load serial:x'),
    'ephemeral-label': (
        'Command: mkfs -t vfat -n ephemeral_1_40d1d2c /x',
        'mkfs.xfs -q -L ephemeral_1_40d1d2c /x'),
    'not-pulled': (
        'disk.eph0 of instance 1-2 could not be fetched from 10.0.2.11: '
        'Connection refused. The guest has not been moved.',),
    'not-complete': (
        'The disk disk.eph0 of instance 1-2 cannot be made complete, which',
        'The disk disk.eph0 of instance 1-2 is being completed by another '
        'process, such as "nova-migfix-status heal".'),
    'kernel-ramdisk': (
        'ImageUnacceptable: Image 1 is unacceptable: does not pass',),
    'image-lost': (
        'ssh: connect to host compute1 port 22: Connection refused',
        'Host key verification failed.'),
    'tls-keys': (
        'internal error: Unable to write to TLS channel: Input/output error',),
    'place-unknown': (
        'Error monitoring migration: It is unknown whether instance 1-2 has '
        'arrived on compute2: compute2 does not answer.',),
    'source-died': (
        '2026-11-25 01:32:40.873+0000: shutting down, reason=crashed',
        '2026-11-25 09:44:45.412 7101 ERROR nova.virt.libvirt.driver [None '
        'req-f09606f1-8e13-4eb1-b811-df9f295f4ff4 - - - -] [instance: x] Live '
        'Migration failure: operation failed: domain is not running: '
        'libvirt.libvirtError: operation failed: domain is not running'),
    'disk-full': ('OSError: [Errno 28] No space left on device',),
    'vif-plug': ('Timed out waiting for [network-vif-plugged-1] for instance',
                 ),
    'cpu': ("InvalidCPUInfo: Unacceptable CPU info: CPU doesn't have",),
    'aborted': ('operation aborted: migration out job: canceled by client',),
    'destination-lost': (
        'operation failed: Lost connection to destination host',
        "unable to connect to server at 'compute2:49152': No route to host"),
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

    def explain(self, uuid):
        ran = self.command.run('explain', uuid, '--json')
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


@ddt.ddt
class TestFaults(testtools.TestCase):

    def test_each_fault_has_a_tested_line(self):
        self.assertEqual([fault.name for fault in faults.FAULTS], list(LINES))

    @ddt.data(*((name, line) for name, lines in LINES.items()
                for line in lines))
    @ddt.unpack
    def test_known_log_line_matches_its_fault(self, name, line):
        fault, announced = explain._match([explain.Line('log', 1, line)])
        self.assertEqual((name, 1), (fault.name, len(announced)))

    def test_page_of_each_fault_exists(self):
        source = base.DATA.parents[4] / 'doc/source'
        for fault in faults.FAULTS:
            if fault.page:
                self.assertTrue((source / f'{fault.page}.rst').exists())

    @ddt.data('internal error: qemu unexpectedly closed the monitor',
              'operation failed: Migration is not finalized yet',
              'INFO all is well')
    def test_unspecific_line_matches_no_fault(self, line):
        self.assertEqual((None, []), explain._match(
            [explain.Line('log', 1, line)]))


