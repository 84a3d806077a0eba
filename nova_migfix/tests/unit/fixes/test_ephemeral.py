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
import hypothesis
from hypothesis import strategies
from nova.compute import task_states
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import instancejobtracker
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.fixes import ephemeral
from nova_migfix import peer
from nova_migfix.storage import completion
from nova_migfix.storage import disks
from nova_migfix.storage import image_backend
from nova_migfix.storage import image_cache
from nova_migfix.storage import image_file
from nova_migfix.tests import fixtures as migfix_fixtures
from nova_migfix.transport import fetch

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
class TestLiveMigrationDestination(EphemeralTestCase):
    """The destination of a live migration makes disks from fetched bases."""

    def described(self, name='disk.eph0', base=BASE, size=1):
        return {'type': 'qcow2', 'backing_file': base,
                'path': f'{self.instances.path}/{uuids.instance}/{name}',
                'virt_disk_size': size * self.instances.GIB}

    def pull(self, *described, host='10.0.2.11'):
        self.dir.mkdir(exist_ok=True)
        fetch.fetch(self.instance, str(self.dir), list(
            self.fix.files_to_fetch(
                self.instance, str(self.dir), list(described))), host)

    def test_disk_has_the_bytes_of_the_base_on_the_source(self):
        base = self.instances.make_base()
        self.pull(self.described())
        self.assert_same_bytes(self.dir / 'disk.eph0', base)
        self.assertIn(f"bytes of the source's {BASE}", self.log.output)

    def test_base_not_named_like_the_backing_file_is_refused(self):
        # hostile: a peer requests any file of the source
        self.instances.make_base('ephemeral_9_other')
        error = self.assertRaises(
            exception.MigrationError, self.pull,
            {**self.described(), ephemeral.BACKING_PATH:
             f'{self.instances.base}/ephemeral_9_other'})
        self.assertIn('ephemeral_9_other', str(error))
        self.assertEqual([], self.ssh.asked)

    @hypothesis.given(path=strategies.text(), name=strategies.sampled_from(
        [BASE, 'ephemeral_2_f0295b7', 'swap_64']))
    def test_only_a_path_with_the_name_of_the_backing_file_is_fetched(
            self, path, name):
        disk = {**self.described(base=name), ephemeral.BACKING_PATH: path}
        try:
            wanted, = self.fix.files_to_fetch(
                self.instance, str(self.dir), [disk])
        except exception.MigrationError:
            self.assertNotEqual(name, os.path.basename(path))
        else:
            self.assertEqual(name, os.path.basename(wanted.path))

    def test_base_larger_than_the_disk_is_refused(self):
        self.instances.make_base(size=2 * self.instances.GIB)
        error = self.assertRaises(
            exception.MigrationError, self.pull, self.described())
        self.assertIn('more than the disk', str(error))
        self.assertEqual([], os.listdir(self.dir))

    def test_existing_disk_is_not_replaced(self):
        # by a late attempt: QEMU may have the disk of the next attempt open
        self.instances.make_base()
        self.pull(self.described())
        inode = os.stat(self.dir / 'disk.eph0').st_ino
        self.assertRaises(
            exception.MigrationError, self.pull, self.described())
        self.assertEqual(inode, os.stat(self.dir / 'disk.eph0').st_ino)

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

    def test_disk_larger_than_its_base_keeps_its_size(self):
        self.instances.make_base()
        self.pull(self.described(size=2))
        self.assertEqual(2 * self.instances.GIB,
                         image_file.virtual_size(self.dir / 'disk.eph0'))

    def test_base_is_pulled_from_the_path_that_the_source_sends(self):
        elsewhere = self.instances.path / '_base_of_compute1'
        self.instances.make_base()
        self.instances.base.rename(elsewhere)
        self.pull({**self.described(),
                   ephemeral.BACKING_PATH: f'{elsewhere}/{BASE}'})
        self.assert_same_bytes(self.dir / 'disk.eph0', elsewhere / BASE)

    def test_swap_disk_has_the_bytes_of_the_base_on_the_source(self):
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
              ('10.0.2.11', 'ephemeral_1_\n', 'not a path of a disk'))
    @ddt.unpack
    def test_failed_fetch_of_a_base_leaves_no_files(self, host, base, reason):
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


