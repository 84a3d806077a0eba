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

import contextlib
import os
import pathlib
import pwd
import socket
import subprocess
import threading
import time
from unittest import mock

import ddt
import fixtures
import hypothesis
from hypothesis import strategies
from oslo_concurrency import processutils
from oslo_upgradecheck import upgradecheck
import testtools

from nova_migfix import status
from nova_migfix.status import endpoint
from nova_migfix.status import hypervisor
from nova_migfix.status import qemu
from nova_migfix.status import remote
from nova_migfix.status import shared
from nova_migfix.status import userfault
from nova_migfix.tests.unit.status import base

SUCCESS, WARNING, FAILURE = upgradecheck.Code

OWN = 'live_migration_inbound_addr = 127.0.0.1'


@ddt.ddt
class TestMigrationAddress(base.StatusTestCase):

    @ddt.data(
        ('', WARNING, 'is unset'),
        ('127.0.0.1', SUCCESS, '127.0.0.1 is an address of this host'),
        ('does-not-exist.invalid', FAILURE, 'cannot be resolved'),
        # documentation, RFC 5737
        ('192.0.2.7', FAILURE, 'is not an address of this host'))
    @ddt.unpack
    def test_migration_address_is_checked(self, own, code, said):
        self.configure(own and f'live_migration_inbound_addr = {own}')
        self.assertCheck('Migration address', code, said)

    def test_invalid_migration_address_is_an_error(self):
        self.configure('live_migration_inbound_addr = -oProxyCommand=x')
        ran = self.command.run('upgrade', 'check')
        self.assertEqual(255, ran.code)
        self.assertIn('live_migration_inbound_addr', ran.err)

    @contextlib.contextmanager
    def listening(self, greeting):
        with socket.create_server(('127.0.0.1', 0)) as server:
            def greet():
                connection, _peer = server.accept()
                with connection:
                    connection.sendall(greeting)
            thread = threading.Thread(target=greet, daemon=True)
            thread.start()
            yield server.getsockname()[1]
            thread.join(10)

    def ask(self, port, code, *said):
        self.configure('live_migration_inbound_addr = 127.0.0.1')
        with mock.patch.object(
                endpoint, '_ssh_destination', autospec=True,
                return_value=('127.0.0.1', port)):
            self.assertCheck('ssh to the migration address', code, *said)

    @ddt.data((b'SSH-2.0-OpenSSH_9.2\r\n', SUCCESS, 'sshd answers'),
              (b'220 ESMTP\r\n', FAILURE, 'is not sshd'))
    @ddt.unpack
    def test_service_at_the_ssh_port_is_checked(self, greeting, code, said):
        with self.listening(greeting) as port:
            self.ask(port, code, str(port), said)

    def test_closed_ssh_port_is_a_failure(self):
        with self.listening(b'') as port:
            socket.create_connection(('127.0.0.1', port)).close()
        self.ask(port, FAILURE, '111', 'let sshd listen')

    def test_ssh_port_comes_from_ssh_config(self):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        config = directory / 'config'
        config.write_text('Host 127.0.0.1\n  Port 8022\n')
        execute = processutils.execute
        with mock.patch.object(processutils, 'execute', side_effect=(
                lambda *words: execute(
                    words[0], '-F', str(config), *words[1:]))):
            self.assertEqual(('127.0.0.1', 8022),
                             endpoint._ssh_destination('127.0.0.1'))


@ddt.ddt
class TestCondition(base.StatusTestCase):

    NAMES = ('ssh login at the migration address',
             'libvirt at the migration address', 'Certificates of libvirt',
             'Ports of migrations')

    @ddt.data(('', 'is unset'), ('192.0.2.7', 'not an address of this host'),
              ('does-not-exist.invalid', 'not an address of this host'))
    @ddt.unpack
    def test_other_host_is_not_checked(self, own, said):
        self.configure(own and f'live_migration_inbound_addr = {own}')
        for name in self.NAMES:
            self.assertCheck(name, SUCCESS, 'Not checked', said)


