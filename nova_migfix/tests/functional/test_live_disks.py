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


"""Real disks of both hosts, before and after a live migration."""

import itertools
import os

import ddt

from nova_migfix import nova_release
from nova_migfix.tests.functional import storage

WITHOUT = ['config_drive', 'kernel_ramdisk', 'source_address']

TRANSPORTS = ('ssh', 'rsync')

#: by format of a config drive, bytes that it contains
DRIVES = {'iso9660': b'CD001', 'vfat': b'mkfs.fat'}

#: by fault, how to cause it, and part of its message
FAULTS = {
    'no ssh': (
        lambda hosts: hosts.cut('Connection refused'), 'Connection refused'),
    'connection cut': (
        lambda hosts: hosts.cut('Broken pipe', passing=1 << 16),
        'Broken pipe'),
    'no space for the copy': (
        lambda hosts: hosts.failing('tar', '--extract'), 'No space left'),
}


class LiveTestCase(storage.StorageTestCase):

    def boot_from(self, *files):
        """Create a guest with these files; return their contents by name."""
        self.images = {name: self.upload(
            {'kernel': 'aki', 'ramdisk': 'ari'}[name]) for name in files}
        self.boot(image=self.upload(**{
            f'{name}_id': image for name, image in self.images.items()}))
        return {name: self.path(name).read_bytes() for name in files}

    def assert_stays(self):
        self.assertEqual('src', self.host())
        self.assertEqual([], self.destination_xmls)
        self.assert_nothing_left('dest')

    def assert_told(self, *parts):
        """Assert that the failed action has these parts in its details."""
        details = self.failed_event('compute_pre_live_migration')['details']
        for part in ('disk.eph0', self.server['id'], 'from src', *parts):
            self.assertIn(part, details)


@ddt.ddt
class PullTestCase(LiveTestCase):
    """Both hosts have the plugin."""

    @ddt.data(*itertools.product(TRANSPORTS, DRIVES))
    @ddt.unpack
    def test_disk_and_config_drive_arrive_in_one_session(
            self, transport, config_format):
        self.flags(remote_filesystem_transport=transport, group='libvirt')
        self.flags(config_drive_format=config_format)
        self.boot(1, config_drive=True)
        self.write()
        before, drive = self.image(), self.path('disk.config').read_bytes()
        self.assertIn(DRIVES[config_format], drive)
        self.live_migrate('completed')
        self.assert_kept(before)
        self.assertEqual(
            drive, self.path('disk.config', 'dest').read_bytes())
        self.assertEqual([], self.bases('dest'))
        self.assertEqual(1, len(self.hosts.pulled))

    def test_unwritten_disk_arrives_with_its_bytes(self):
        self.boot((1, 'xfs'))
        before = self.image()
        self.live_migrate('completed')
        self.assert_kept(before)

    def test_base_of_the_same_name_on_the_destination_is_not_used(self):
        self.boot(1)
        self.write()
        before = self.image()
        foreign = self.have_base(self.bases()[0].name)
        was = foreign.stat().st_mtime_ns
        self.live_migrate('completed')
        self.assert_kept(before)
        self.assertEqual(was, foreign.stat().st_mtime_ns)

    def test_disk_is_pulled_once_for_both_directions(self):
        self.boot(1, config_drive=True)
        self.write()
        before, drive = self.image(), self.path('disk.config').read_bytes()
        self.live_migrate('completed')
        base, = self.bases()
        self.turn_round()
        self.live_migrate('completed')
        self.assert_kept(before, host='src')
        self.assertEqual(drive, self.path('disk.config').read_bytes())
        self.assertEqual(
            [True, False], [base.name in line for line in self.hosts.pulled])
        base.unlink()
        self.act(reboot={'type': 'HARD'})
        self.move(migrate=None)
        self.assert_kept(before)

    def test_each_base_is_pulled_once(self):
        self.boot(1, 1, (2, 'xfs'), swap=64)
        names = ['disk.eph0', 'disk.eph1', 'disk.eph2', 'disk.swap']
        before = {}
        for name in names[1:3]:
            self.write(name)
        for name in names:
            before[name] = self.image(name)
        self.live_migrate('completed')
        for name in names:
            self.assert_kept(before[name], name)
        session, = self.hosts.pulled
        for base in self.bases():
            self.assertEqual(1, session.count(base.name), session)

    def test_disk_with_a_lost_base_is_completed_from_the_running_guest(self):
        self.boot(1, 2)
        self.write('disk.eph1')
        before = self.image('disk.eph1')
        self.lose_base('disk.eph1')
        self.live_migrate('completed')
        self.assertEqual([str(self.path('disk.eph1'))], self.jobs.pulled)
        self.assert_kept(before, 'disk.eph1')

    def test_guest_with_an_incompletable_lost_base_stays(self):
        self.boot(1)
        self.lose_base()
        with self.hosts.failing('qemu-img', 'convert'):
            self.live_migrate('failed')
        self.assert_stays()
        self.assertIn('which is needed because its backing file is missing',
                      self.log())

    @ddt.data(*itertools.product(TRANSPORTS, FAULTS))
    @ddt.unpack
    def test_unfetchable_disk_is_completed_on_the_source(
            self, transport, fault):
        self.flags(remote_filesystem_transport=transport, group='libvirt')
        self.boot(1)
        self.write()
        before = self.image()
        happening, _reason = FAULTS[fault]
        with happening(self.hosts):
            self.live_migrate('completed')
        self.assertEqual([str(self.path())], self.jobs.pulled)
        self.assert_kept(before)
        self.assertEqual(1, self.log().count(
            'The destination could not prepare for the guest.'))
        self.assertEqual(['disk', 'disk.eph0', 'disk.info'],
                         sorted(os.listdir(self.directory('dest'))))

    @ddt.data(*itertools.product(TRANSPORTS, FAULTS))
    @ddt.unpack
    def test_guest_with_an_unfetchable_and_incompletable_disk_stays(
            self, transport, fault):
        self.flags(remote_filesystem_transport=transport, group='libvirt')
        self.boot(1)
        before = self.path().read_bytes()
        self.jobs.failing = 'No space for a block pull'
        happening, reason = FAULTS[fault]
        with happening(self.hosts):
            self.live_migrate('failed')
        self.assert_stays()
        self.assertEqual(before, self.path().read_bytes())
        self.assertTrue(self.source_domain().isActive())
        for part in (f'The disk disk.eph0 of instance {self.server["id"]} '
                     'cannot be made complete', reason, self.jobs.failing):
            self.assertIn(part, self.log())
        self._wait_for_assert(lambda: self.assertEqual(
            [], list(self.hosts.instances('src').glob('**/migfix-archive*'))))