@ddt.ddt
class TestReservedSpace(EphemeralTestCase):
    """[DEFAULT] preallocate_images on the destination."""

    def created(self, name, preallocate='space', **disk):
        """Return the bytes that an empty disk of 1 MiB occupies."""
        self.useFixture(config_fixture.Config(cfg.CONF)).config(
            preallocate_images=preallocate)
        self.dir.mkdir()
        path = self.dir / name
        path.touch()
        driver = mock.Mock(image_backend=imagebackend.Backend(True))
        self.fix.images_created(
            driver, self.instance, str(self.dir), [{
                'path': f'/on/source/{name}', 'type': 'qcow2',
                'backing_file': '', 'virt_disk_size': 1 << 20, **disk}])
        return path.stat().st_blocks * 512

    @ddt.data('disk.eph0', 'disk.local', 'disk.swap')
    def test_complete_disk_gets_its_space(self, name):
        self.assertEqual(1 << 20, self.created(name))

    def test_disk_is_sparse_by_default(self):
        self.assertEqual(0, self.created('disk.eph0', preallocate='none'))

    def test_root_disk_is_left_to_nova(self):
        self.assertEqual(0, self.created('disk'))

    @ddt.data({'type': 'raw'}, {'backing_file': BASE})
    def test_disk_that_nova_also_makes_is_left_to_nova(self, disk):
        self.assertEqual(0, self.created('disk.eph0', **disk))