class TestLogin(base.StatusTestCase):

    NAME = 'ssh login at the migration address'

    def setUp(self):
        super().setUp()
        self.configure(OWN)
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', f'{self.directory}:{os.environ["PATH"]}'))
        self.useFixture(fixtures.MockPatchObject(
            shared, 'has_shared_disks', autospec=True, return_value=False))

    def ssh(self, script):
        path = self.directory / 'ssh'
        path.write_text(
            f'#!/bin/sh\necho "$@" > {self.directory}/said\n{script}\n')
        path.chmod(0o755)

    def said(self):
        return (self.directory / 'said').read_text().strip()

    def test_login_is_success(self):
        self.ssh('exit 0')
        self.assertCheck(self.NAME, SUCCESS, 'can log in on 127.0.0.1')
        self.assertEqual('-o BatchMode=yes -o ConnectTimeout=5 -- 127.0.0.1 '
                         'true', self.said())

    def test_refused_login_is_a_warning(self):
        self.ssh('echo "Host key verification failed." >&2; exit 255')
        self.assertCheck(self.NAME, WARNING, 'Host key verification failed.',
                         'Give all hosts the keys')

    def test_silent_login_is_a_warning(self):
        with mock.patch.object(
                subprocess, 'run', autospec=True,
                side_effect=subprocess.TimeoutExpired('ssh', 20)) as run:
            self.assertCheck(self.NAME, WARNING, 'timed out')
        self.assertEqual(20, run.call_args.kwargs['timeout'])

    def test_missing_ssh_is_a_warning(self):
        with mock.patch.object(subprocess, 'run', autospec=True,
                               side_effect=FileNotFoundError('ssh')):
            self.assertCheck(self.NAME, WARNING, 'ssh')

    def test_login_is_not_needed_without_local_disks(self):
        self.ssh('exit 255')
        shared.has_shared_disks.return_value = True
        self.assertCheck(self.NAME, SUCCESS, 'Not needed')
        shared.has_shared_disks.return_value = False
        self.configure(f'{OWN}\nimages_type = rbd')
        self.assertCheck(self.NAME, SUCCESS, 'Not needed')

    def test_root_logs_in_as_the_user_of_nova_compute(self):
        user = mock.Mock(spec=pwd.struct_passwd, pw_name='nova', pw_uid=42,
                         pw_gid=43)
        done = subprocess.CompletedProcess([], 0, b'', b'')
        with mock.patch.object(os, 'geteuid', return_value=0), \
                mock.patch.object(os, 'getgrouplist', return_value=[43]), \
                mock.patch.object(endpoint, '_compute_user',
                                  return_value=user), \
                mock.patch.object(subprocess, 'run', autospec=True,
                                  return_value=done) as run:
            self.assertCheck(self.NAME, SUCCESS, 'nova can log in')
        self.assertEqual((42, 43, [43]), tuple(
            run.call_args.kwargs[key]
            for key in ('user', 'group', 'extra_groups')))

    def test_user_of_nova_compute_owns_instances_path(self):
        self.command.write(f'[DEFAULT]\ninstances_path = {self.directory}')
        self.command.run('upgrade', 'check')
        with mock.patch.object(os, 'geteuid', return_value=0), \
                mock.patch.object(os, 'stat') as found, \
                mock.patch.object(os.path, 'isdir', return_value=True), \
                mock.patch.object(pwd, 'getpwuid') as get:
            found.return_value.st_uid = 42
            endpoint._compute_user()
        get.assert_called_once_with(42)


