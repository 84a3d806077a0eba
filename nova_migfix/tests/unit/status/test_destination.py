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
"""``preflight --dest`` asks the destination by ssh and through libvirt."""

import json
import os
import pathlib
import re
import socket
import threading
import time
from unittest import mock

import ddt
import fixtures
from oslo_concurrency import processutils
from oslo_upgradecheck import upgradecheck
import testtools

from nova_migfix.status import credentials
from nova_migfix.status import destination
from nova_migfix.status import facts
from nova_migfix.status import hypervisor
from nova_migfix.status import matching
from nova_migfix.status import remote
from nova_migfix.status import results
from nova_migfix.status import userfault
from nova_migfix.tests import hosts
from nova_migfix.tests import pages
from nova_migfix.tests.unit.status import base
from nova_migfix.transport import transfer

SUCCESS, WARNING, FAILURE = upgradecheck.Code


@ddt.ddt
class TestConnect(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.server = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(self.server.close)
        self.port = self.server.getsockname()[1]
        self.open = self.useFixture(fixtures.MockPatchObject(
            hypervisor, 'open_uri', autospec=True)).mock

    def connect(self, transport='tls', host='127.0.0.1'):
        return remote.connect(f'qemu+{transport}://{host}:{self.port}/system')

    def assertRefused(self, code, *said, **uri):
        found = self.connect(**uri)
        self.assertIsNone(found.connection)
        self.assertEqual(code, found.result.code, found.result.details)
        for words in said:
            self.assertIn(words, found.result.details)

    def test_open_uri_is_a_connection(self):
        found = self.connect()
        self.assertIs(self.open.return_value, found.connection)
        self.assertEqual(SUCCESS, found.result.code)

    def test_unknown_name_is_a_failure(self):
        self.assertRefused(
            FAILURE, 'does-not-exist.invalid cannot be resolved',
            '/etc/hosts', host='does-not-exist.invalid')
        self.open.assert_not_called()

    def test_invalid_name_is_a_failure(self):
        """As of live_migration_uri = qemu+tls://%s.example/system."""
        self.assertRefused(FAILURE, 'h..example cannot be resolved',
                           host='h..example')

    @ddt.data(('tls', 'libvirtd-tls.socket, or listen_tls'),
              ('tcp', 'libvirtd-tcp.socket, or listen_tcp'))
    @ddt.unpack
    def test_refused_port_is_a_failure(self, transport, remedy):
        self.server.close()
        self.assertRefused(
            FAILURE, f'at 127.0.0.1, port {self.port}', '111', remedy,
            transport=transport)

    @ddt.data(
        ('Certificate [session] owner does not match the hostname h', FAILURE,
         'subject alternative name'),
        ('The server certificate /etc/x.pem has expired', FAILURE, 'Renew'),
        ('The server certificate x is not yet active', FAILURE, 'clocks'),
        # libvirt 9.0 with another name, time or CA; with a server that ends
        # the session; without certificates
        ('authentication failed: Failed to verify peer\'s certificate',
         FAILURE, 'one CA'),
        ('Unable to read TLS confirmation: Input/output error', WARNING,
         'tls_allowed_dn_list'),
        ('Cannot read CA certificate \'/etc/pki/CA/cacert.pem\': No such file '
         'or directory', WARNING, 'as root'),
        ('authentication failed: Failed to start SASL negotiation: -20 '
         '(SASL(-13): user not found)', WARNING, 'auth.conf'),
        ('Failed to collect auth credentials', WARNING, 'auth.conf'),
        ('Cannot recv data: Host key verification failed.: Connection reset',
         WARNING, 'known_hosts'),
        ('Cannot recv data: nova@h: Permission denied (publickey).: '
         'Connection reset by peer', WARNING, 'log in there with a key'),
        ('Cannot recv data: ssh: Could not resolve hostname h', FAILURE,
         'DNS'),
        ('Cannot recv data: ssh: connect to host h port 22: Connection '
         'refused: Connection reset by peer', FAILURE, 'sshd'),
        ('Cannot recv data: Failed to connect socket to '
         "'/run/libvirt/virtqemud-sock': Connection refused", WARNING,
         'virsh --connect'),
        ('Cannot recv data: Your password has expired.', WARNING,
         'virsh --connect'),
        ('no answer within 20 seconds', FAILURE, 'MTU'),
        ('End of file while reading data', WARNING, 'virsh --connect'))
    @ddt.unpack
    def test_error_of_libvirt_has_its_remedy(self, problem, code, remedy):
        self.open.side_effect = hypervisor.Unavailable(problem)
        self.assertRefused(code, problem, remedy)

    def test_port_of_ssh_is_left_to_ssh(self):
        self.server.close()
        self.assertIsNotNone(self.connect('ssh').connection)


class TestSsh(testtools.TestCase):

    def test_ssh_that_hangs_is_ended(self):
        path = pathlib.Path(self.useFixture(fixtures.TempDir()).join('pid'))
        with mock.patch.object(destination, '_LONG_TIMEOUT', 1), \
                mock.patch.object(transfer, '_SSH', (
                    'sh', '-c', 'echo $$ >"$0"; exec sleep 20', str(path))):
            # eventlet has a copy of the class TimeoutExpired
            error = self.assertRaises(      # noqa: B017, H202
                Exception, destination._run, 'compute2', 'preflight')
        self.assertIn('timed out', str(error))
        _pid, status = os.waitpid(int(path.read_text()), 0)
        self.assertTrue(os.WIFSIGNALED(status))


PAGE = 'status/destination.rst'


class DestinationTestCase(testtools.TestCase):
    """A host with the guests of DATA, and a fake destination."""

    def setUp(self):
        super().setUp()
        self.host = self.useFixture(base.Hypervisor())
        (self.host.path / 'hypervisor.xml').write_text(self.host.text(
            'hypervisor.xml').replace("<domain type='test'>", """
                <domain type='kvm'><cpu><model>Broadwell</model>
                <feature policy='disable' name='hle'/></cpu>
            """).replace('<devices>', f"""<devices>
                <emulator>{base.EMULATOR}</emulator>"""))
        self.libvirt = base.FakeLibvirt()
        self.libvirt._is_read_only = False
        self.connected = remote.Connected(
            self.libvirt, results.success('libvirt answers'))
        self.connect = self.useFixture(fixtures.MockPatchObject(
            remote, 'connect', autospec=True,
            side_effect=lambda _uri: self.connected)).mock
        self.by_ssh = {}
        self.useFixture(fixtures.MockPatchObject(
            transfer, 'execute', autospec=True, side_effect=self.execute))
        self.useFixture(fixtures.MockPatchObject(
            userfault, 'state', return_value=(True, '')))

    def configure(self, libvirt):
        """Add options of [libvirt]."""
        self.host.command.write(f'{self.host.text("nova.conf")}{libvirt}\n')

    def execute(self, _host, _program, command, *_rest, **_kwargs):
        if command not in self.by_ssh:
            raise processutils.ProcessExecutionError(stderr='no login')
        return json.dumps(self.by_ssh[command])

    def report(self, dest='compute2'):
        ran = self.host.run('preflight', '--json', '--dest', dest,
                            '--instance', base.uuid(1))
        self.assertEqual('', ran.err)
        self.code = ran.code
        return json.loads(ran.out)

    def found(self, *arguments):
        """Return findings about the destination, and its checks."""
        answer = self.report(*arguments)
        return ([(row['finding'], row['running'], row['computed'],
                  row['covered'], row['result'])
                 for row in answer['findings']
                 if row['finding'].startswith('dest-')],
                {check['check']: (check['result'], check['details'])
                 for check in answer['checks']})

    def capabilities(self, **changes):
        """Make the destination report its capabilities by ssh."""
        self.by_ssh = {
            'upgrade': hosts.checks(),
            'preflight': {'address': None, 'capabilities': facts.as_json(
                facts.Capabilities(**changes))}}


@ddt.ddt
class TestDestination(DestinationTestCase):

    def test_same_host_has_no_finding(self):
        self.capabilities(queues=256, offloads=frozenset(), post_copy=True)
        self.assertEqual(([], {
            'libvirt': (0, 'libvirt answers'),
            'Large packets': (0, '100 kB to the destination and 0 kB from it '
                                 'arrive.')}), self.found())
        self.assertEqual('qemu+tcp://compute2/system',
                         self.connect.call_args.args[0])

    def test_uri_has_the_address_that_the_destination_reports(self):
        self.capabilities()
        self.by_ssh['preflight']['address'] = '2001:db8::2'
        self.configure('live_migration_scheme = tls')
        with mock.patch.object(credentials, 'judge_served', autospec=True,
                               return_value=[results.warning('7 days')]):
            checks = self.found()[1]
        self.assertEqual('qemu+tls://[2001:db8::2]/system',
                         self.connect.call_args.args[0])
        self.assertEqual((1, '7 days'), checks['Certificate'])

    def test_nova_compute_that_must_restart_is_a_check_of_the_host(self):
        self.capabilities()
        self.by_ssh['upgrade'] = hosts.checks(Plugin=(1, 'restart it.'))
        self.assertEqual((1, 'restart it.'), self.found()[1]['Plugin'])

    def test_invalid_address_is_not_used(self):
        self.capabilities()
        self.by_ssh['preflight']['address'] = '-oProxyCommand=x'
        notes = ' '.join(self.report()['notes'])
        self.assertIn('neither a host name', notes)
        self.assertEqual('qemu+tcp://compute2/system',
                         self.connect.call_args.args[0])

    def test_missing_machine_type_is_a_failure(self):
        self.libvirt.capabilities = '<capabilities/>'
        (machine, *_), _checks = self.found()
        self.assertEqual((
            'dest-machine', 'pc-i440fx-7.2', 'the machine \'pc-i440fx-7.2\' '
            f'is not supported by emulator \'{base.EMULATOR}\'', 'no', 2),
            machine)
        self.assertEqual(2, self.code)

    def test_missing_feature_of_the_cpu_is_a_failure(self):
        self.libvirt.lacks = ['avx2']
        (cpu, *_), _checks = self.found()
        self.assertEqual(('dest-cpu', 'Broadwell', 'no', 2),
                         (*cpu[:2], *cpu[3:]))
        self.assertIn('required features: avx2', cpu[2])

    def test_fact_that_only_ssh_tells_is_unknown_without_it(self):
        found, _checks = self.found()
        self.assertEqual([
            ('dest-queues', '2', 'not known', 'not known', 1)], found)
        self.assertIn('compute2 did not report its fixes by ssh',
                      ' '.join(self.report()['notes']))

    def test_older_qemu_is_a_check_of_the_host(self):
        with mock.patch.object(self.libvirt, 'getVersion',
                               return_value=5002000):
            _found, checks = self.found()
        self.assertEqual(2, checks['QEMU'][0])
        for words in ('This host: 7.2.0; compute2: older, 5.2.0',
                      'DestinationHypervisorTooOld',
                      'skip_hypervisor_version_check_on_lm'):
            self.assertIn(words, checks['QEMU'][1])
        self.assertEqual(2, self.code)

    @ddt.data((True, None), (False, 2), (None, 1))
    @ddt.unpack
    def test_post_copy_is_a_check_of_the_host(self, able, result):
        self.configure('live_migration_permit_post_copy = true')
        self.capabilities(post_copy=able)
        found = self.found()[1].get('post-copy')
        self.assertEqual(result, found and found[0])

    def test_paused_guest_needs_no_post_copy(self):
        self.configure('live_migration_permit_post_copy = true')
        self.capabilities(post_copy=False)
        with mock.patch.object(base.FakeLibvirt, 'state', [3, 1]):
            self.assertNotIn('post-copy', self.found()[1])

    def test_failed_connection_is_a_check_without_findings(self):
        self.connected = remote.Connected(None, results.failure('refused'))
        answer = self.report('192.0.2.2')
        self.assertEqual([{'check': 'libvirt', 'result': 2,
                           'details': 'refused'}], answer['checks'])
        self.assertIn('192.0.2.2 was compared with no guest.',
                      answer['notes'])
        self.assertEqual(2, self.code)

    def test_name_may_not_be_the_address_of_migrations(self):
        """As with Kolla: libvirt listens on another interface."""
        self.connected = remote.Connected(None, results.failure('refused'))
        answer = self.report('compute2')
        self.assertEqual([1], [check['result'] for check in answer['checks']])
        self.assertIn('name it after --dest', ' '.join(answer['notes']))
        self.capabilities()
        answer = self.report('compute2')
        self.assertEqual(2, answer['checks'][0]['result'])
        self.assertNotIn('name it after', ' '.join(answer['notes']))

    def test_capabilities_by_ssh_suffice(self):
        self.connected = remote.Connected(None, results.warning('login'))
        self.capabilities(emulators=())
        found, checks = self.found()
        self.assertIn(('dest-emulator', base.EMULATOR,
                       'no emulator for x86_64', 'no', 2), found)
        self.assertEqual({'libvirt', 'QEMU'}, set(checks))

    @ddt.data('receive', 'send')
    def test_lost_large_packets_are_a_failure(self, method):
        done = threading.Event()
        self.addCleanup(done.set)
        name = {'receive': 'getCapabilities', 'send': 'compareCPU'}[method]
        with mock.patch.multiple(destination, _TIMEOUT=.2, _LONG_TIMEOUT=.2), \
                mock.patch.object(self.libvirt, name,
                                  side_effect=lambda *_: done.wait(60)):
            found, checks = self.found('192.0.2.2')
        result, details = checks['Large packets']
        self.assertEqual(2, result)
        direction = {'receive': 'from', 'send': 'to'}[method]
        self.assertIn(f'a long one {direction} the destination', details)
        self.assertIn('MTU', details)
        # the rest would hang, too
        self.assertEqual([], found)

    def test_libvirt_that_examines_qemu_is_not_lost_packets(self):
        with mock.patch.object(destination, '_TIMEOUT', .2), \
                mock.patch.object(self.libvirt, 'getCapabilities',
                                  side_effect=self.slow()):
            checks = self.found('192.0.2.2')[1]
        self.assertEqual(0, checks['Large packets'][0])

    def slow(self):
        """Yield the capabilities, the first time late."""
        time.sleep(.5)
        while True:
            yield self.libvirt.capabilities

    @ddt.data({'upgrade': {'checks': []}}, {'upgrade': []},
              {'upgrade': hosts.checks(), 'preflight': {}},
              {'upgrade': hosts.checks(), 'preflight': {
                  'address': 7, 'capabilities': {}}},
              {'upgrade': hosts.checks(), 'preflight': {
                  'address': '', 'capabilities': {'queues': 'x'}}},
              {'upgrade': hosts.checks(), 'preflight': {
                  'address': '', 'capabilities': None}})
    def test_answer_of_another_release_is_a_note(self, answers):
        self.by_ssh = answers
        self.assertIn('compute2 did not report its ',
                      ' '.join(self.report()['notes']))

    def test_answers_before_a_timeout_count(self):
        released = threading.Event()
        self.addCleanup(released.set)
        ask = hypervisor.ask

        def hang(*args):
            asked = ask(*args)
            asked.answer = lambda *_args: released.wait(30)
            return asked
        with mock.patch.object(destination, '_LONG_TIMEOUT', 1), \
                mock.patch.object(hypervisor, 'ask', hang):
            notes = ' '.join(self.report()['notes'])
        self.assertIn('compute2 did not answer all questions: no answer',
                      notes)
        self.assertNotIn('was compared with no guest', notes)

    def test_invalid_name_is_not_used(self):
        answer = self.report('x y')
        self.assertIn('neither a host name', ' '.join(answer['notes']))
        self.connect.assert_not_called()

    def test_hypervisor_without_live_migration_is_noted(self):
        self.host.command.write(self.host.text('nova.conf').replace(
            'virt_type = kvm', 'virt_type = lxc'))
        self.assertIn('libvirt of compute2 was not asked',
                      ' '.join(self.report()['notes']))

    def test_invalid_uri_is_noted(self):
        self.configure('live_migration_uri = qemu+tcp://h/system')
        self.assertIn('[libvirt] live_migration_uri is invalid',
                      ' '.join(self.report()['notes']))

    def test_checks_are_printed_with_the_table(self):
        self.connected = remote.Connected(None, results.failure('refused'))
        ran = self.host.run('preflight', '--dest', '::2')
        self.assertIn('\n::2, libvirt: Failure: refused\n', ran.out)
        ran = self.host.run('preflight', '--csv', '--dest', '::2')
        self.assertIn('::2, libvirt: Failure: refused\n', ran.err)


@ddt.ddt
class TestDocumentation(DestinationTestCase):

    @ddt.data(*(command for command, _ in pages.commands(PAGE)))
    def test_documented_command_compares_the_destination(self, command):
        _program, *arguments = command.split()
        ran = self.host.run(*arguments)
        self.assertIn('dest-queues', ran.out)

    def test_every_check_and_finding_is_described(self):
        text = pages.text(PAGE)
        for name in ('libvirt', 'Certificate', 'Large packets', 'Plugin', *(
                kind.device if kind.of_host else name
                for name, kind in matching.KINDS.items())):
            self.assertIn(f'* - ``{name}``\n', text)


class TestThisHost(DestinationTestCase):
    """The facts that hosts print, for a report about many."""

    def test_capabilities_and_needs_are_printed(self):
        self.configure('live_migration_permit_post_copy = true')
        answer = self.report()
        host = facts.load_capabilities(answer['capabilities'])
        self.assertEqual((7002000, 256, True), (
            host.hypervisor, host.queues, host.post_copy))
        group, = answer['needs']
        self.assertEqual([base.uuid(1)], group['instances'])
        needs = facts.load_needs(group['needs'])
        self.assertEqual((2, True, 7002000, 9000000), (
            needs.queues, needs.post_copy, needs.hypervisor, needs.libvirt))
        self.assertEqual('192.0.2.11', answer['address'])

    def test_equal_guests_share_their_needs(self):
        path = pathlib.Path(self.host.path / 'hypervisor.xml')
        path.write_text(re.sub("queues='[0-9]+'", '', path.read_text()))
        ran = self.host.run('preflight', '--json')
        groups = json.loads(ran.out)['needs']
        self.assertEqual(
            [base.uuid(number) for number in range(1, 5)],
            sorted(uuid for group in groups for uuid in group['instances']))
        self.assertLess(len(groups), 4)

    def test_guest_that_nova_does_not_know_is_not_compared(self):
        ran = self.host.run('preflight', '--json',
                            '--instance', base.uuid(5))
        answer = json.loads(ran.out)
        self.assertEqual((0, []), (answer['guests'], answer['needs']))
        self.assertIn('is not an instance', ' '.join(answer['notes']))

    def test_cpu_that_its_own_host_refuses_is_not_compared(self):
        """After an upgrade QEMU does not report a feature any more."""
        with mock.patch.object(base.FakeLibvirt, 'lacks', ['avx2']):
            answer = self.report()
        self.assertIsNone(answer['needs'][0]['needs']['cpu'])
        self.assertEqual([('CPU', 'not known', 'not known')], [
            (row['running'], row['computed'], row['covered'])
            for row in answer['findings'] if row['finding'] == 'dest-cpu'])

    def test_read_only_libvirt_is_noted(self):
        with mock.patch.object(base.FakeLibvirt, 'is_writable', False):
            answer = self.report()
        self.assertIsNone(answer['capabilities']['cpus'])
        self.assertIn('CPU of the host for kvm', ' '.join(answer['notes']))

    def test_vnics_need_only_offloads_of_this_kernel(self):
        path = pathlib.Path(self.host.path / 'hypervisor.xml')
        path.write_text(path.read_text().replace('i440fx-7.2', 'i440fx-8.2'))
        for kernel, expected in ((frozenset(), []),
                                 (frozenset(['USO']), ['USO'])):
            with mock.patch('nova_migfix.abi.tap.offloads',
                            lambda kernel=kernel: kernel):
                group, = self.report()['needs']
            self.assertEqual(expected, group['needs']['offloads'])

    def test_refused_tap_device_is_noted(self):
        with mock.patch('nova_migfix.abi.tap.offloads',
                        side_effect=FileNotFoundError('/dev/net/tun')):
            answer = self.report()
        self.assertIsNone(answer['capabilities']['offloads'])
        self.assertIn('Not known: offloads of tap devices: /dev/net/tun',
                      answer['notes'])
