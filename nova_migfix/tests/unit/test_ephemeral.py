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

import os
import shutil
from unittest import mock

import ddt
import fixtures
from nova.compute import task_states
from nova import exception
from nova import objects
from nova.privsep import fs
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix import arrival
from nova_migfix import disks
from nova_migfix.fixes import ephemeral
from nova_migfix import migrate_data
from nova_migfix import scratch
from nova_migfix.tests import fixtures as migfix_fixtures

BASE = 'ephemeral_1_40d1d2c'


class EphemeralTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.ssh = self.useFixture(migfix_fixtures.FakeSsh())
        self.instance = objects.Instance(uuid=uuids.instance, os_type=None,
                                         task_state=None)
        self.dir = self.instances.path / uuids.instance
        self.fix = ephemeral.Ephemeral()

    def disk(self, name='disk.eph0', base=None, **kwargs):
        return self.instances.make_disk(
            uuids.instance, name, base or self.instances.make_base(),
            **kwargs)

    def assert_same_bytes(self, disk, other):
        processutils.execute('qemu-img', 'compare', disk, other)


@ddt.ddt
class TestDestination(EphemeralTestCase):
    """What the destination of a live migration makes."""

    def described(self, name='disk.eph0', base=BASE, size=1):
        return {'type': 'qcow2', 'backing_file': base,
                'path': f'{self.instances.path}/{uuids.instance}/{name}',
                'virt_disk_size': size * self.instances.GIB}

    def pull(self, *described, host='10.0.2.11'):
        self.dir.mkdir(exist_ok=True)
        arrival.pull(self.instance, str(self.dir), list(
            self.fix.files_to_pull(
                self.instance, str(self.dir), list(described))), host)

    def test_the_disk_has_the_bytes_of_the_sources_base(self):
        base = self.instances.make_base()
        self.pull(self.described())
        self.assert_same_bytes(self.dir / 'disk.eph0', base)
        self.assertIn(f"bytes of the source's {BASE}", self.log.output)

    def test_disks_of_one_size_share_one_pull(self):
        self.instances.make_base()
        self.pull(self.described(), self.described('disk.eph1'))
        self.assertEqual(1, len(self.ssh.asked))
        self.assertEqual(1, self.ssh.asked[0].count(BASE))
        self.assert_same_bytes(self.dir / 'disk.eph0', self.dir / 'disk.eph1')

    def test_disks_of_two_sizes_come_in_one_session(self):
        self.instances.make_base()
        self.instances.make_base('ephemeral_2_40d1d2c', mkfs='xfs')
        self.pull(self.described(),
                  self.described('disk.eph1', 'ephemeral_2_40d1d2c', 2))
        self.assertEqual(1, len(self.ssh.asked))
        self.assertEqual({'disk.eph0', 'disk.eph1'},
                         set(os.listdir(self.dir)))

    def test_a_disk_that_was_grown_stays_so(self):
        self.instances.make_base()
        self.pull(self.described(size=2))
        self.assertEqual(2 * self.instances.GIB,
                         disks.virtual_size(self.dir / 'disk.eph0'))

    def test_the_source_says_where_the_base_is(self):
        elsewhere = self.instances.path / '_base_of_compute1'
        self.instances.make_base()
        self.instances.base.rename(elsewhere)
        self.pull({**self.described(),
                   ephemeral.BACKING_PATH: f'{elsewhere}/{BASE}'})
        self.assert_same_bytes(self.dir / 'disk.eph0', elsewhere / BASE)

    def test_a_swap_disk_has_the_bytes_of_the_sources_base(self):
        base = self.instances.make_base('swap_64', mkfs=None)
        processutils.execute('/sbin/mkswap', base)
        self.pull(self.described('disk.swap', 'swap_64'))
        self.assert_same_bytes(self.dir / 'disk.swap', base)

    @ddt.data('', None, '2cb9bf6aa0a3d3ac4a3e9d1c0d7c1a0a4f3e5b6c')
    def test_disks_without_a_base_of_nova_are_left_to_nova(self, base):
        self.pull(self.described(base=base))
        self.assertEqual([], self.ssh.asked)
        self.assertEqual([], os.listdir(self.dir))

    @ddt.data(('cut', BASE, 'Connection refused'),
              ('10.0.2.11', 'ephemeral_1_gone', 'No such file'),
              ('10.0.2.11', 'ephemeral_1_$(id)', 'not a path of a disk'))
    @ddt.unpack
    def test_what_cannot_be_had_fails_and_leaves_nothing(
            self, host, base, reason):
        self.instances.make_base()
        error = self.assertRaises(
            exception.MigrationError, self.pull, self.described(base=base),
            host=host)
        for part in ('disk.eph0', uuids.instance, host, reason,
                     'The guest has not been moved'):
            self.assertIn(part, str(error))
        self.assertEqual([], os.listdir(self.dir))
        self.assertEqual({'_base', uuids.instance},
                         set(os.listdir(self.instances.path)))


