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

"""The runbook for damaged guests, on real disks and on Nova's cloud.

The tests damage disks as Nova does: they move an overlay from its backing
file to another one of the same name, which another mkfs made.
"""

import os
import pathlib
import shutil
import subprocess

import ddt
import fixtures
import testtools
from testtools import matchers

from nova_migfix.tests.documentation import cloud
from nova_migfix.tests.documentation import machine
from nova_migfix.tests import pages

_UUID = '3b7fabc5-7528-4cf2-b32d-ab0a61428e52'
_SIZE = 1 << 30

#: by file system: the name of its backing file, Nova's mkfs command, the check
#: command, and the mkfs command of the runbook
_KINDS = {
    'ext4': ('ephemeral_1_40d1d2c', ('mkfs', '-t', 'ext4', '-F'),
             ('e2fsck', '-fn'), 'mkfs.ext4'),
    'xfs': ('ephemeral_1_310201b', ('mkfs', '-t', 'xfs'),
            ('xfs_repair', '-n', '-f'), 'mkfs.xfs'),
}


def _run(*command, **popen):
    return subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True,
        timeout=120, **popen).stdout


def _at(time):
    """Return an environment in which mkfs.ext4 starts and ends at a time."""
    return {**os.environ, 'E2FSPROGS_FAKE_TIME': str(time)}


def _use_ext4(image):
    """Write as a guest does, also to the superblock."""
    for number in range(8):
        _run('debugfs', '-w', '-R', f'write {__file__} file{number}', image)


def _use_xfs(image):
    """Change the root directory, as a guest that adds a file."""
    _run('xfs_db', '-x', '-c', 'sb 0', '-c', 'addr rootino',
         '-c', 'write core.mtime.sec 1', image)


_USE = {'ext4': _use_ext4, 'xfs': _use_xfs}

_CLUSTER = 64 << 10

# Bytes at the beginning that each mount of a file system writes.
_ALWAYS_WRITTEN = 2 * _CLUSTER

# 02:30 in summer time and, an hour later, 02:30 again.
_TIME_ZONE = 'CET-1CEST,M3.5.0,M10.5.0/3'
_CREATED = (1761438600, 1761442200)

# Of an ext4 of _SIZE: the backups of the superblock, and in each the bytes of
# the time of the last write and of the checksum.
_BACKUPS = tuple(group << 27 for group in (1, 3, 5, 7))
_TIMES = frozenset(range(0x30, 0x34)) | frozenset(range(0x3fc, 0x400))


class HurtGuestTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.source = self.useFixture(machine.Host('compute1'))
        self.host = self.useFixture(machine.Host('compute2', self.source))
        try:
            self.host.run(['true'])
        except AssertionError as error:
            self.skipTest(f'no mount namespace of our own: {error}')
        self.directory = self.host.instances / _UUID
        self.directory.mkdir()

    def shown(self, *sections, **values):
        """Return the shell commands in sections of the runbook."""
        return [command for section in sections for command, _ in
                pages.commands('admin/repair.rst', section, **{
                    'server': _UUID, 'source': 'compute1', 'size': 1,
                    **values})
                if not command.startswith('openstack ')]