@ddt.ddt
class TestLibvirt(base.StatusTestCase):

    NAME = 'libvirt at the migration address'

    def setUp(self):
        super().setUp()
        self.server = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(self.server.close)
        self.port = self.server.getsockname()[1]
        self.use('tcp')
        self.open = self.useFixture(fixtures.MockPatchObject(
            hypervisor, 'open_uri', autospec=True)).mock

    def use(self, transport):
        self.configure(
            f'{OWN}\nlive_migration_uri = qemu+{transport}://%s:{self.port}/'
            'system')

    def test_open_uri_is_success(self):
        uri = f'qemu+tcp://127.0.0.1:{self.port}/system'
        self.assertCheck(self.NAME, SUCCESS, f'libvirt answers at {uri}')
        self.assertEqual(uri, self.open.call_args.args[0])

    def test_uri_is_the_one_of_nova(self):
        self.configure(f'{OWN}\nlive_migration_scheme = ssh')
        self.assertCheck(self.NAME, SUCCESS, 'qemu+ssh://127.0.0.1/system')

    def test_closed_port_is_a_failure(self):
        self.server.close()
        self.assertCheck(self.NAME, FAILURE, str(self.port), '111',
                         'Let libvirt listen')
        self.open.assert_not_called()

    @ddt.data(
        ('Certificate [session] owner does not match the hostname 127.0.0.1',
         FAILURE), ('The server certificate x has expired', FAILURE),
        ('authentication failed: no password', WARNING))
    @ddt.unpack
    def test_error_of_libvirt_is_judged(self, problem, code):
        self.open.side_effect = hypervisor.Unavailable(problem)
        self.assertCheck(self.NAME, code, problem)

    def test_missing_libvirt_python_is_a_warning(self):
        self.open.side_effect = status.Error('no module')
        self.assertCheck(self.NAME, WARNING, 'Not checked: no module')

    def test_hypervisor_without_live_migration_is_not_checked(self):
        self.configure(f'{OWN}\n[libvirt]\nvirt_type = lxc'.replace(
            '[libvirt]\n', ''))
        self.assertCheck(self.NAME, SUCCESS, 'Not used')

    @ddt.data('qemu+tcp://h/system', 'qemu+tcp://%s/system?x=%z')
    def test_invalid_uri_is_a_failure(self, uri):
        self.configure(f'{OWN}\nlive_migration_uri = {uri}')
        self.assertCheck(self.NAME, FAILURE, 'live_migration_uri is invalid')

    def test_port_of_ssh_is_not_tried(self):
        self.server.close()
        self.use('ssh')
        self.assertCheck(self.NAME, SUCCESS, 'qemu+ssh')


@ddt.ddt
class TestLibvirtPort(testtools.TestCase):

    @ddt.data(
        ('qemu+tcp://192.0.2.1/system', ('192.0.2.1', 16509)),
        ('qemu+tls://compute1/system', ('compute1', 16514)),
        ('qemu://compute1/system', ('compute1', 16514)),
        ('qemu+tls://[2001:db8::1]:7/system', ('2001:db8::1', 7)),
        ('qemu+ssh://nova@compute1/system', None),
        ('qemu:///system', None), ('qemu+tcp://h:x/system', None))
    @ddt.unpack
    def test_port_depends_on_the_transport(self, uri, expected):
        self.assertEqual(expected, remote.port(uri))

    @hypothesis.given(strategies.text())
    def test_any_text_has_a_port_or_none(self, uri):
        for text in (uri, f'qemu+tcp://{uri}'):
            found = remote.port(text)
            self.assertTrue(found is None or found[1] < 65536)