class UnpatchedSourceTestCase(LiveTestCase):

    enabled_on = {'src': WITHOUT}

    def test_destination_pulls_from_the_default_path_of_bases(self):
        self.boot(1)
        self.write()
        before = self.image()
        self.live_migrate('completed')
        self.assert_kept(before)
        session, = self.hosts.pulled
        self.assertTrue(session.startswith('src '), session)

    def test_guest_with_a_lost_base_on_an_unpatched_source_stays(self):
        self.boot(1)
        self.lose_base()
        self.live_migrate('failed')
        self.assert_stays()
        self.assert_told('No such file')


class UnpatchedDestinationTestCase(LiveTestCase):

    enabled_on = {'dest': WITHOUT}

    def test_source_completes_the_disk_for_an_unpatched_destination(self):
        self.boot(1)
        self.write()
        before = self.image()
        self.live_migrate('completed')
        self.assertEqual([str(self.path())], self.jobs.pulled)
        self.assert_kept(before)
        self.assertRegex(
            self.log(), r'disk\.eph0: made complete by QEMU in \d')

    def test_guest_with_an_incompletable_disk_stays(self):
        self.boot(1)
        with self.hosts.failing('qemu-img', 'convert'):
            self.live_migrate('failed')
        self.assert_stays()
        self.assertIn('disk.eph0 of instance', self.log())


@ddt.ddt
class KernelRamdiskTestCase(LiveTestCase):
    """The guest boots from a kernel and a ramdisk of its own."""

    @ddt.data(*itertools.product(
        (('kernel',), ('kernel', 'ramdisk')), ('in Glance', 'deleted')))
    @ddt.unpack
    def test_kernel_and_ramdisk_arrive(self, files, images):
        of_the_source = self.boot_from(*files)
        for image in self.images.values() if images == 'deleted' else ():
            self.glance.delete(None, image)
        self.live_migrate('completed')
        for name, content in of_the_source.items():
            self.assertEqual(content, self.path(name, 'dest').read_bytes())
        session, = self.hosts.pulled
        for name in ('kernel', 'ramdisk'):
            self.assertEqual(name in files, f'/{name}' in session, session)


