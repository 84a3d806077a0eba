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

import filecmp
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
import time
from unittest import mock

import ddt
import fixtures
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from nova.virt.libvirt.volume import remotefs
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_config import fixture as config_fixture
import testtools
from testtools import matchers

from nova_migfix import migration
from nova_migfix.tests import fixtures as migfix_fixtures
from nova_migfix.transport import transfer


@ddt.ddt
class TestRemoteFilesystem(testtools.TestCase):

    def copied(self, src):
        with mock.patch.object(
                remotefs.RemoteFilesystem, 'copy_file', autospec=True) as copy:
            transfer.RemoteFilesystem().copy_file(src, '/inst')
        return copy.call_args.args[1]

    @ddt.data(('10.0.2.11', '10.0.2.11:/inst/disk.config'),
              ('fd00::11', '[fd00::11]:/inst/disk.config'),
              ('c1.migration', 'c1.migration:/inst/disk.config'),
              (None, 'compute1:/inst/disk.config'))
    @ddt.unpack
    def test_copy_file_fetches_from_the_migration_address(self, address, src):
        with migration.incoming(address, is_live=True):
            self.assertEqual(src, self.copied('compute1:/inst/disk.config'))

    def test_local_path_is_left_alone(self):
        with migration.incoming('10.0.2.11', is_live=True):
            self.assertEqual('/inst/disk', self.copied('/inst/disk'))


