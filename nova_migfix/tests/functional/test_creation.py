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


"""File systems are made as a whole, and no other is built upon."""

import os
import pathlib
from unittest import mock

import ddt
from nova.privsep import fs

from nova_migfix import scratch
from nova_migfix.tests.functional import storage

BASE = 'ephemeral_1_40d1d2c'


class CreationTestCase(storage.StorageTestCase):

    def assert_refused(self, *ephemerals, **others):
        """The guest is not created and nothing is left; returns why."""
        self.boot(*ephemerals, state='ERROR', **others)
        self.assert_nothing_left('src')
        self.assertEqual([], self.bases('dest'))
        return self.server['fault']['details']


@ddt.ddt
class MkfsTestCase(CreationTestCase):

    def test_each_disk_has_what_was_asked_for(self):
        self.boot((1, 'xfs'), (2, 'ext3'), 3)
        self.assert_has('xfs', 'ephemeral0', 'disk.eph0')
        self.assert_has('ext3', 'ephemeral1', 'disk.eph1')
        self.assert_has('ext4', 'ephemeral2', 'disk.eph2')
        self.assertEqual(3, len(self.bases()))

    def test_one_that_fails_leaves_nothing(self):
        with self.hosts.failing('mkfs'):
            self.assert_refused(1)
        self.assertEqual([], self.bases())
        self.boot(1)
        self.assert_has('ext4', 'ephemeral0')

    def test_a_label_that_has_no_room_leaves_nothing(self):
        # as [DEFAULT] virt_mkfs says
        with mock.patch.object(
                fs, '_DEFAULT_MKFS_COMMAND',
                'mkfs.xfs -L volume_%(fs_label)s %(target)s'):
            self.assert_refused(1)
        self.assertEqual([], self.bases())
        self.boot((1, 'xfs'))
        self.assert_has('xfs', 'ephemeral0')

    def test_what_a_crash_has_left_is_not_used_but_swept_away(self):
        base = self.hosts.instances('src') / '_base' / BASE
        base.parent.mkdir()
        with self.hosts.on('src'), scratch.directory(str(base)) as directory:
            left = pathlib.Path(f'{directory}-left')
        left.mkdir()
        (left / BASE).touch()
        self.boot(1)
        self.assert_has('ext4', 'ephemeral0')
        self.src.driver.init_host('src')
        self.assertEqual([base], list(base.parent.glob('*eph*')))
        self.assertFalse(left.exists())

    def test_swap_too(self):
        with self.hosts.failing('mkswap'):
            self.assert_refused(swap=64)
        swap = self.hosts.instances('src') / '_base' / 'swap_64'
        self.assertFalse(swap.exists())
        self.boot(swap=64)
        self.assertEqual(str(swap), self.backing('disk.swap'))
        self.assert_has('swap', None, 'disk.swap')


class BlankBaseTestCase(CreationTestCase):
    """A mkfs that failed has left a file, before the plugin came."""

    def setUp(self):
        super().setUp()
        self.base = self.hosts.instances('src') / '_base' / BASE
        self.base.parent.mkdir()
        self.base.touch()
        os.truncate(self.base, 1 << 30)

    def test_it_is_not_built_upon(self):
        reason = self.assert_refused(1)
        for part in ('disk.eph0', self.server['id'], f'{BASE} has nothing',
                     'should have ext4', 'Remove that file'):
            self.assertIn(part, reason)

    def test_without_it_the_next_attempt_succeeds(self):
        self.assert_refused(1)
        self.base.unlink()
        self.boot(1)
        self.assertEqual(str(self.base), self.backing())
        self.assert_has('ext4', 'ephemeral0')


class OtherFileSystemTestCase(CreationTestCase):
    """Nova's name for a base says nothing of the file system."""

    def test_it_is_not_built_upon(self):
        self.boot((1, 'xfs'))
        reason = self.assert_refused((1, 'ext3'))
        for part in ('disk.eph0', 'has xfs', 'should have ext3'):
            self.assertIn(part, reason)

    def test_a_disk_of_the_same_is(self):
        self.boot((1, 'xfs'))
        self.boot((1, 'xfs'))
        self.assertEqual(list(map(str, self.bases())), [self.backing()])


class SwitchedOffTestCase(BlankBaseTestCase):
    """What the tests above are worth."""

    enabled_fixes = ['config_drive', 'kernel_ramdisk', 'source_address']

    def test_it_is_not_built_upon(self):
        self.boot(1)
        self.assertEqual(str(self.base), self.backing())

    def test_without_it_the_next_attempt_succeeds(self):
        self.base.unlink()
        with self.hosts.failing('mkfs'):
            self.boot(1, state='ERROR')
        self.assertEqual([self.base], self.bases())