@ddt.ddt
class ForeignBaseTestCase(HurtGuestTestCase):

    def damage(self, kind, created=_CREATED[0], seconds=0):
        """Migrate a guest with one disk, as unmodified Nova does.

        :param created: the time of mkfs.ext4 on the source
        :param seconds: that mkfs.ext4 on the source takes
        :ivar base: the base on the source
        :ivar original: all bytes of the disk before the damage
        """
        name, mkfs, self.check, _again = _KINDS[kind]
        self.base = self.source.base / name
        for path, begin in ((self.base, created),
                            (self.host.base / name, created + 1000)):
            with open(path, 'wb') as file:
                file.truncate(_SIZE)
            _run(*mkfs, '-L', 'ephemeral0', path, env=_at(begin))
        if seconds:
            # writes the superblock and its backups
            _run('tune2fs', '-L', 'ephemeral0', self.base,
                 env=_at(created + seconds))
        self.original = self.source.nova / 'original'
        _run('cp', '--sparse=always', self.base, self.original)
        _USE[kind](self.original)
        self.disk = self.directory / 'disk.eph0'
        _run('qemu-img', 'create', '-f', 'qcow2', '-F', 'raw', '-b',
             self.base, self.disk)
        self.write_what_the_guest_has_written()
        _run('qemu-img', 'rebase', '-u', '-F', 'raw', '-b',
             f'/var/lib/nova/instances/_base/{name}', self.disk)

    def write_what_the_guest_has_written(self):
        piece = self.source.nova / 'piece'
        with open(self.base, 'rb') as before, \
                open(self.original, 'rb') as after:
            for offset in range(0, _SIZE, _CLUSTER):
                found = after.read(_CLUSTER)
                if offset < _ALWAYS_WRITTEN or found != before.read(_CLUSTER):
                    before.seek(offset + _CLUSTER)
                    piece.write_bytes(found)
                    _run('qemu-io', '-f', 'qcow2', '-c',
                         f'write -s {piece} {offset} {_CLUSTER}', self.disk)

    def repair(self, kind, *sections):
        """Follow the runbook; return the output of each command."""
        commands = [command for command in self.shown(
            'Detection', *sections, 'Restoring the disk',
            base=self.base.name) if self.is_for(kind, command)]
        return dict(zip(commands, self.host.run(commands)))

    @staticmethod
    def is_for(kind, command):
        """Return whether a command is for this kind of file system."""
        others = {word for other in _KINDS if other != kind
                  for word in (_KINDS[other][2][0], _KINDS[other][3])}
        foreign = {'ext4': ('xfs_info',), 'xfs': ('.header', 'fixed=')}[kind]
        return not others & set(command.split()) and not any(
            part in command for part in foreign)

    def assert_repaired(self):
        repair = self.host.nova / 'repair'
        self.assertNotEqual(0, subprocess.call(
            ['cmp', '--silent', self.original, repair / 'damaged.raw']))
        _run('cmp', self.original, repair / 'repaired.raw')
        self.assertNotIn('backing', _run('qemu-img', 'info', self.disk))
        _run('qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2',
             self.original, self.disk)
        _run(*self.check, repair / 'repaired.raw')

    @ddt.data(*_KINDS)
    def test_disk_is_repaired_with_the_backing_file_of_the_source(self, kind):
        self.damage(kind)
        pull = self.shown('The backing file of the source',
                          base=self.base.name)[0]
        printed = self.repair(kind, 'The backing file of the source')
        self.assertIn(pull, printed)
        self.assert_repaired()
        uuids = [line.split(' UUID="')[1][:36] for line in printed.values()
                 if ' UUID="' in line]
        disk, foreign, right, *_rest, repaired = uuids
        self.assertNotEqual(disk, foreign)
        self.assertEqual((disk, disk), (right, repaired))

    @ddt.data(*(('ext4', created) for created in _CREATED), ('xfs', 0))
    @ddt.unpack
    def test_disk_is_repaired_with_a_backing_file_made_again(
            self, kind, created):
        self.useFixture(fixtures.EnvironmentVariable('TZ', _TIME_ZONE))
        self.damage(kind, created)
        self.base.unlink()
        self.repair(kind, 'Creating the backing file again')
        self.assert_repaired()

    def test_backing_file_of_a_slow_mkfs_differs_in_times_of_backups(self):
        self.damage('ext4', seconds=1)
        self.base.unlink()
        self.repair('ext4', 'Creating the backing file again')
        repaired = self.host.nova / 'repair/repaired.raw'
        found = subprocess.run(
            ['cmp', '--verbose', self.original, repaired],
            capture_output=True, text=True).stdout
        offsets = {int(line.split()[0]) - 1 for line in found.splitlines()}
        self.assertLessEqual(offsets, {
            backup + time for backup in _BACKUPS for time in _TIMES})
        self.assertTrue(offsets.issuperset(
            backup + min(_TIMES) for backup in _BACKUPS))
        _run(*self.check, repaired)

    def test_backing_file_of_another_configuration_is_noticed(self):
        self.damage('ext4')
        self.base.unlink()
        configuration = pathlib.Path('/etc/mke2fs.conf').read_text()
        (self.host.root / 'etc/mke2fs.conf').write_text(
            configuration.replace('inode_ratio = 16384', 'inode_ratio = 8192'))
        error = self.assertRaises(
            AssertionError, self.repair, 'ext4',
            'Creating the backing file again')
        self.assertThat(str(error), matchers.StartsWith('diff '))
        self.assertIn('< Inode count:              65536', str(error))

    def test_check_command_finds_the_damage(self):
        self.damage('xfs')
        self.host.run(self.shown('Detection', base=self.base.name))
        check = subprocess.run(
            [*self.check, self.host.nova / 'repair/damaged.raw'],
            capture_output=True, text=True)
        self.assertEqual(1, check.returncode)
        self.assertIn('bad uuid', check.stderr)

    def test_backing_file_that_is_still_open_is_copied(self):
        self.damage('ext4')
        found = self.source.nova / 'repair' / self.base.name
        expected = self.base.read_bytes()
        commands = self.shown('A backing file that is still open',
                              base=self.base.name)
        path = f'/var/lib/nova/instances/_base/{self.base.name}'
        self.source.run([f'exec 9<{path}', f'rm {path}', *commands])
        self.assertEqual(expected, found.read_bytes())