@ddt.ddt
class TestPull(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.ssh = self.useFixture(migfix_fixtures.FakeSsh())
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))
        self.target = self.useFixture(fixtures.TempDir()).path

    def pull(self, transport, *paths, host='10.0.2.11'):
        self.config.config(
            remote_filesystem_transport=transport, group='libvirt')
        transfer.fetch(host, list(map(str, paths)), self.target)

    @ddt.data('ssh', 'rsync')
    def test_all_files_are_transferred_in_one_session(self, transport):
        disk = self.instances.path / 'uuid' / 'disk.config'
        disk.parent.mkdir()
        disk.write_bytes(b'config drive' * 1000)
        base = self.instances.make_base()
        self.pull(transport, base, disk)
        self.assertEqual(['disk.config', base.name],
                         sorted(os.listdir(self.target)))
        for path in (base, disk):
            self.assertTrue(filecmp.cmp(
                path, os.path.join(self.target, path.name), shallow=False))
        self.assertEqual(1, len(self.ssh.asked))
        self.assertThat(self.ssh.asked[0], matchers.StartsWith('10.0.2.11 '))

    @ddt.data('ssh', 'rsync')
    def test_source_keeps_no_temporary_files(self, transport):
        base = self.instances.make_base()
        self.pull(transport, base)
        self.assertEqual(['_base'], os.listdir(self.instances.path))

    @ddt.data('ssh', 'rsync')
    def test_holes_stay_holes(self, transport):
        base = self.instances.make_base(size=1 << 40)
        self.pull(transport, base)
        copy = os.stat(os.path.join(self.target, base.name))
        self.assertEqual(1 << 40, copy.st_size)
        self.assertThat(copy.st_blocks * 512, matchers.LessThan(100 << 20))

    @ddt.data(('ssh', 'fd00::11'), ('rsync', 'fd00::11'))
    @ddt.unpack
    def test_ipv6_address_reaches_ssh_without_brackets(self, transport, host):
        self.pull(transport, self.instances.make_base(mkfs=None), host=host)
        self.assertThat(self.ssh.asked[0], matchers.StartsWith('fd00::11 '))

    def test_files_of_one_name_are_refused(self):
        base = self.instances.make_base(mkfs=None)
        error = self.assertRaises(
            ValueError, self.pull, 'ssh', base, f'/elsewhere/{base.name}')
        self.assertIn(base.name, str(error))
        self.assertEqual([], self.ssh.asked)

    @ddt.data('ssh', 'rsync')
    def test_missing_file_is_an_error(self, transport):
        error = self.assertRaises(
            processutils.ProcessExecutionError, self.pull, transport,
            self.instances.base / 'ephemeral_2_40d1d2c')
        self.assertIn('No such file', error.stderr)

    @ddt.data('ssh', 'rsync')
    def test_unreachable_host_is_an_error(self, transport):
        error = self.assertRaises(
            processutils.ProcessExecutionError, self.pull, transport,
            self.instances.make_base(mkfs=None), host='cut')
        self.assertIn('Connection refused', error.stderr)

    @ddt.data('ssh', 'rsync')
    def test_unwritable_file_is_an_error(self, transport):
        base = self.instances.make_base(mkfs=None)
        os.makedirs(os.path.join(self.target, base.name, 'in the way'))
        error = self.assertRaises(
            processutils.ProcessExecutionError, self.pull, transport, base)
        self.assertIn('Cannot open', error.stderr)

    @ddt.data('ssh', 'rsync')
    def test_file_with_a_changed_time_is_transferred(self, transport):
        # Nova changes the time of each backing file that it uses
        base = self.instances.make_base(mkfs=None)
        self.useFixture(migfix_fixtures.FakeTar('file changed as we read it'))
        self.pull(transport, base)
        self.assertEqual([base.name], os.listdir(self.target))

    @ddt.data('ssh', 'rsync')
    def test_symbolic_link_in_the_archive_is_refused(self, transport):
        link = self.instances.base / 'kernel'
        link.symlink_to('/etc/shadow')
        self.useFixture(migfix_fixtures.FakeTar(dereference=False))
        self.assertRaises(ValueError, self.pull, transport, link)

    @ddt.data('-oProxyCommand=reboot', 'a b', 'root@host', '')
    def test_invalid_host_is_refused(self, host):
        self.assertRaises(ValueError, self.pull, 'ssh',
                          self.instances.make_base(mkfs=None), host=host)
        self.assertEqual([], self.ssh.asked)

    @ddt.data('ssh', 'rsync')
    def test_shrinking_file_is_an_error(self, transport):
        # tar pads it with zeros and exits with 1, as for a touched file
        base = self.instances.make_base(mkfs=None)
        base.write_bytes(os.urandom(8 << 20))
        self.useFixture(migfix_fixtures.FakeTar(
            'file: File shrank by 4096 bytes; padding with zeros'))
        error = self.assertRaises(
            processutils.ProcessExecutionError, self.pull, transport, base)
        self.assertIn('File shrank', error.stderr)

    @ddt.data(('ssh', '-s 64M'), ('rsync', '-s 64M'), ('ssh', '-s 1M'))
    @ddt.unpack
    def test_file_with_a_changed_size_is_an_error(self, transport, change):
        base = self.instances.make_base(mkfs=None)
        base.write_bytes(b'x' * (8 << 20))
        self.useFixture(migfix_fixtures.FakeTar(
            'file changed as we read it', after=f'truncate {change} {base}'))
        error = self.assertRaises(
            processutils.ProcessExecutionError, self.pull, transport, base)
        self.assertIn(f'had {8 << 20} bytes', error.stderr)

    def test_zeros_that_a_real_tar_pads_with_are_refused(self):
        # the file shrinks while tar waits for its reader
        base = self.instances.base / 'large'
        base.write_bytes(b'x' * (64 << 20))
        send = subprocess.Popen(
            ['sh', '-c', transfer._send_command([str(base)])],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        send.stdout.read(1 << 20)
        os.truncate(base, 2 << 20)
        os.truncate(base, 64 << 20)     # of the same size again
        base.write_bytes(b'x' * (8 << 20))
        os.truncate(base, 8 << 20)
        _rest, said = send.communicate(timeout=60)
        self.assertNotEqual(0, send.returncode, said)
        self.assertIn(b'File shrank by', said)

    @settings(max_examples=20)
    @given(before=st.integers(0, 1 << 20), after=st.integers(0, 1 << 20))
    def test_archive_is_accepted_only_of_a_file_of_constant_size(
            self, before, after):
        path = self.instances.base / 'file'
        path.write_bytes(b'x' * before)
        with migfix_fixtures.FakeTar('file changed as we read it',
                                     after=f'truncate -s {after} {path}'):
            done = subprocess.run(
                ['sh', '-c', transfer._send_command([str(path)])],
                capture_output=True, check=False)
        self.assertEqual(before == after, done.returncode == 0)

    @settings(max_examples=20)
    @given(st.integers(0, 0o7777))
    def test_file_is_neither_executable_nor_writable_by_others(self, mode):
        kernel = self.instances.path / 'kernel'
        kernel.touch()
        kernel.chmod(mode | 0o400)      # its reader need not be root
        self.pull('ssh', kernel)
        found = os.stat(os.path.join(self.target, 'kernel')).st_mode & 0o7777
        self.assertEqual(0o600, found & 0o7733)
        self.assertEqual(mode & 0o044, found & 0o044)

    def test_setuid_bit_of_the_source_is_dropped(self):
        kernel = self.instances.path / 'kernel'
        shutil.copy('/bin/true', kernel)
        kernel.chmod(0o4755)
        self.pull('ssh', kernel)
        self.assertEqual(0o644, os.stat(
            os.path.join(self.target, 'kernel')).st_mode & 0o7777)

    def test_peer_cannot_change_the_mode_of_the_directory(self):
        os.chmod(self.target, 0o700)
        self.useFixture(migfix_fixtures.FakeTar(before=(
            'set -- --create --file - --directory '
            f'{shlex.quote(str(self.instances.path))} --mode=0777 ./')))
        base = self.instances.make_base(mkfs=None)
        self.assertRaises(OSError, self.pull, 'ssh', base)
        self.assertEqual(0o700, os.stat(self.target).st_mode & 0o777)

    def test_silent_source_does_not_block_a_thread(self):
        # an ssh that neither writes nor ends, and a full disk on this host
        self.useFixture(fixtures.MockPatchObject(transfer, '_GRACE', 1))
        begin = time.monotonic()
        error = self.assertRaises(
            processutils.ProcessExecutionError, transfer._run,
            ['sleep', '300'], ['sh', '-c', 'echo No space left >&2; exit 2'])
        # before the source ended by itself
        self.assertThat(time.monotonic() - begin, matchers.LessThan(300))
        self.assertIn('No space left', error.stderr)

    def test_source_command_that_does_not_end_is_an_error(self):
        self.useFixture(fixtures.MockPatchObject(transfer, '_GRACE', 1))
        error = self.assertRaises(
            processutils.ProcessExecutionError, transfer._run,
            ['sh', '-c', 'exec sleep 60 >/dev/null'], ['cat'])
        self.assertIn('had not ended', error.stderr)

    @ddt.data([], [['cat']])
    def test_standard_error_of_the_peer_is_bounded(self, receiver):
        error = self.assertRaises(
            processutils.ProcessExecutionError, transfer._run,
            ['sh', '-c', 'exec yes complaint >&2'], *receiver)
        self.assertThat(len(error.stderr), matchers.LessThan(1 << 17))

    @settings(max_examples=30)
    @given(codes=st.lists(st.integers(0, 3), min_size=1, max_size=2))
    def test_failure_of_any_command_is_an_error(self, codes):
        try:
            transfer._run(*(['sh', '-c', f'exit {code}'] for code in codes))
        except processutils.ProcessExecutionError as error:
            self.assertEqual(next(filter(None, codes)), error.exit_code)
        else:
            self.assertEqual([0] * len(codes), codes)

    @ddt.data(*[(transport, path) for path in (
        '/srv/.nova/_base/a+b@c,d=e', '/inst/..a/.b', '/inst//_base///a',
        '/inst/./a', '/a b/c d', '/a:b/c:d', '/~nova/~', "/it's/$(reboot)",
        '/a\\tb/c\\nd', '/[a]*/?{b}', '/\xe4/\u4f60', '/;&|/`#!"<>',
        '/a--b/c=--x') for transport in ('ssh', 'rsync')])
    @ddt.unpack
    def test_unusual_paths_are_transferred(self, transport, path):
        path = str(self.instances.path) + path
        os.makedirs(os.path.dirname(path))
        with open(path, 'w') as file:
            file.write('content')
        target = os.path.join(self.target, 'a: b')
        os.mkdir(target)
        self.target = target
        self.pull(transport, path)
        self.assertEqual([os.path.basename(path)], os.listdir(self.target))
        self.assertEqual([os.path.basename(path)],
                         os.listdir(os.path.dirname(path)))

    @settings(max_examples=60)
    @given(st.lists(st.text(
        st.characters(exclude_characters='/', exclude_categories=['Cc', 'Cs']),
        min_size=1, max_size=12).filter(
            lambda part: part not in ('.', '..') and part[0] != '-'),
        min_size=1, max_size=3))
    def test_every_path_without_control_characters_is_transferred(self, parts):
        with tempfile.TemporaryDirectory() as there, (
                tempfile.TemporaryDirectory()) as here:
            path = os.path.join(there, *parts)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            pathlib.Path(path).write_text('content')
            self.config.config(
                remote_filesystem_transport='ssh', group='libvirt')
            transfer.fetch('10.0.2.11', [path], here)
            self.assertEqual([parts[-1]], os.listdir(here))

    @given(st.text(st.sampled_from('ab/.-~: $\n\x1b\x7f\x9f\ud800')))
    def test_accepted_path_has_no_parent_or_option_parts(self, path):
        try:
            checked = transfer._check_path(path)
        except ValueError:
            return
        parts = checked.split('/')
        self.assertEqual('', parts[0])
        for part in parts[1:]:
            self.assertNotIn(part, ('', '.', '..'))
            self.assertFalse(part.startswith('-'))
        self.assertNotRegex(checked, '[\n\x1b\x7f\x9f\ud800]')

    def test_only_an_empty_directory_is_removed(self):
        directory = self.instances.path / 'uuid'
        directory.mkdir()
        (directory / 'disk').touch()
        self.assertRaises(
            processutils.ProcessExecutionError,
            transfer.remove_empty_directory, '10.0.2.12', str(directory))
        (directory / 'disk').unlink()
        transfer.remove_empty_directory('10.0.2.12', str(directory))
        self.assertFalse(directory.exists())

    @ddt.data('_base/file', '/inst/../../etc/shadow', '/inst/-rf', '/inst/',
              '/inst/.', '/inst/..', '/-inst/a', '/inst/a\nb', '/a\x1b[31m',
              '/a\x00', '/a\x9b', '/\ud800', '')
    def test_invalid_path_of_the_peer_is_refused(self, path):
        self.assertRaises(ValueError, self.pull, 'ssh', path)
        self.assertEqual([], self.ssh.asked)