class TestSource(EphemeralTestCase):
    """A running guest that leaves for this or that destination."""

    def setUp(self):
        super().setUp()
        self.path = self.disk()
        self.guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
        self.device = self.guest.get_block_device.return_value
        self.device.get_job_info.return_value = None
        self.device.is_job_complete.side_effect = [False, True]
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host.get_guest.return_value = self.guest
        self.useFixture(migfix_fixtures.PatchedMigrateData())

    def leave(self, told):
        data = migrate_data.LibvirtLiveMigrateData()
        if told is not None:
            data.dest_capabilities = told
        self.fix.check_source(self.instance, self.host, data)
        self.fix.before_description(self.instance, self.host)

    def pull_block(self, base):
        disks.flatten(str(self.path), 'qcow2', str(self.path))

    def test_a_destination_that_pulls_gets_the_disk_as_it_is(self):
        self.leave(self.fix.capabilities())
        self.device.rebase.assert_not_called()

    def test_for_any_other_the_disk_is_made_complete_first(self):
        self.device.rebase.side_effect = self.pull_block
        self.leave(None)
        self.device.rebase.assert_called_once_with(None)
        self.guest.get_block_device.assert_called_once_with(
            str(self.path))
        self.assertRegex(self.log.output,
                         r'disk.eph0: made complete by a block pull in \d')

    def test_a_disk_that_is_complete_is_left_alone(self):
        self.pull_block(None)
        self.leave({})
        self.device.rebase.assert_not_called()

    def test_what_was_told_counts_for_one_migration(self):
        self.leave(self.fix.capabilities())
        self.device.rebase.side_effect = self.pull_block
        self.fix.before_description(self.instance, self.host)
        self.device.rebase.assert_called_once_with(None)

    def test_a_base_that_is_lost_cannot_be_pulled(self):
        # The guest has it open still.
        self.device.rebase.side_effect = self.keep_what_is_written
        (self.instances.base / BASE).unlink()
        self.leave(self.fix.capabilities())
        self.device.rebase.assert_called_once_with(None)
        self.assertIn('disk.eph0: the backing file here is lost',
                      self.log.output)

    def keep_what_is_written(self, base):
        processutils.execute('qemu-img', 'rebase', '-u', '-b', '', self.path)

    def test_where_the_base_is_is_described(self):
        disk = {'path': str(self.path), 'backing_file': BASE}
        self.fix.describe_disks([disk])
        self.assertEqual(f'{self.instances.base}/{BASE}',
                         disk[ephemeral.BACKING_PATH])

    def test_a_cold_migration_saves_a_disk_whose_base_is_lost(self):
        self.device.rebase.side_effect = self.keep_what_is_written
        (self.instances.base / BASE).unlink()
        self.fix.before_power_off(self.instance, self.host)
        self.device.rebase.assert_called_once_with(None)

    def test_a_cold_migration_leaves_any_other_as_it_is(self):
        self.fix.before_power_off(self.instance, self.host)
        self.device.rebase.assert_not_called()

    def test_a_guest_that_is_off_keeps_what_it_has(self):
        (self.instances.base / BASE).unlink()
        before = self.path.read_bytes()
        self.device.rebase.side_effect = RuntimeError('domain is not running')
        error = self.assertRaises(
            exception.MigrationError, self.fix.before_power_off,
            self.instance, self.host)
        for part in ('disk.eph0', uuids.instance, 'lost', 'is not running',
                     'from a backup'):
            self.assertIn(part, str(error))
        self.assertEqual(before, self.path.read_bytes())

    def test_a_job_that_fails_stops_the_migration(self):
        # libvirt only says that there is no job any more
        error = self.assertRaises(exception.MigrationError, self.leave, {})
        for part in ('disk.eph0', uuids.instance,
                     'ended before it was complete',
                     'The guest has not been moved',
                     'Install nova_migfix on the destination'):
            self.assertIn(part, str(error))

    def test_what_would_fill_the_file_system_is_not_begun(self):
        # the guest would be paused by what it writes next
        usage = shutil.disk_usage(self.dir)
        with mock.patch.object(shutil, 'disk_usage', autospec=True,
                               return_value=usage._replace(free=1 << 20)):
            error = self.assertRaises(
                exception.MigrationError, self.leave, {})
        self.assertRegex(str(error), r'up to \d+ MiB will be written, and 1 M')
        self.device.rebase.assert_not_called()

    def test_a_job_that_outlived_a_nova_compute_is_waited_for(self):
        self.device.get_job_info.return_value = mock.sentinel.job
        self.device.is_job_complete.side_effect = self.has_ended
        self.leave({})
        self.device.rebase.assert_not_called()
        self.assertEqual([], list(disks.ephemeral_overlays(self.dir)))

    def has_ended(self):
        self.keep_what_is_written(None)
        return True

    def test_a_swap_disk_whose_base_is_lost_is_saved(self):
        # of which a destination that pulls could have nothing
        swap = self.disk('disk.swap', self.instances.make_base(
            'swap_64', mkfs=None))
        (self.instances.base / 'swap_64').unlink()
        self.device.rebase.side_effect = lambda base: processutils.execute(
            'qemu-img', 'rebase', '-u', '-b', '', swap)
        self.leave(self.fix.capabilities())
        self.guest.get_block_device.assert_called_once_with(str(swap))

    def test_a_swap_disk_that_cannot_be_saved_stops_the_migration(self):
        self.disk('disk.swap', self.instances.make_base(
            'swap_64', mkfs=None))
        (self.instances.base / 'swap_64').unlink()
        error = self.assertRaises(
            exception.MigrationError, self.leave, self.fix.capabilities())
        self.assertIn('disk.swap', str(error))

    def test_a_job_that_cannot_be_watched_is_ended(self):
        self.device.is_job_complete.side_effect = OSError('libvirt is gone')
        self.assertRaises(exception.MigrationError, self.leave, {})
        self.device.abort_job.assert_called_once_with()