class TestOpenUri(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.libvirt = base.FakeLibvirt()
        self.useFixture(fixtures.MockPatchObject(
            hypervisor, '_libvirt', return_value=self.libvirt))

    def test_connection_is_returned(self):
        path = pathlib.Path(self.useFixture(fixtures.TempDir()).join('x'))
        path.write_text('<node/>')
        self.assertEqual(7002000, hypervisor.open_uri(
            f'test://{path}', 10).getVersion())

    def test_error_of_libvirt_is_raised(self):
        self.assertIn('nosuch', str(self.assertRaises(
            hypervisor.Unavailable, hypervisor.open_uri, 'test:///nosuch',
            10)))

    def test_silent_libvirt_is_not_waited_for(self):
        done = threading.Event()
        self.addCleanup(done.set)
        self.libvirt.openAuth = lambda *_args: done.wait(60)
        begin = time.monotonic()
        self.assertIn('no answer', str(self.assertRaises(
            hypervisor.Unavailable, hypervisor.open_uri, 'test:///', .1)))
        self.assertLess(time.monotonic() - begin, 30)

    def test_ssh_asks_for_no_password(self):
        with mock.patch.object(self.libvirt, 'openAuth') as opened:
            for uri in ('qemu+ssh://h/system', 'qemu+ssh://h/system?port=1'):
                hypervisor.open_uri(uri, 10)
        self.assertEqual(
            ['qemu+ssh://h/system?no_tty=1',
             'qemu+ssh://h/system?port=1&no_tty=1'],
            [call.args[0] for call in opened.call_args_list])

    def test_errors_of_the_plugin_are_raised(self):
        self.assertRaises(ZeroDivisionError, hypervisor.limited, 10,
                          lambda: 1 / 0)


class TestPorts(base.StatusTestCase):

    NAME = 'Ports of migrations'

    def setUp(self):
        super().setUp()
        self.configure(OWN)
        self.server = socket.create_server(('127.0.0.1', 0))
        self.addCleanup(self.server.close)
        self.port = self.server.getsockname()[1]
        self.settings = {'migration_port_min': str(self.port),
                         'migration_port_max': str(self.port)}
        self.useFixture(fixtures.MockPatchObject(
            qemu, 'setting', side_effect=self.settings.get))

    def test_free_port_is_success(self):
        self.server.close()
        self.assertCheck(self.NAME, SUCCESS, f'1 of the 1 ports {self.port}')

    def test_default_range_is_that_of_libvirt(self):
        self.settings.update(migration_port_min='x', migration_port_max='')
        with mock.patch.object(endpoint, '_usable', autospec=True,
                               return_value=[(49152, '')]) as usable:
            self.assertCheck(self.NAME, SUCCESS, '1 of the 64 ports 49152')
        usable.assert_called_once_with('127.0.0.1', range(49152, 49216))

    def test_used_ports_are_a_failure(self):
        self.assertCheck(self.NAME, FAILURE, 'None of the ports')

    def test_blocked_port_is_a_failure(self):
        self.server.close()
        with mock.patch.object(socket, 'create_connection', autospec=True,
                               side_effect=TimeoutError('timed out')):
            self.assertCheck(self.NAME, FAILURE, str(self.port), 'timed out',
                             'firewall')


@ddt.ddt
class TestPostCopy(base.StatusTestCase):

    NAME = 'Post-copy'

    def setUp(self):
        super().setUp()
        self.configure('live_migration_permit_post_copy = true')
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.value, self.device = directory / 'value', directory / 'device'
        self.value.write_text('0\n')
        for name, path in (('_SETTING', self.value),
                           ('_DEVICE', self.device)):
            self.useFixture(fixtures.MockPatchObject(userfault, name, path))
        self.user = self.useFixture(fixtures.MockPatchObject(
            qemu, 'user', autospec=True,
            return_value=qemu.User(42, frozenset()))).mock

    def test_unprivileged_qemu_without_userfaultfd_is_a_failure(self):
        self.assertCheck(self.NAME, FAILURE,
                         'vm.unprivileged_userfaultfd = 1')

    def test_device_that_qemu_may_open_is_a_warning(self):
        self.device.touch()
        self.assertCheck(self.NAME, WARNING, 'QEMU is 8.0 or later')

    def test_unknown_user_is_a_warning(self):
        self.user.return_value = None
        self.assertCheck(self.NAME, WARNING, 'is not known')

    def test_root_is_success(self):
        self.user.return_value = qemu.User(0, frozenset())
        self.assertCheck(self.NAME, SUCCESS, 'QEMU is root')

    def test_permitted_userfaultfd_is_success(self):
        self.value.write_text('1\n')
        self.assertCheck(self.NAME, SUCCESS, 'userfaultfd is 1')

    def test_old_kernel_is_success(self):
        self.value.unlink()
        self.assertCheck(self.NAME, SUCCESS, 'has no vm.unprivileged')

    def test_migrations_without_post_copy_are_not_checked(self):
        self.configure()
        self.assertCheck(self.NAME, SUCCESS, 'Not used')
