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
import io
import json
import pathlib
import subprocess
from unittest import mock

import ddt
import fixtures
from hypothesis import given
from hypothesis import strategies as st
from oslo_concurrency import processutils
import testtools

from nova_migfix.cmd import tls
from nova_migfix.tls import audit
from nova_migfix.tls import gnutls

GIB = 1 << 30

LIBRARY = '/usr/lib/x86_64-linux-gnu/libgnutls.so.30.34.3'
MAPPING = '7f0000000000-7f0000030000'

MAPS = f'''\
560000000000-560000400000 r--p 00000000 fe:00 1    /usr/bin/qemu-system-x86_64
7e0000000000-7e0100000000 rw-p 00000000 00:00 0
{MAPPING} r--p 00000000 fe:00 2                    {{path}}
7f0000030000-7f0000150000 r-xp 00030000 fe:00 2    {{path}}
'''

STATUS = '''\
Name:	qemu-system-x86
VmPeak:	 9000000 kB
VmRSS:	 {resident} kB
HugetlbPages:	 {huge} kB
Threads:	4
'''


class Proc(fixtures.Fixture):
    """A fake /proc with the processes of a test."""

    def _setUp(self):
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        (self.path / 'self').symlink_to('42')

    def process(self, pid, *command, files=None, version='3.7.9', root='/'):
        """Add a process.

        :param files: text by name, without the command line
        :param version: of the mapped GnuTLS
        :param root: the root directory of the process
        """
        process = self.path / str(pid)
        (process / 'map_files').mkdir(parents=True)
        (process / 'root').symlink_to(root)
        (process / 'cmdline').write_text('\0'.join(command) + '\0')
        (process / 'map_files' / MAPPING).write_bytes(
            b'\0000.3.4\0' + version.encode() + b'\0')
        for name, text in (files or {}).items():
            (process / name).write_text(text)
        return process

    def qemu(self, pid, uuid='', path=LIBRARY, resident=0, huge=0, **process):
        """Add a QEMU as libvirt starts it."""
        return self.process(
            pid, '/usr/bin/qemu-system-x86_64', '-name',
            f'guest=instance-{pid},debug-threads=on', '-S', '-uuid', uuid,
            files={'maps': MAPS.format(path=path), 'status': STATUS.format(
                resident=resident // 1024, huge=huge // 1024)}, **process)


class AuditTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.proc = self.useFixture(Proc())
        self.useFixture(fixtures.MockPatchObject(
            audit, '_PROC', self.proc.path))
        self.useFixture(fixtures.MockPatchObject(
            gnutls, '_package', self.package))
        self.packages = ['3.7.9-2+deb12u6']

    def package(self):
        return self.packages[0]

    def guests(self):
        return list(audit.guests())


class TestGuests(AuditTestCase):

    def test_guest_is_found_with_memory_and_library(self):
        self.proc.qemu(7, 'aaaa', resident=3 * GIB)
        self.assertEqual([audit.Guest(
            7, 'instance-7', 'aaaa', 3 * GIB, gnutls.Library(
                LIBRARY, False, '3.7.9', '3.7.9-2+deb12u6'))], self.guests())

    def test_process_files_in_any_encoding_are_read(self):
        process = self.proc.qemu(7, resident=GIB)
        for name in ('status', 'maps'):
            path = process / name
            path.write_bytes(b'Name:\tqemu\xff\n' + path.read_bytes())
        self.assertEqual([GIB], [guest.memory for guest in self.guests()])

    def test_huge_pages_count_as_memory(self):
        self.proc.qemu(7, resident=GIB, huge=64 * GIB)
        self.assertEqual(65 * GIB, self.guests()[0].memory)

    def test_guests_are_sorted_by_process_id(self):
        for pid in (100, 9, 20):
            self.proc.qemu(pid)
        self.assertEqual([9, 20, 100], [g.pid for g in self.guests()])

    def test_other_processes_are_no_guests(self):
        self.proc.process(1, '/sbin/init')
        self.proc.process(2)
        self.proc.process(3, '/usr/bin/vi', '/usr/bin/qemu-system-x86_64')
        self.proc.process(4, '/usr/bin/qemu-img', 'convert')
        self.assertEqual([], self.guests())

    def test_hidden_process_is_no_guest(self):
        # as with the option hidepid of /proc
        self.proc.qemu(5)
        with mock.patch.object(pathlib.Path, 'read_text', autospec=True,
                               side_effect=PermissionError):
            self.assertEqual([], self.guests())

    def test_qemu_kvm_of_the_red_hat_family_is_found(self):
        self.proc.process(8, '/usr/libexec/qemu-kvm', files={
            'maps': '', 'status': ''})
        self.assertEqual([8], [guest.pid for guest in self.guests()])

    def test_process_that_ends_during_the_audit_is_skipped(self):
        self.proc.process(5, '/usr/bin/qemu-system-x86_64')
        self.proc.qemu(6)
        (self.proc.path / '7').mkdir()
        self.assertEqual([6], [guest.pid for guest in self.guests()])

    def test_guest_is_found_by_its_uuid(self):
        self.proc.qemu(6, 'aaaa')
        self.proc.qemu(7, 'bbbb')
        self.assertEqual(7, audit.find('bbbb').pid)
        self.assertIsNone(audit.find('cccc'))


class TestLibrary(AuditTestCase):

    def library(self):
        guest, = self.guests()
        return guest.library

    def test_replaced_library_keeps_its_old_version(self):
        self.packages = ['3.8.11-1']
        self.proc.qemu(7, path=f'{LIBRARY} (deleted)', version='3.7.9')
        self.assertEqual(gnutls.Library(LIBRARY, True, '3.7.9', ''),
                         self.library())

    def test_library_of_unreadable_mappings_is_unknown(self):
        maps = self.proc.qemu(7) / 'maps'
        self.useFixture(fixtures.MockPatchObject(
            pathlib.Path, 'read_text', self.refusing(maps)))
        self.assertEqual(gnutls.Library('', False, None, ''), self.library())

    def refusing(self, refused):
        """Return a read_text that may not read this file."""
        read_text = pathlib.Path.read_text

        def wrapper(path, *args, **kwargs):
            if path == refused:
                raise PermissionError(path)
            return read_text(path, *args, **kwargs)
        return wrapper

    def test_guest_without_gnutls_has_no_library(self):
        (self.proc.qemu(7) / 'maps').write_text('')
        self.assertIsNone(self.library())

    def test_library_of_a_container_has_no_package_of_the_host(self):
        root = self.useFixture(fixtures.TempDir()).path
        self.proc.qemu(7, version='3.8.3', root=root)
        self.assertEqual(gnutls.Library(LIBRARY, False, '3.8.3', ''),
                         self.library())

    def test_library_of_a_container_is_read_below_its_root(self):
        root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        file = root / LIBRARY.lstrip('/')
        file.parent.mkdir(parents=True)
        file.write_bytes(b'\x003.8.9\0')
        process = self.proc.qemu(7, root=root)
        (process / 'map_files' / MAPPING).unlink()
        self.assertEqual('3.8.9', self.library().version)

    def test_library_with_several_versions_is_unknown(self):
        process = self.proc.qemu(7, path=f'{LIBRARY} (deleted)')
        (process / 'map_files' / MAPPING).write_bytes(
            b'\x003.8.9\0 or \x003.8.11\0')
        self.assertIsNone(self.library().version)


@ddt.ddt
class TestTransport(testtools.TestCase):

    def file(self, text):
        path = self.useFixture(fixtures.TempDir()).join('nova.conf')
        pathlib.Path(path).write_text(text)
        return path

    def test_defaults_are_those_of_nova(self):
        self.assertEqual((False, False, False, 1),
                         audit.transport([self.file('[DEFAULT]\n')]))

    def test_options_of_nova_conf_are_read(self):
        self.assertEqual((True, False, True, 4), audit.transport([self.file(
            '[libvirt]\nlive_migration_with_native_tls = true\n'
            'live_migration_permit_post_copy = yes\n'
            'live_migration_parallel_connections = 4\n'
            'virt_type = kvm\n')]))

    def test_last_configuration_file_counts(self):
        files = [self.file(f'[libvirt]\nlive_migration_tunnelled = {value}\n')
                 for value in ('false', 'true')]
        self.assertTrue(audit.transport(files).live_migration_tunnelled)

    @ddt.data('no section\n', '[libvirt]\n'
              'live_migration_parallel_connections = many\n')
    def test_malformed_configuration_is_an_error(self, text):
        error = self.assertRaises(
            audit.AuditError, audit.transport, [self.file(text)])
        self.assertIn('--config-file', str(error))


@ddt.ddt
class TestDirtyRates(testtools.TestCase):

    STATS = ("Domain: 'instance-1'\n"
             '  dirtyrate.calc_status=2\n'
             '  dirtyrate.megabytes_per_second=300\n\n'
             "Domain: 'instance-2'\n"
             '  dirtyrate.calc_status=0\n')

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(audit.time, 'sleep'))
        self.execute = self.useFixture(fixtures.MockPatchObject(
            processutils, 'execute', autospec=True)).mock

    def test_dirty_rate_of_every_guest_is_measured(self):
        self.execute.side_effect = [
            ('instance-1\ninstance-2\n', ''), ('', ''), ('', ''),
            (self.STATS, '')]
        self.assertEqual({'instance-1': 300 << 20}, audit.dirty_rates(2))
        self.execute.assert_any_call(
            'virsh', 'domdirtyrate-calc', 'instance-2', '--seconds', '2',
            timeout=60)
        audit.time.sleep.assert_called_once_with(3)

    @ddt.data(FileNotFoundError('virsh'),
              subprocess.TimeoutExpired('virsh', 60))
    def test_dirty_rates_without_an_answer_are_an_error(self, failure):
        self.execute.side_effect = failure
        error = self.assertRaises(audit.AuditError, audit.dirty_rates, 2)
        self.assertIn('virsh', str(error))


@ddt.ddt
class TestAuditCommand(AuditTestCase):

    def setUp(self):
        super().setUp()
        self.config = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('nova.conf'))
        self.config.write_text(
            '[libvirt]\nlive_migration_with_native_tls = true\n')

    def audit(self, *arguments):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = tls.main(['audit', '--config-file', str(self.config),
                               *arguments])
        return status, out.getvalue()

    # GiB in use by each guest, and the exit code
    @ddt.data(((1,), 0), ((1, 20), 1), ((20, 1, 80), 2))
    @ddt.unpack
    def test_exit_status_is_that_of_the_worst_guest(self, memory, expected):
        for pid, size in enumerate(memory, 1):
            self.proc.qemu(pid, resident=size * GIB)
        status, _ = self.audit()
        self.assertEqual(expected, status)

    @ddt.data((), ('--json',))
    def test_host_without_visible_guests_is_a_warning(self, arguments):
        self.proc.process(1, '/sbin/init')
        status, said = self.audit(*arguments)
        self.assertEqual(1, status)
        for part in ('No QEMU is visible', 'container of libvirt',
                     'nova_libvirt', 'or on the host'):
            self.assertIn(part, said)

    @given(st.binary(max_size=40).filter(lambda name: b'\0' not in name),
           st.binary(max_size=40).filter(lambda uuid: b'\0' not in uuid))
    def test_terminal_does_not_get_control_characters_of_a_guest(
            self, name, uuid):
        process = self.useFixture(Proc())
        with mock.patch.object(audit, '_PROC', process.path):
            command = process.qemu(7) / 'cmdline'
            command.write_bytes(b'\0'.join((
                b'/usr/bin/qemu-system-x86_64', b'-name', b'\x1b[2J' + name,
                b'-uuid', b'\x1b' + uuid)))
            _, said = self.audit()
        self.assertTrue(said.replace('\n', '').isprintable(), said)

    def test_audit_prints_a_table(self):
        self.proc.qemu(7, 'aaaa', resident=80 * GIB,
                       path=f'{LIBRARY} (deleted)')
        _, said = self.audit()
        self.assertIn('Nova migrates over native TLS, without post-copy, '
                      'parallel connections: 1', said)
        for cell in ('instance-7', 'aaaa', '80.0', '3.7.9 (replaced)', '2',
                     'rekeys unsafely', 'will fail'):
            self.assertIn(f'| {cell} ', said)

    def test_audit_prints_json(self):
        self.proc.qemu(7, 'aaaa', resident=80 * GIB)
        status, said = self.audit('--json')
        found = json.loads(said)
        self.assertTrue(found['nova']['live_migration_with_native_tls'])
        guest, = found['guests']
        self.assertEqual(
            (7, 'instance-7', 'aaaa', 80 * GIB, 'will fail', 2),
            (guest['pid'], guest['name'], guest['uuid'], guest['memory'],
             guest['verdict'], guest['rekeys']))
        self.assertEqual(
            {'path': LIBRARY, 'deleted': False, 'version': '3.7.9',
             'package': '3.7.9-2+deb12u6', 'rekeys_safely': False},
            guest['library'])

    @ddt.data(('3.7.9', False), ('3.8.11', True), ('', None))
    @ddt.unpack
    def test_library_is_judged_without_tls(self, version, expected):
        self.config.write_text('[DEFAULT]\n')
        self.proc.qemu(7, path=f'{LIBRARY} (deleted)', version=version)
        _, said = self.audit('--json')
        guest, = json.loads(said)['guests']
        self.assertEqual(('safe', expected), (
            guest['verdict'], guest['library']['rekeys_safely']))

    def test_dirty_rate_option_measures_the_guests(self):
        self.proc.qemu(7, resident=20 * GIB)
        with mock.patch.object(
                audit, 'dirty_rates', autospec=True,
                side_effect=lambda seconds: {'instance-7': seconds << 20}):
            status, said = self.audit('--dirty-rate', '5')
            self.assertEqual(0, status, said)
            status, said = self.audit('--dirty-rate', '60',
                                      '--bandwidth', str(80 << 20))
        self.assertEqual(2, status)
        self.assertIn('80.0 GiB will be sent', said)

    @ddt.data('0', '-5', '61', 'x')
    def test_other_durations_of_a_measurement_are_refused(self, seconds):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertRaises(SystemExit, tls.main, [
                'audit', f'--dirty-rate={seconds}'])
        self.assertIn('--dirty-rate: ', said.getvalue())

    def test_missing_configuration_is_an_error(self):
        self.config.unlink()
        status, said = self.audit()
        self.assertEqual(2, status)
        self.assertIn(f'{self.config}\n', said)
        self.assertIn('--config-file', said)

    def test_audit_runs_no_command_by_default(self):
        self.proc.qemu(7)
        with mock.patch.object(processutils, 'execute',
                               autospec=True) as execute:
            self.audit()
        execute.assert_not_called()