class TestCold(EphemeralTestCase):

    def test_the_source_makes_the_disk_complete(self):
        path = self.disk(written=b'\x07' * 65536)
        expected = self.instances.path / 'expected'
        disks.flatten(str(path), 'qcow2', str(expected))
        self.fix.leaving(self.instance, str(self.dir))
        self.assertEqual([], list(disks.ephemeral_overlays(self.dir)))
        self.assert_same_bytes(path, expected)
        self.assertIn('disk.eph0: made complete', self.log.output)

    def test_what_cannot_be_made_complete_is_as_it_was(self):
        path = self.disk(written=b'\x07' * 65536)
        before = path.read_bytes()
        (self.instances.base / BASE).unlink()
        error = self.assertRaises(
            exception.MigrationError, self.fix.leaving, self.instance,
            str(self.dir))
        for part in ('disk.eph0', uuids.instance, 'stays where it is'):
            self.assertIn(part, str(error))
        self.assertEqual(before, path.read_bytes())

    def test_what_would_fill_the_file_system_is_not_begun(self):
        path = self.disk(written=b'\x07' * (2 << 20))
        inode = os.stat(path).st_ino
        usage = shutil.disk_usage(self.dir)
        with mock.patch.object(shutil, 'disk_usage', autospec=True,
                               return_value=usage._replace(free=1 << 20)):
            error = self.assertRaises(
                exception.MigrationError, self.fix.leaving, self.instance,
                str(self.dir))
        self.assertRegex(str(error), r'up to \d+ MiB will be written, and 1 ')
        self.assertEqual(inode, os.stat(path).st_ino)

    def test_the_destination_does_if_the_source_has_not(self):
        path = self.disk(written=b'\x07' * 65536)
        expected = self.instances.path / 'expected'
        disks.flatten(str(path), 'qcow2', str(expected))
        self.fix.complete_disks(self.instance, str(self.dir), '10.0.2.11')
        self.assertEqual([], list(disks.ephemeral_overlays(self.dir)))
        self.assert_same_bytes(path, expected)
        self.assertEqual(1, len(self.ssh.asked))

    def test_without_the_base_the_disk_is_left_as_it_came(self):
        path = self.disk()
        before = path.read_bytes()
        error = self.assertRaises(
            exception.MigrationError, self.fix.complete_disks,
            self.instance, str(self.dir), 'cut')
        self.assertIn('The guest is off', str(error))
        self.assertIn(f'{uuids.instance}_resize', str(error))
        self.assertNotIn('has not been moved', str(error))
        self.assertEqual(before, path.read_bytes())
        # A hard reboot does not take what is here for the source's.
        overlay, = disks.ephemeral_overlays(self.dir)
        self.assertIn('was missing before', disks.lost(overlay))

    def test_a_complete_disk_needs_nothing_of_the_source(self):
        path = self.disk()
        disks.flatten(str(path), 'qcow2', str(path))
        self.fix.complete_disks(self.instance, str(self.dir), 'cut')
        self.assertEqual([], self.ssh.asked)