class TestLiveMigrationSource(EphemeralTestCase):
    """A running guest leaves for a destination with or without the fix."""

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

    def leave(self, capabilities):
        data = peer.LibvirtLiveMigrateData()
        if capabilities is not None:
            data.dest_capabilities = capabilities
        self.fix.check_can_live_migrate_source(self.instance, self.host, data)
        self.fix.prepare_disks(self.instance, self.host)

    def pull_block(self, base):
        image_file.flatten(str(self.path), 'qcow2', str(self.path))

    def test_overlay_is_not_completed_for_a_destination_that_pulls(self):
        self.leave(self.fix.dest_capabilities())
        self.device.rebase.assert_not_called()

    def test_overlay_is_completed_for_a_destination_without_pull(self):
        self.device.rebase.side_effect = self.pull_block
        self.leave(None)
        self.device.rebase.assert_called_once_with(None)
        self.guest.get_block_device.assert_called_with(
            str(self.path))
        self.assertRegex(self.log.output,
                         r'disk.eph0: made complete by QEMU in \d')

    def test_complete_disk_is_left_alone(self):
        self.pull_block(None)
        self.leave({})
        self.device.rebase.assert_not_called()

    def test_capabilities_count_for_one_migration_only(self):
        self.leave(self.fix.dest_capabilities())
        self.device.rebase.side_effect = self.pull_block
        self.fix.prepare_disks(self.instance, self.host)
        self.device.rebase.assert_called_once_with(None)

    def test_overlay_with_a_lost_base_is_completed_by_qemu(self):
        # The guest still has it open.
        self.device.rebase.side_effect = self.keep_what_is_written
        (self.instances.base / BASE).unlink()
        self.leave(self.fix.dest_capabilities())
        self.device.rebase.assert_called_once_with(None)
        self.assertIn('QEMU completes disk.eph0: its backing '
                      'file is missing', self.log.output)

    def keep_what_is_written(self, base):
        processutils.execute('qemu-img', 'rebase', '-u', '-b', '', self.path)

    def test_disk_info_contains_the_path_of_the_base(self):
        disk = {'path': str(self.path), 'backing_file': BASE}
        self.fix.set_source_fields(
            peer.LibvirtLiveMigrateData(), [disk])
        self.assertEqual(f'{self.instances.base}/{BASE}',
                         disk[ephemeral.BACKING_PATH])

    def test_failed_block_pull_stops_the_migration(self):
        # libvirt only reports that no job exists any more
        error = self.assertRaises(exception.MigrationError, self.leave, {})
        for part in ('disk.eph0', uuids.instance,
                     'the destination has not announced',
                     'The guest is unchanged', 'Make space here'):
            self.assertIn(part, str(error))

    def test_destination_that_cannot_fetch_gets_a_complete_disk(self):
        self.device.rebase.side_effect = self.pull_block
        self.leave(self.fix.dest_capabilities())
        self.assertTrue(
            self.fix.prepare_disks(
                self.instance, self.host, has_failed=True))
        self.device.rebase.assert_called_once_with(None)
        self.assertEqual(1, self.log.output.count('could not prepare'))
        disk = {'path': str(self.path), 'backing_file': BASE}
        self.fix.set_source_fields(
            peer.LibvirtLiveMigrateData(), [disk])
        self.assertEqual('', disk['backing_file'])

    def test_guest_without_overlay_has_no_second_attempt(self):
        self.pull_block(None)
        self.assertFalse(
            self.fix.prepare_disks(
                self.instance, self.host, has_failed=True))
        self.assertEqual('', self.log.output)

    def test_swap_disk_with_a_lost_base_is_completed(self):
        # its base, which a destination could not pull
        swap = self.disk('disk.swap', self.instances.make_base(
            'swap_64', mkfs=None))
        (self.instances.base / 'swap_64').unlink()
        self.device.rebase.side_effect = lambda base: processutils.execute(
            'qemu-img', 'rebase', '-u', '-b', '', swap)
        self.leave(self.fix.dest_capabilities())
        self.guest.get_block_device.assert_called_with(str(swap))

    def lay_on_copy(self, path):
        """Leave a disk as a completion that was interrupted leaves it."""
        copy = next(disk.copy for disk in disks.overlays(
            os.path.dirname(path)) if disk.path == str(path))
        processutils.execute(
            'qemu-img', 'create', '-f', 'qcow2', copy,
            str(image_file.virtual_size(path)))
        processutils.execute('qemu-img', 'rebase', '-u', '-F', 'qcow2', '-b',
                             copy, path)

    def update_destination_xml(self):
        self.fix.update_destination_xml(
            None, self.instance, None, None, None)

    def test_completion_interrupted_meanwhile_stops_the_migration(self):
        self.leave(self.fix.dest_capabilities())
        self.update_destination_xml()
        self.lay_on_copy(self.path)
        error = self.assertRaises(
            exception.MigrationError, self.update_destination_xml)
        self.assertIn('The disk disk.eph0', str(error))

    def test_shared_disk_moves_with_its_copy(self):
        self.leave(self.fix.dest_capabilities())
        self.lay_on_copy(self.path)
        # In a migration on shared storage Nova prepares no disks.
        self.fix.check_can_live_migrate_source(
            self.instance, self.host, peer.LibvirtLiveMigrateData())
        self.update_destination_xml()

    def test_swap_disk_on_its_copy_is_completed(self):
        swap = self.disk('disk.swap', self.instances.make_base(
            'swap_64', mkfs=None))
        self.pull_block(None)
        self.lay_on_copy(swap)
        with mock.patch.object(completion, 'complete', autospec=True) as call:
            self.leave({})
        self.assertEqual('disk.swap', call.call_args.args[1].name)

    def test_incompletable_swap_disk_stops_the_migration(self):
        self.disk('disk.swap', self.instances.make_base(
            'swap_64', mkfs=None))
        (self.instances.base / 'swap_64').unlink()
        error = self.assertRaises(
            exception.MigrationError, self.leave, self.fix.dest_capabilities())
        self.assertIn('disk.swap', str(error))


