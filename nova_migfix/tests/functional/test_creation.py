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


"""New disks are complete; new overlays have whole backing files."""

import pathlib
from unittest import mock

import ddt
from nova.privsep import fs
from oslo_utils import units

from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.storage import scratch
from nova_migfix.tests.functional import storage

BASE = 'ephemeral_1_40d1d2c'

#: all but the fix for ephemeral disks
WITHOUT = ['config_drive', 'kernel_ramdisk', 'source_address']


class CreationTestCase(storage.StorageTestCase):

    def assert_refused(self, *ephemerals, **others):
        """Assert that Nova cannot create the guest and leaves no files."""
        self.boot(*ephemerals, state='ERROR', **others)
        self.assert_nothing_left('src')
        self.assertEqual([], self.bases('dest'))

    def made_bases(self):
        """Return the names of the files that Nova made in _base."""
        return sorted(
            path.name
            for path in (self.hosts.instances('src') / '_base').iterdir()
            if disks.has_local_base_name(path.name))

    def file_system(self, name='disk.eph0'):
        return image_file.filesystem(str(self.image(name)))


@ddt.ddt
class CompleteDiskTestCase(CreationTestCase):
    """The default: each disk has its own file system."""

    overlays = False

    def test_each_disk_has_its_file_system_and_label(self):
        self.boot((1, 'xfs'), (2, 'ext3'), (1, 'ext2'), 1, swap=64)
        for name, kind, label in (
                ('disk.eph0', 'xfs', 'ephemeral0'),
                ('disk.eph1', 'ext3', 'ephemeral1'),
                ('disk.eph2', 'ext2', 'ephemeral2'),
                ('disk.eph3', 'ext4', 'ephemeral3'),
                ('disk.swap', 'swap', None)):
            self.assert_has(kind, label, name)
            self.assertIsNone(self.backing(name))
        self.assertEqual([], self.made_bases())

    @ddt.data('ext2', 'ext3', 'ext4', 'xfs')
    def test_guests_with_disks_of_one_size_have_distinct_uuids(self, kind):
        uuids = []
        for _guest in range(2):
            self.boot((1, kind))
            self.assert_has(kind, 'ephemeral0')
            uuids.append(self.file_system()['UUID'])
        self.assertEqual(2, len(set(uuids)), uuids)

    def test_disks_of_one_guest_have_distinct_uuids(self):
        self.boot(1, 1)
        self.assertNotEqual(self.file_system('disk.eph0')['UUID'],
                            self.file_system('disk.eph1')['UUID'])

    def test_file_system_follows_the_os_type_of_the_guest(self):
        self.flags(default_ephemeral_format=None)
        for properties, kind in (({'os_type': 'linux'}, 'ext4'),
                                 ({'os_type': 'windows'}, 'ntfs'),
                                 ({}, 'vfat')):
            self.boot(1, image=self.upload(**properties))
            self.assert_has(kind, 'ephemeral0')

    def test_disk_size_is_that_of_the_flavor(self):
        self.boot(2, swap=64)
        self.assertEqual(
            [2 * units.Gi, 64 * units.Mi],
            [image_file.virtual_size(self.path(name))
             for name in ('disk.eph0', 'disk.swap')])

    @ddt.data(True, False)
    def test_space_is_allocated_with_preallocate_images(self, is_wanted):
        if is_wanted:
            self.flags(preallocate_images='space')
        self.boot(1, swap=64)
        for name, size in (('disk.eph0', units.Gi),
                           ('disk.swap', 64 * units.Mi)):
            allocated = self.path(name).stat().st_blocks * 512
            self.assertEqual(is_wanted, allocated >= size, name)

    def test_failed_mkfs_or_conversion_leaves_no_disk(self):
        with self.hosts.failing('mkfs'):
            self.assert_refused(1)
        with self.hosts.failing('qemu-img', 'convert'):
            self.assert_refused(1)
        self.boot(1)
        self.assert_has('ext4', 'ephemeral0')

    def test_existing_base_is_not_used(self):
        base = self.hosts.instances('src') / '_base' / BASE
        base.parent.mkdir()
        base.touch()
        self.boot(1)
        self.assert_has('ext4', 'ephemeral0')
        self.assertEqual(0, base.stat().st_size)


@ddt.ddt
class EmptiedCacheTestCase(CreationTestCase):
    """A complete disk does not depend on files in _base."""

    overlays = False

    def setUp(self):
        super().setUp()
        self.boot((1, 'xfs'), swap=64)
        self.write()
        self.before = self.image()

    def empty_cache(self):
        for base in (self.hosts.instances('src') / '_base').iterdir():
            base.unlink()

    @ddt.data(({'suspend': None}, {'resume': None}),
              ({'rescue': None}, {'unrescue': None}),
              ({'os-stop': None}, {'os-start': None}),
              ({'reboot': {'type': 'SOFT'}}, {'reboot': {'type': 'HARD'}}))
    def test_disks_are_kept_when_the_cache_is_emptied(self, actions):
        for action in actions:
            self.act(**action)
            self.empty_cache()
        self.act(reboot={'type': 'HARD'})
        self.assertEqual('ACTIVE', self.server['status'])
        self.assert_kept(self.before, host='src')
        self.assertIsNone(self.backing('disk.swap'))
        self.assertEqual([], self.made_bases())

    def test_rebuild_makes_a_new_complete_disk(self):
        before = self.file_system()['UUID']
        self.act(rebuild={'imageRef': self.upload()})
        self.assertEqual('ACTIVE', self.server['status'])
        self.assert_has('xfs', 'ephemeral0')
        self.assertNotEqual(before, self.file_system()['UUID'])
        self.assertIsNone(self.backing())
        self.assertEqual([], self.made_bases())