@ddt.ddt
class TestMaking(EphemeralTestCase):

    def test_the_file_has_its_name_when_it_is_finished(self):
        target = str(self.instances.base / BASE)
        with self.fix.making(target) as made:
            self.assertEqual(BASE, os.path.basename(made))
            with open(made, 'w') as out:
                out.write('file system')
            self.assertFalse(os.path.exists(target))
        self.assertEqual([BASE], os.listdir(self.instances.base))

    def test_what_fails_leaves_nothing(self):
        def fail():
            with self.fix.making(str(self.instances.base / BASE)) as made:
                with open(made, 'w') as out:
                    out.truncate(1 << 30)
                raise processutils.ProcessExecutionError
        self.assertRaises(processutils.ProcessExecutionError, fail)
        self.assertEqual([], os.listdir(self.instances.base))

    def test_a_directory_is_made_in_its_place(self):
        # which is what the image of a container of Parallels is
        self.useFixture(config_fixture.Config(cfg.CONF)).config(
            virt_type='parallels', group='libvirt')
        with self.fix.making('/inst/uuid/disk.local') as made:
            self.assertEqual('/inst/uuid/disk.local', made)

    def create(self, mkfs, guest_format='ext4'):
        with self.fix.creating_disks(
                self.instance, str(self.dir),
                {'ephemerals': [{'guest_format': guest_format}]}):
            self.disk(base=self.instances.make_base(mkfs=mkfs))

    @ddt.data((None, 'nothing'), ('xfs', 'xfs'))
    @ddt.unpack
    def test_a_new_disk_upon_anything_else_is_refused(self, mkfs, has):
        error = self.assertRaises(
            exception.InvalidDiskInfo, self.create, mkfs)
        for part in ('disk.eph0', uuids.instance, BASE, f'has {has}',
                     'should have ext4', 'Remove that file'):
            self.assertIn(part, str(error))
        self.assertFalse((self.dir / 'disk.eph0').exists())

    def test_guests_of_other_systems_have_other_file_systems(self):
        # Nova calls the backing file for Windows as that for Linux
        self.instance.os_type = 'windows'
        error = self.assertRaises(
            exception.InvalidDiskInfo, self.create, 'ext4', None)
        self.assertIn('should have ntfs', str(error))

    @ddt.data('btrfs', 'ntfs')
    def test_the_format_may_be_any_that_nova_makes(self, form):
        self.useFixture(config_fixture.Config(cfg.CONF)).config(
            default_ephemeral_format=form)
        error = self.assertRaises(
            exception.InvalidDiskInfo, self.create, 'ext4', None)
        self.assertIn(f'should have {form}', str(error))

    def test_one_upon_what_mkfs_left_half_done_is_refused(self):
        base = self.instances.make_base(mkfs=None)
        with open(base, 'r+b') as file:
            file.seek(1 << 20)
            file.write(b'an inode table, but no superblock')
        with self.fix.creating_disks(self.instance, str(self.dir), None):
            # what Nova makes by default
            self.disk('disk.local', self.instances.make_base(
                'ephemeral_2_40d1d2c', mkfs='vfat'))
        error = self.assertRaises(
            exception.InvalidDiskInfo, self.lay_upon, base)
        self.assertIn('no file system', str(error))

    def lay_upon(self, base):
        with self.fix.creating_disks(self.instance, str(self.dir), None):
            self.disk(base=base)

    def test_a_new_disk_upon_a_file_system_is_not(self):
        self.create('ext4')
        self.assertTrue((self.dir / 'disk.eph0').exists())

    def test_what_a_command_of_the_deployer_makes_is_not_known(self):
        self.useFixture(fixtures.MockPatchObject(
            fs, '_DEFAULT_MKFS_COMMAND', 'mkfs.special %(target)s'))
        self.create('xfs')
        self.assertTrue((self.dir / 'disk.eph0').exists())
        self.assertRaises(exception.InvalidDiskInfo, self.create_another)

    def create_another(self):
        with self.fix.creating_disks(self.instance, str(self.dir), None):
            self.disk('disk.eph1', self.instances.make_base(
                'ephemeral_2_40d1d2c', mkfs=None))

    def test_an_old_disk_upon_an_empty_base_is_the_guests(self):
        # it may have made a file system by itself
        self.disk(base=self.instances.make_base(mkfs=None))
        with self.fix.creating_disks(self.instance, str(self.dir), None):
            pass
        self.assertTrue((self.dir / 'disk.eph0').exists())