class SharedStorageTestCase(LiveTestCase):

    shared = True

    def test_shared_storage_pulls_no_files(self):
        self.boot(1, config_drive=True)
        backing = self.backing()
        self.live_migrate('completed')
        self.assertEqual(backing, self.backing(host='dest'))
        self.assertEqual([], self.hosts.pulled)
        self.assertEqual([], self.jobs.pulled)


class EmptiedConfigDriveTestCase(LiveTestCase):
    """An earlier migration left zeros in the config drive."""

    def setUp(self):
        super().setUp()
        self.boot(config_drive=True)
        path = self.path('disk.config')
        self.size = os.path.getsize(path)
        os.truncate(path, 0)
        os.truncate(path, self.size)

    def test_zeroed_config_drive_is_reported_and_moved(self):
        self.live_migrate('completed')
        self.assertIn('contains only zeros', self.log())
        self.assertIn('hard reboot the instance', self.log())
        self.assertEqual(bytes(self.size), self.path(
            'disk.config', 'dest').read_bytes())

    def test_guest_starts_although_its_config_drive_cannot_be_rebuilt(self):
        with self.hosts.failing('genisoimage'):
            self.act(reboot={'type': 'HARD'})
        self.assertEqual('ACTIVE', self.server['status'])
        self.assertEqual(
            bytes(self.size), self.path('disk.config').read_bytes())
        self.assertIn('could not be rebuilt', self.log())

    def test_hard_reboot_rebuilds_a_zeroed_config_drive(self):
        self.act(reboot={'type': 'HARD'})
        drive = self.path('disk.config').read_bytes()
        for part in (b'CD001', b'config-2', self.server['id'].encode()):
            self.assertIn(part, drive)
        self.assertIn('has been rebuilt', self.log())


class WithoutFixTestCase(LiveTestCase):
    """The faults of Nova that the fixes prevent."""

    enabled_fixes = ['source_address']

    def test_unmodified_nova_puts_the_disk_on_another_file_system(self):
        self.boot(1, config_drive=True)
        self.live_migrate('completed')
        self.assertEqual([str(base) for base in self.bases('dest')],
                         [self.backing(host='dest')])
        self.assertEqual([], self.hosts.pulled)

    def test_unmodified_nova_takes_a_kernel_for_a_bad_disk_image(self):
        if nova_release.major() < 30:
            self.skipTest('this Nova lets a kernel pass')
        self.boot_from('kernel')
        self.live_migrate('failed')
        self.assert_stays()
        self.assertIn('ImageUnacceptable', self.log())

    def test_hard_reboot_of_nova_keeps_a_zeroed_config_drive(self):
        self.boot(config_drive=True)
        path = self.path('disk.config')
        os.truncate(path, 0)
        os.truncate(path, 1 << 20)
        self.act(reboot={'type': 'HARD'})
        self.assertEqual(bytes(1 << 20), path.read_bytes())


@ddt.ddt
class RawDiskTestCase(LiveTestCase):
    """Nova and libvirt alone move disks without backing files."""

    def boot_with(self, images_type):
        self.flags(images_type=images_type, group='libvirt')
        self.flags(use_cow_images=False)
        self.boot(1, swap=64)
        with open(self.path(), 'r+b') as disk:
            disk.write(b'written by the guest')
        self.before = self.content('src')
        for base in self.bases():
            base.unlink()

    def content(self, host):
        """Return the first MiB, with most metadata of the file system."""
        with open(self.path(host=host), 'rb') as disk:
            return disk.read(1 << 20)

    def assert_moved_by_nova(self, host='dest'):
        self.assertEqual(self.before, self.content(host))
        self.assertIsNone(self.backing(host=host))
        self.assertEqual([], self.hosts.pulled)
        self.assertEqual([], self.jobs.pulled)

    @ddt.data('raw', 'flat')
    def test_raw_disk_is_live_migrated_by_nova_alone(self, images_type):
        self.boot_with(images_type)
        self.live_migrate('completed')
        self.assert_moved_by_nova()

    @ddt.data('raw', 'flat')
    def test_raw_disk_is_cold_migrated_by_nova_alone(self, images_type):
        self.boot_with(images_type)
        self.move(migrate=None)
        self.assert_moved_by_nova()

    @ddt.data('raw', 'flat')
    def test_raw_disk_is_left_alone_by_a_hard_reboot(self, images_type):
        self.boot_with(images_type)
        self.act(reboot={'type': 'HARD'})
        self.assert_moved_by_nova('src')