@ddt.ddt
class LabelTestCase(HurtGuestTestCase):

    @ddt.data(*_KINDS)
    def test_label_and_uuid_are_restored(self, kind):
        device = self.host.nova / 'device'
        with open(device, 'wb') as file:
            file.truncate(_SIZE)
        _run(*_KINDS[kind][1], '-L', 'ephemeral0', device)
        tools = {'ext4': {'e2fsck', 'e2label', 'tune2fs'},
                 'xfs': {'xfs_repair', 'xfs_admin'}}[kind]
        self.host.run([
            command for command in self.shown(
                'Labels and UUIDs', device=device, old_uuid=_UUID)
            if command.split()[0] in tools])
        found = _run('blkid', '--probe', '--output', 'export', device)
        self.assertIn('LABEL=ephemeral1\n', found)
        self.assertIn(f'UUID={_UUID}\n', found)
        _run(*_KINDS[kind][2], device)


@ddt.ddt
class FilesTestCase(HurtGuestTestCase):

    @ddt.data((b'', '0'), (b'\1CD001', '1'))
    @ddt.unpack
    def test_zeroed_config_drive_is_detected(self, content, found):
        (self.directory / 'disk.config').write_bytes(
            b'\0' * 0x8000 + content + b'\0' * 2048)
        (_, shown), *_rest = pages.commands(
            'admin/repair.rst', 'Config drives of zeros', server=_UUID)
        printed, = self.host.run(self.shown('Config drives of zeros'))
        self.assertEqual(found, printed.strip())
        self.assertEqual('0', shown)

    def test_files_of_a_deleted_guest_are_copied(self):
        (self.directory / 'disk').write_text('data')
        listed, _copied = self.host.run(self.shown('A lost guest'))
        self.assertEqual(f'/var/lib/nova/instances/{_UUID}\n', listed)
        self.assertEqual('data', (
            self.host.nova / f'repair-{_UUID}/disk').read_text())

    def test_leftovers_of_a_resize_are_moved_aside(self):
        left = self.host.instances / f'{_UUID}_resize'
        left.mkdir()
        commands = self.shown('A leftover ``<server>_resize``')
        self.assertIn(f'{_UUID}_resize', self.host.run(commands)[0])
        self.assertFalse(left.exists())
        self.assertTrue(
            (self.host.nova / 'left-behind' / left.name).exists())

    def test_state_of_a_domain_is_shown(self):
        if not shutil.which('virsh'):
            self.skipTest('libvirt-clients is not installed')
        self.useFixture(fixtures.EnvironmentVariable(
            'VIRSH_DEFAULT_CONNECT_URI', 'test:///default'))
        state, = self.host.run(self.shown(
            'ERROR although the guest runs', domain='test'))
        self.assertEqual('running', state.strip())


class CloudTestCase(cloud.CloudTestCase):

    def shown(self, section):
        return [command for command, _ in pages.commands(
            'admin/repair.rst', section, server=self.server['id'],
            domain='') if command.startswith('openstack ')]

    def status(self):
        return self.api.get_server(self.server['id'])['status']

    def set_version(self):
        self.do('export OS_COMPUTE_API_VERSION=2.80')

    def test_repair_commands_stop_the_guest(self):
        stop, show = self.shown('Repairing damaged guests')
        self.do(stop)
        self._wait_for_state_change(self.server, 'SHUTOFF')
        self.assertIn('SHUTOFF', self.do(show))

    def test_hard_reboot_command_rebuilds_the_config_drive(self):
        self.set_version()
        reboot, = self.shown('Config drives of zeros')
        self.do(reboot)
        self._wait_for_state_change(self.server, 'ACTIVE')

    def test_repair_commands_reset_the_error_state(self):
        self.set_version()
        self.api.post_server_action(
            self.server['id'], {'os-resetState': {'state': 'error'}})
        show, records, settle = self.shown('ERROR although the guest runs')
        for part in ('ERROR', 'src', 'instance-', 'Running'):
            self.assertIn(part, self.do(show))
        self.do(records)
        self.do(settle, 'y')
        self.assertEqual('ACTIVE', self.status())

    def test_commands_show_a_guest_whose_place_is_unknown(self):
        self.set_version()
        show, records = self.shown('A guest whose place is unknown')
        for part in ('src', 'instance-'):
            self.assertIn(part, self.do(show))
        self.do(records)

    def test_server_command_shows_that_the_resize_is_over(self):
        show, = self.shown('A leftover ``<server>_resize``')
        self.assertIn('ACTIVE', self.do(show))

    def test_openstack_commands_of_the_page_are_complete(self):
        shown = [command for command, _ in pages.shown('admin/repair.rst')
                 if command.startswith('openstack ')]
        self.assertEqual(9, len(shown))