class OverlayTestCase(CreationTestCase):
    """[migfix] ephemeral_overlays: a base is complete when it has its name."""

    def test_disks_of_one_size_share_a_base(self):
        self.boot((1, 'xfs'), (1, 'xfs'), swap=64)
        base, = map(str, self.bases())
        self.assertEqual(
            [base] * 2, [self.backing('disk.eph0'), self.backing('disk.eph1')])
        self.assertTrue(self.backing('disk.swap').endswith('/_base/swap_64'))

    def test_each_disk_has_the_requested_file_system(self):
        self.boot((1, 'xfs'), (2, 'ext3'), 3)
        self.assert_has('xfs', 'ephemeral0', 'disk.eph0')
        self.assert_has('ext3', 'ephemeral1', 'disk.eph1')
        self.assert_has('ext4', 'ephemeral2', 'disk.eph2')
        self.assertEqual(3, len(self.bases()))

    def test_failed_mkfs_leaves_no_base(self):
        with self.hosts.failing('mkfs'):
            self.assert_refused(1)
        self.assertEqual([], self.bases())
        self.boot(1)
        self.assert_has('ext4', 'ephemeral0')

    def test_too_long_label_leaves_no_base(self):
        # as [DEFAULT] virt_mkfs can configure
        with mock.patch.object(
                fs, '_DEFAULT_MKFS_COMMAND',
                'mkfs.xfs -L volume_%(fs_label)s %(target)s'):
            self.assert_refused(1)
        self.assertEqual([], self.bases())
        self.boot((1, 'xfs'))
        self.assert_has('xfs', 'ephemeral0')

    def test_failed_mkswap_leaves_no_base(self):
        with self.hosts.failing('mkswap'):
            self.assert_refused(swap=64)
        self.assertEqual([], self.made_bases())
        self.boot(swap=64)
        self.assert_has('swap', None, 'disk.swap')

    def test_leftovers_of_a_crash_are_removed_unused(self):
        base = self.hosts.instances('src') / '_base' / BASE
        base.parent.mkdir()
        with self.hosts.on('src'), mock.patch.object(
                scratch, '_RUN_ID', 'another'), \
                scratch.directory(str(base)) as directory:
            left = pathlib.Path(f'{directory}-left')
        left.mkdir()
        (left / BASE).touch()
        self.boot(1)
        self.assert_has('ext4', 'ephemeral0')
        with self.hosts.on('src'):
            scratch.sweep()
        self.assertEqual([base], list(base.parent.glob('*eph*')))
        self.assertFalse(left.exists())

    def test_lost_base_of_another_disk_is_not_made_again(self):
        self.boot((1, 'xfs'))
        first, base = self.server, pathlib.Path(self.backing())
        base.unlink()
        self.boot((1, 'ext3'))
        self.assert_has('ext3', 'ephemeral0')
        self.assertIsNone(self.backing())
        self.assertFalse(base.exists())
        self._delete_server(first)
        self.boot(1)
        self.assertEqual(str(base), self.backing())

    def test_lost_swap_base_of_another_disk_is_not_made_again(self):
        self.boot(swap=64)
        base = pathlib.Path(self.backing('disk.swap'))
        base.unlink()
        self.boot(swap=64)
        self.assert_has('swap', None, 'disk.swap')
        self.assertIsNone(self.backing('disk.swap'))
        self.assertFalse(base.exists())


class WithoutFixTestCase(CreationTestCase):
    """The fault of Nova that the fix prevents."""

    enabled_fixes = WITHOUT

    def test_failed_mkfs_of_nova_leaves_a_base_without_file_system(self):
        with self.hosts.failing('mkfs'):
            self.boot(1, state='ERROR')
        base, = self.bases()
        self.assertEqual({}, image_file.filesystem(str(base)))
        self.boot(1)
        self.assertEqual(str(base), self.backing())
        self.assertEqual({}, self.file_system())

    def test_disks_of_nova_share_file_system_label_and_uuid(self):
        self.flags(default_ephemeral_format='xfs')
        self.boot(1, 1)
        self.assert_has('xfs', 'ephemeral0', 'disk.eph1')
        self.assertEqual(self.file_system('disk.eph0')['UUID'],
                         self.file_system('disk.eph1')['UUID'])

    def test_unmodified_nova_makes_a_base_again_under_another_guest(self):
        self.boot((1, 'xfs'))
        base = pathlib.Path(self.backing())
        base.unlink()
        self.boot((1, 'ext3'))
        self.assertEqual(str(base), self.backing())
        self.assertTrue(base.exists())