class TestColdMigrationAndHardReboot(EphemeralTestCase):

    def setUp(self):
        super().setUp()
        self.driver = mock.create_autospec(
            nova_driver.LibvirtDriver, instance=True)
        self.driver._is_path_shared_with.return_value = False
        self.driver._create_ephemeral = (
            nova_driver.LibvirtDriver._create_ephemeral)
        self.driver.job_tracker = mock.create_autospec(
            instancejobtracker.InstanceJobTracker, instance=True)
        self.driver._host = mock.create_autospec(
            libvirt_host.Host, instance=True)
        self.driver._host.get_guest.side_effect = exception.InstanceNotFound(
            instance_id=uuids.instance)

    def leave(self, **devices):
        self.fix.migrate_disk_and_power_off(
            self.driver, self.instance, 'dest', devices)

    def written(self):
        """Return the paths of a disk and of a complete disk with its bytes."""
        path = self.disk(written=b'\x07' * 65536)
        expected = self.instances.path / 'expected'
        image_file.flatten(str(path), 'qcow2', str(expected))
        return path, expected

    def overlays(self):
        return list(disks.overlays(str(self.dir)))

    def run_guest(self):
        """Run the guest with the disk attached; return its block pull."""
        guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
        guest.is_active.return_value = True
        device = guest.get_block_device.return_value
        device.get_job_info.return_value = None
        self.driver._host.get_guest.side_effect = None
        self.driver._host.get_guest.return_value = guest
        return device.rebase

    def test_source_completes_the_disk_of_a_stopped_guest(self):
        path, expected = self.written()
        self.leave()
        self.assertEqual([], self.overlays())
        self.assert_same_bytes(path, expected)
        self.assertIn('disk.eph0: made complete', self.log.output)

    def test_definition_of_a_stopped_guest_names_the_disk(self):
        # The guest stopped between the pivot of a block copy and the snapshot.
        copy = self.dir / 'ephemeral.disk.eph0'
        path, expected = self.written()
        image_file.flatten(str(path), 'qcow2', str(copy))
        path.unlink()
        processutils.execute('qemu-img', 'create', '-f', 'qcow2', '-F',
                             'qcow2', '-b', copy, path)
        guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
        guest.is_active.return_value = False
        guest.get_xml_desc.return_value = f'<source file="{copy}"/>'
        self.driver._host.get_guest.side_effect = None
        self.driver._host.get_guest.return_value = guest
        self.leave()
        self.driver._host.write_instance_config.assert_called_once_with(
            f'<source file="{path}"/>')
        self.assert_same_bytes(path, expected)
        self.assertFalse(copy.exists())

    def test_conversion_is_registered_as_a_job_that_a_deletion_ends(self):
        self.written()
        self.leave()
        self.driver.job_tracker.add_job.assert_called_with(
            self.instance, mock.ANY)
        self.driver.job_tracker.remove_job.assert_called_with(
            self.instance, mock.ANY)

    def test_source_completes_the_disk_of_a_running_guest(self):
        path, expected = self.written()
        pull = self.run_guest()
        pull.side_effect = lambda base: image_file.flatten(
            str(path), 'qcow2', str(path))
        self.leave()
        pull.assert_called_once_with(None)
        self.assert_same_bytes(path, expected)

    def test_disks_on_shared_storage_stay_overlays(self):
        self.written()
        self.driver._is_path_shared_with.return_value = True
        pull = self.run_guest()
        self.leave()
        pull.assert_not_called()
        self.assertEqual(1, len(self.overlays()))

    def test_guest_without_overlays_needs_no_check_for_shared_storage(self):
        self.leave()
        self.driver._is_path_shared_with.assert_not_called()

    def test_cold_migration_with_data_on_a_lost_base_is_refused(self):
        path, _expected = self.written()
        before = path.read_bytes()
        (self.instances.base / BASE).unlink()
        error = self.assertRaises(exception.MigrationError, self.leave)
        for part in ('disk.eph0', uuids.instance, 'has data',
                     'The guest is unchanged', 'from a backup'):
            self.assertIn(part, str(error))
        self.assertEqual(before, path.read_bytes())

    def assert_has(self, kind, label, name):
        raw = self.instances.path / 'raw'
        processutils.execute('qemu-img', 'convert', '-O', 'raw',
                             self.dir / name, raw)
        found = image_file.filesystem(str(raw))
        self.assertEqual((kind, label), (found['TYPE'], found['LABEL']))

    def test_cold_migration_makes_a_file_system_on_an_unwritten_disk(self):
        self.disk()
        (self.instances.base / BASE).unlink()
        self.leave(ephemerals=[{'guest_format': 'xfs'}])
        self.assertEqual([], self.overlays())
        self.assert_has('xfs', 'ephemeral0', 'disk.eph0')

    def reboot(self, **devices):
        self.fix.hard_reboot(self.driver, 'context', self.instance, 'network',
                            devices)

    def test_hard_reboot_makes_a_file_system_on_an_unwritten_disk(self):
        self.disk('disk.eph1')
        (self.instances.base / BASE).unlink()
        self.reboot(ephemerals=[{}, {'guest_format': 'xfs'}])
        self.assertEqual([], self.overlays())
        self.assert_has('xfs', 'ephemeral1', 'disk.eph1')

    def test_hard_reboot_with_data_on_a_lost_base_is_refused(self):
        path, _expected = self.written()
        before = path.read_bytes()
        (self.instances.base / BASE).unlink()
        error = self.assertRaises(exception.InvalidDiskInfo, self.reboot)
        self.assertIn('has data', str(error))
        self.assertEqual(before, path.read_bytes())

    def test_hard_reboot_leaves_a_disk_with_its_base_alone(self):
        path, _expected = self.written()
        before = path.read_bytes()
        self.reboot()
        self.assertEqual(before, path.read_bytes())

    def test_conversion_without_enough_space_is_not_begun(self):
        path, _expected = self.written()
        inode = os.stat(path).st_ino
        usage = shutil.disk_usage(self.dir)
        with mock.patch.object(shutil, 'disk_usage', autospec=True,
                               return_value=usage._replace(free=1 << 16)):
            error = self.assertRaises(exception.MigrationError, self.leave)
        self.assertRegex(str(error), r'up to \d+ MiB will be written, and 0 ')
        self.assertEqual(inode, os.stat(path).st_ino)

    def test_destination_completes_a_disk_that_the_source_did_not(self):
        path, expected = self.written()
        self.fix.finish_migration(self.instance, str(self.dir), '10.0.2.11')
        self.assertEqual([], list(disks.ephemeral_overlays(self.dir)))
        self.assert_same_bytes(path, expected)
        self.assertEqual(1, len(self.ssh.asked))

    def test_disk_keeps_its_data_if_its_base_cannot_be_fetched(self):
        path, _expected = self.written()
        error = self.assertRaises(
            exception.MigrationError, self.fix.finish_migration,
            self.instance, str(self.dir), 'cut')
        self.assertIn('The guest is off', str(error))
        self.assertIn(f'{uuids.instance}_resize', str(error))
        self.assertNotIn('has not been moved', str(error))
        overlay, = self.overlays()
        self.assertTrue(disks.is_written(overlay))
        # A hard reboot does not use the base of this host instead.
        self.assertTrue((self.instances.base / BASE).exists())
        self.assertTrue(disks.lacks_backing_file(overlay))

    def test_unwritten_disk_needs_no_base_from_the_source(self):
        self.disk()
        self.fix.finish_migration(self.instance, str(self.dir), 'cut')
        overlay, = self.overlays()
        # Nova's image backend then makes a complete disk.
        self.assertTrue(disks.lacks_backing_file(overlay))
        self.assertIn('new file systems', self.log.output)

    def test_disk_with_an_external_data_file_is_refused(self):
        # hostile: the data of another tenant
        path, _expected = self.written()
        secret = self.instances.path / 'secret'
        secret.write_bytes(b'secret of another tenant'.ljust(1 << 30))
        processutils.execute(
            'qemu-img', 'create', '-f', 'qcow2', '-o',
            f'data_file={secret},backing_file={self.instances.base}/{BASE},'
            'backing_fmt=raw', path, self.instances.GIB)
        error = self.assertRaises(
            exception.MigrationError, self.fix.finish_migration,
            self.instance, str(self.dir), '10.0.2.11')
        self.assertIn('external data file', str(error))
        self.assertEqual([], self.ssh.asked)

    def test_fetched_base_larger_than_the_disk_is_refused(self):
        self.written()
        with open(self.instances.base / BASE, 'r+b') as file:
            file.truncate(2 * self.instances.GIB)
        error = self.assertRaises(
            exception.MigrationError, self.fix.finish_migration,
            self.instance, str(self.dir), '10.0.2.11')
        self.assertIn('more than the disk', str(error))

    def test_complete_disk_is_not_fetched_for(self):
        path = self.disk()
        image_file.flatten(str(path), 'qcow2', str(path))
        self.fix.finish_migration(self.instance, str(self.dir), 'cut')
        self.assertEqual([], self.ssh.asked)


