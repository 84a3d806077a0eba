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

"""The image cache keeps bases that a disk names, and removes others."""

import os
from unittest import mock

import fixtures
from nova import privsep
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova.virt.libvirt import imagecache

from nova_migfix.storage import disks
from nova_migfix.storage import image_cache
from nova_migfix.storage import image_file
from nova_migfix.tests import fixtures as migfix_fixtures

# Age of an unused file in seconds.
_OLD = 10 * 24 * 3600

#: the base of a second ephemeral size, which Nova does not count
SECOND = 'ephemeral_2_40d1d2c'


class ImageCacheTestCase(testtools.TestCase):

    manager = image_cache.ImageCacheManager

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.useFixture(config_fixture.Config(cfg.CONF)).config(
            remove_unused_base_images=True, group='image_cache')
        privsep.sys_admin_pctxt.set_client_mode(False)
        self.addCleanup(privsep.sys_admin_pctxt.set_client_mode, True)

    def base(self, name):
        path = self.instances.make_base(name)
        then = path.stat().st_mtime - _OLD
        os.utime(path, (then, then))
        return path

    def run_pass(self):
        """Run a pass of the cache in which Nova knows no instance."""
        with mock.patch('nova.objects.BlockDeviceMappingList.'
                        'bdms_by_instance_uuid', return_value={}):
            self.manager().update(mock.sentinel.context, [])


class TestImageCache(ImageCacheTestCase):

    def test_base_that_a_disk_names_stays(self):
        base = self.base(SECOND)
        self.instances.make_disk(uuids.instance, 'disk.eph1', base)
        before = base.stat().st_mtime
        self.run_pass()
        # other hosts that share the directory see it as used
        self.assertLess(before, base.stat().st_mtime)

    def test_bases_of_root_and_swap_disks_stay(self):
        for disk, name in (('disk', 'a' * 40), ('disk.swap', 'swap_64')):
            base = self.base(name)
            self.instances.make_disk(uuids.instance, disk, base)
            self.run_pass()
            self.assertTrue(base.exists(), name)

    def test_base_of_a_resized_instance_stays(self):
        base = self.base(SECOND)
        self.instances.make_disk(f'{uuids.instance}_resize', 'disk.eph1', base)
        self.run_pass()
        self.assertTrue(base.exists())

    def test_base_that_no_disk_names_is_removed(self):
        base, swap = self.base(SECOND), self.base('swap_64')
        self.run_pass()
        self.assertFalse(base.exists())
        self.assertFalse(swap.exists())

    def test_unreadable_disk_keeps_all_bases(self):
        base = self.base(SECOND)
        with mock.patch.object(image_file, 'qcow2_header', autospec=True,
                               side_effect=PermissionError('not yours')):
            self.instances.make_disk(uuids.instance, 'disk.eph1', base)
            self.run_pass()
        self.assertTrue(base.exists())
        self.assertIn('not yours', self.log.output)

    def test_disks_are_inspected_once_per_pass(self):
        for size in range(3):
            self.base(f'ephemeral_{size}_40d1d2c')
        with mock.patch.object(disks, 'bases_in_use', autospec=True,
                               return_value=set()) as in_use:
            self.run_pass()
        in_use.assert_called_once_with()


class TestUnmodifiedNova(ImageCacheTestCase):

    manager = imagecache.ImageCacheManager

    def test_unmodified_nova_removes_a_base_in_use(self):
        base = self.base(SECOND)
        self.instances.make_disk(uuids.instance, 'disk.eph1', base)
        self.run_pass()
        self.assertFalse(base.exists())