@ddt.ddt
class TestLostBase(EphemeralTestCase):
    """Disks whose backing file is gone, when they are needed again."""

    def setUp(self):
        super().setUp()
        self.running = None     # or what the guest's QEMU does
        self.attached = True

    def restart(self, block_device_info=None):
        driver = mock.create_autospec(
            nova_driver.LibvirtDriver, instance=True)
        driver._host = self.host()
        self.fix.restarting(driver, 'context', self.instance, 'network',
                            block_device_info)

    def stop(self):
        self.fix.stopping(self.instance, self.host())

    def host(self):
        host = mock.create_autospec(libvirt_host.Host, instance=True)
        if self.running:
            guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
            guest.is_active.return_value = True
            guest.get_disk.side_effect = lambda path: self.attached
            guest.get_block_device.side_effect = lambda path: mock.Mock(
                spec=libvirt_guest.BlockDevice,
                get_job_info=lambda: None,
                rebase=lambda base: self.running(path))
            host.get_guest.return_value = guest
        else:
            host.get_guest.side_effect = exception.InstanceNotFound(
                instance_id=uuids.instance)
        return host

    def has_it_open(self, path):
        processutils.execute('qemu-img', 'rebase', '-u', '-b', '', path)

    def has_no_space(self, path):
        raise OSError('No space left on device')

    def create(self, block_device_info=None):
        """As a resize on one host, an evacuation and the like do."""
        with self.fix.creating_disks(
                self.instance, str(self.dir), block_device_info):
            self.fail('Nova would make the backing file')

    @ddt.data('restart', 'create')
    def test_under_data_it_is_not_made_anew(self, action):
        self.disk(written=b'\x07' * 512)
        (self.instances.base / BASE).unlink()
        error = self.assertRaises(
            exception.InvalidDiskInfo, getattr(self, action))
        for part in ('disk.eph0', uuids.instance, f'{BASE} is missing',
                     'virsh blockpull'):
            self.assertIn(part, str(error))
        self.assertEqual([], os.listdir(self.instances.base))

    @ddt.data(('disk.local', None, 'ephemeral0'),
              ('disk.eph0', 'ext3', 'ephemeral0'),
              ('disk.eph1', 'xfs', 'ephemeral1'))
    @ddt.unpack
    def test_a_disk_never_written_to_is_made_anew(self, name, form, label):
        path = self.disk(name)
        (self.instances.base / BASE).unlink()
        self.restart({'ephemerals': [
            {'guest_format': None if name.endswith('1') else form},
            {'guest_format': form}]})
        processutils.execute(
            'qemu-img', 'convert', '-O', 'raw', path, f'{path}.raw')
        found = disks.filesystem(f'{path}.raw')
        self.assertEqual((form or 'vfat', label),
                         (found['TYPE'], found['LABEL']))
        self.assertEqual(self.instances.GIB, disks.virtual_size(path))
        self.assertEqual([], list(disks.ephemeral_overlays(self.dir)))
        self.assertEqual([], os.listdir(self.instances.base))

    def test_one_that_is_refused_has_kept_the_others(self):
        never = self.disk()
        self.disk('disk.eph1', written=b'\x07' * 512)
        (self.instances.base / BASE).unlink()
        before = os.stat(never).st_ino, never.read_bytes()
        self.assertRaises(exception.InvalidDiskInfo, self.restart)
        self.running = self.has_it_open
        self.assertRaises(exception.InvalidDiskInfo, self.restart)
        self.assertEqual(before, (os.stat(never).st_ino, never.read_bytes()))

    def test_one_that_a_running_guest_has_is_had_from_it(self):
        # it could write to it until it is stopped
        path = self.disk()
        (self.instances.base / BASE).unlink()
        self.running = self.has_it_open
        before = os.stat(path).st_ino
        self.restart()
        self.assertEqual(before, os.stat(path).st_ino)
        self.assertEqual([], list(disks.ephemeral_overlays(self.dir)))

    def test_one_that_a_rescued_guest_has_not_is_made_anew(self):
        path = self.disk()
        (self.instances.base / BASE).unlink()
        self.running = self.has_no_space
        self.attached = None
        before = os.stat(path).st_ino
        self.restart()
        self.assertNotEqual(before, os.stat(path).st_ino)
        self.assertEqual([], list(disks.ephemeral_overlays(self.dir)))

    def test_a_guest_that_stops_leaves_its_disk_complete(self):
        self.disk(written=b'\x07' * 512)
        (self.instances.base / BASE).unlink()
        self.running = self.has_it_open
        self.stop()
        self.assertEqual([], list(disks.ephemeral_overlays(self.dir)))

    def test_one_whose_disk_cannot_be_made_complete_is_not_stopped(self):
        self.disk(written=b'\x07' * 512)
        (self.instances.base / BASE).unlink()
        self.running = self.has_no_space
        error = self.assertRaises(exception.MigrationError, self.stop)
        self.assertIn('No space left', str(error))

    def test_nor_is_one_left_running_whose_disks_are_thrown_away(self):
        self.disk(written=b'\x07' * 512)
        (self.instances.base / BASE).unlink()
        self.running = self.has_no_space
        self.instance.task_state = task_states.REBUILDING
        self.stop()

    def test_one_that_was_rescued_without_its_disk_stops_as_ever(self):
        self.disk(written=b'\x07' * 512)
        (self.instances.base / BASE).unlink()
        self.running = self.has_no_space
        self.attached = None
        self.stop()

    @ddt.data('{', 'null', '[]')
    def test_one_of_whose_disks_nothing_is_known_stops_as_ever(self, record):
        self.disk()
        (self.dir / 'disk.info').write_text(record)
        self.running = self.has_no_space
        self.stop()
        self.assertIn('could not be found out', self.log.output)

    @ddt.data(None, 'has_it_open')
    def test_one_with_its_base_or_off_stops_as_ever(self, running):
        self.disk(written=b'\x07' * 512)
        if running:
            self.running = self.has_it_open
        else:
            (self.instances.base / BASE).unlink()
        self.stop()
        self.assertEqual(1, len(list(disks.ephemeral_overlays(self.dir))))

    def test_a_base_that_is_there_is_left_alone(self):
        path = self.disk(written=b'\x07' * 512)
        before = self.last_change(), path.read_bytes()
        self.restart()
        self.restart()
        self.assertEqual(before, (self.last_change(), path.read_bytes()))

    def last_change(self):
        found = os.stat(self.instances.base / BASE)
        return found.st_ino, found.st_mtime_ns

    def test_another_in_its_place_is_not_taken_for_it(self):
        self.disk(written=b'\x07' * 512)
        self.restart()
        self.instances.make_base()
        error = self.assertRaises(exception.InvalidDiskInfo, self.restart)
        self.assertIn(f'{BASE} is another one', str(error))

    def test_an_empty_one_in_its_place_is_not_taken_for_it(self):
        # as a mkfs that failed leaves it
        self.disk(written=b'\x07' * 512)
        self.restart()
        self.instances.make_base(mkfs=None)
        error = self.assertRaises(exception.InvalidDiskInfo, self.restart)
        self.assertIn(f'{BASE} is another one', str(error))

    def test_one_in_the_place_of_a_missing_one_is_not_taken_for_it(self):
        self.disk(written=b'\x07' * 512)
        (self.instances.base / BASE).rename(self.instances.base / 'another')
        self.fix.starting()
        self.assertIn(f'{BASE} of {self.dir}/disk.eph0 is missing',
                      self.log.output)
        self.instances.make_base()
        self.fix.starting()
        error = self.assertRaises(exception.InvalidDiskInfo, self.restart)
        self.assertIn('remove disk.eph0 from migfix-bases.json', str(error))
        # as it was brought back from a backup
        (self.dir / 'migfix-bases.json').write_text('{}')
        self.restart()

    @ddt.data(True, False)
    def test_none_is_taken_for_missing_that_is_mounted_later(self, empty):
        self.disk(written=b'\x07' * 512)
        later = self.instances.base.rename(self.instances.path / 'later')
        if empty:
            self.instances.base.mkdir()
        self.fix.starting()
        if empty:
            self.instances.base.rmdir()
        later.rename(self.instances.base)
        self.restart()

    def test_nor_one_of_which_the_storage_says_nothing(self):
        self.disk(written=b'\x07' * 512)
        with mock.patch.object(os, 'stat', autospec=True,
                               side_effect=OSError('Stale file handle')):
            self.assertFalse(disks._is_missing(BASE))
        self.assertIn('Stale file handle', self.log.output)

    @ddt.data('resume', 'start')
    def test_the_guest_does_not_go_on_with_another(self, action):
        path = self.disk()
        self.restart()
        self.power_on(action, path)
        self.instances.make_base()
        error = self.assertRaises(
            exception.InvalidDiskInfo, self.power_on, action, path)
        self.assertIn('is needed as the guest knows it', str(error))
        # it is not a disk of such a rescue
        self.power_on('start', 'disk.rescue')

    def power_on(self, action, path):
        xml = None if action == 'resume' else f'<source file="{path}"/>'
        self.fix.powering_on(self.instance, xml)

    def test_what_is_known_is_written_down_for_a_copy_on_this_host(self):
        self.disk(written=b'\x07' * 512)
        with self.fix.creating_disks(self.instance, str(self.dir), None):
            pass
        self.instances.make_base()
        self.assertRaises(exception.InvalidDiskInfo, self.restart)

    @ddt.data('{', '[]', '')
    def test_a_record_that_cannot_be_read_tells_nothing(self, record):
        self.disk(written=b'\x07' * 512)
        (self.dir / 'migfix-bases.json').write_text(record)
        self.restart()
        self.instances.make_base()
        self.assertRaises(exception.InvalidDiskInfo, self.restart)

    def test_a_full_file_system_does_not_keep_a_guest_off(self):
        self.disk(written=b'\x07' * 512)
        with mock.patch.object(
                scratch, 'write_through', autospec=True,
                side_effect=OSError('No space left on device')):
            self.restart()
        self.assertIn('No space left on device', self.log.output)
        self.assertEqual({'disk.eph0', 'disk.info'},
                         set(os.listdir(self.dir)))

    def test_what_is_known_stays_when_the_base_cannot_be_asked(self):
        self.disk(written=b'\x07' * 512)
        self.restart()
        with mock.patch.object(disks, 'filesystem', return_value=None):
            self.restart()
        self.instances.make_base()
        self.assertRaises(exception.InvalidDiskInfo, self.restart)

    def test_disks_are_known_from_the_start_of_nova_compute(self):
        self.disk(written=b'\x07' * 512)
        (self.instances.path / 'no-instance').mkdir()
        self.fix.starting()
        self.instances.make_base()
        # which is not taken for the right one by the next start
        self.fix.starting()
        self.assertRaises(exception.InvalidDiskInfo, self.restart)

    @ddt.data('{', 'null', '[]')
    def test_what_cannot_be_read_does_not_keep_it_from_starting(self, record):
        self.disk()
        (self.dir / 'disk.info').write_text(record)
        self.fix.starting()
        self.assertIn('could not be written down', self.log.output)

    def test_a_new_disk_knows_its_base_from_the_beginning(self):
        with self.fix.creating_disks(
                self.instance, str(self.dir),
                {'ephemerals': [{'guest_format': 'ext4'}]}):
            self.disk(written=b'\x07' * 512)
        self.instances.make_base()
        self.assertRaises(exception.InvalidDiskInfo, self.restart)
