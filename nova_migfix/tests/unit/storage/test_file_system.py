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

"""A file gets its name when its file system is complete."""

import os

import ddt
import fixtures
from nova.privsep import fs
from nova.virt.libvirt import driver as nova_driver
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_config import fixture as config_fixture
import testtools

from nova_migfix.storage import file_system
from nova_migfix.storage import image_file
from nova_migfix.tests import fixtures as migfix_fixtures

BASE = 'ephemeral_1_40d1d2c'


class FileSystemTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.target = str(self.instances.base / BASE)
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))


class TestWholeFile(FileSystemTestCase):

    def test_file_gets_its_name_when_it_is_complete(self):
        def create(target, size):
            self.assertEqual(BASE, os.path.basename(target))
            with open(target, 'w') as file:
                file.truncate(size)
            self.assertFalse(os.path.exists(self.target))
        file_system.whole(create)(self.target, size=5)
        self.assertEqual([BASE], os.listdir(self.instances.base))
        self.assertEqual(5, os.path.getsize(self.target))

    def test_failed_creation_leaves_no_file(self):
        def fail(target):
            with open(target, 'w'):
                raise processutils.ProcessExecutionError
        self.assertRaises(processutils.ProcessExecutionError,
                          file_system.whole(fail), self.target)
        self.assertEqual([], os.listdir(self.instances.base))

    def assert_made_in_its_place(self, target):
        made = []
        file_system.whole(made.append)(target)
        self.assertEqual([target], made)

    def test_logical_volume_is_created_in_place(self):
        self.assert_made_in_its_place('/dev/vg/volume')

    def test_ploop_image_is_created_in_place(self):
        # The image is a directory.
        self.config.config(virt_type='parallels', group='libvirt')
        self.assert_made_in_its_place(self.target)


@ddt.ddt
class TestSparseFileSystem(FileSystemTestCase):

    def create(self, **kwargs):
        file_system.sparse(nova_driver.LibvirtDriver._create_ephemeral)(
            target=self.target, ephemeral_size=1, fs_label='ephemeral0',
            **{'os_type': None, **kwargs})
        return image_file.filesystem(self.target)

    @ddt.data({'specified_fs': 'ntfs'}, {'os_type': 'windows'})
    def test_ntfs_allocates_only_its_metadata(self, asked):
        found = self.create(**asked)
        self.assertEqual(('ntfs', 'ephemeral0'),
                         (found['TYPE'], found['LABEL']))
        self.assertEqual(1 << 30, os.path.getsize(self.target))
        self.assertLess(os.stat(self.target).st_blocks * 512, 100 << 20)

    def test_other_file_systems_are_made_by_nova(self):
        self.assertEqual('xfs', self.create(specified_fs='xfs')['TYPE'])

    def test_logical_volume_is_left_to_nova(self):
        asked = []
        file_system.sparse(lambda *args: asked.append(args))(
            '/dev/vg/volume', 1, 'ephemeral0', 'windows', True)
        self.assertEqual('/dev/vg/volume', asked[0][0])

    @ddt.data((None, None, 'vfat'), ('linux', None, 'ext4'),
              ('windows', None, 'ntfs'), ('windows', 'btrfs', 'btrfs'))
    @ddt.unpack
    def test_file_system_follows_os_type_and_guest_format(
            self, os_type, guest_format, kind):
        self.assertEqual(kind, file_system.kind_of(os_type, guest_format))

    def test_file_system_of_a_configured_mkfs_command_is_unknown(self):
        self.useFixture(fixtures.MockPatchObject(
            fs, '_DEFAULT_MKFS_COMMAND', 'mkfs.special %(target)s'))
        self.assertIsNone(file_system.kind_of(None, 'ntfs'))