@ddt.ddt
class TestStoppingGuest(EphemeralTestCase):
    """A guest stops while QEMU has the only copy of its backing file."""

    def setUp(self):
        super().setUp()
        self.running = None     # or a function that stands for a block pull
        self.attached = True

    def stop(self):
        self.fix.power_off(self.instance, self.host())

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

    def test_half_completed_disk_does_not_hold_up_a_stop(self):
        # The disk's name leads to its data.
        copy = self.dir / 'ephemeral.disk.eph0'
        image_file.flatten(str(self.disk()), 'qcow2', str(copy))
        processutils.execute('qemu-img', 'rebase', '-u', '-F', 'qcow2', '-b',
                             copy, self.dir / 'disk.eph0')
        self.running = self.has_no_space
        self.stop()
        self.assertEqual(1, len(self.overlays()))

    def lose_base(self, written=b'\x07' * 512):
        self.disk(written=written)
        (self.instances.base / BASE).unlink()

    def overlays(self):
        return list(disks.overlays(str(self.dir)))

    @ddt.data(b'', b'\x07' * 512)
    def test_stop_completes_the_disk_of_a_lost_base(self, written):
        self.lose_base(written)
        self.running = self.has_it_open
        self.stop()
        self.assertEqual([], self.overlays())

    def test_stop_is_refused_if_the_disk_cannot_be_completed(self):
        self.lose_base()
        self.running = self.has_no_space
        error = self.assertRaises(exception.MigrationError, self.stop)
        self.assertIn('No space left', str(error))

    def test_rebuild_stops_the_guest_without_completing_disks(self):
        self.lose_base()
        self.running = self.has_no_space
        self.instance.task_state = task_states.REBUILDING
        self.stop()

    def test_rescued_guest_without_the_disk_stops(self):
        self.lose_base()
        self.running = self.has_no_space
        self.attached = None
        self.stop()

    @ddt.data('{', 'null', '[]')
    def test_guest_with_an_unreadable_record_stops(self, record):
        self.disk()
        (self.dir / 'disk.info').write_text(record)
        self.running = self.has_no_space
        self.stop()
        self.assertIn('Cannot determine', self.log.output)

    def test_stop_leaves_a_disk_with_its_base_an_overlay(self):
        self.disk(written=b'\x07' * 512)
        self.running = self.has_no_space
        self.stop()
        self.assertEqual(1, len(self.overlays()))

    def test_disk_of_a_stopped_guest_is_left_unchanged(self):
        self.lose_base()
        self.stop()
        self.assertEqual(1, len(self.overlays()))


class TestDriverExtension(testtools.TestCase):

    def test_driver_uses_the_image_backend_and_cache_of_the_fix(self):
        driver = mock.Mock(image_backend=imagebackend.Backend(use_cow=True))
        ephemeral.Ephemeral().extend_driver(driver)
        self.assertIs(image_backend.Qcow2, driver.image_backend.backend(
            'default'))
        self.assertIsInstance(driver.image_cache_manager,
                              image_cache.ImageCacheManager)
