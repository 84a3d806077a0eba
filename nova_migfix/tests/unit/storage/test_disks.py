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

import ddt
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.tests import fixtures as migfix_fixtures


class DisksTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.dir = self.instances.path / uuids.instance

    def disk(self, name='disk.eph0', **kwargs):
        return self.instances.make_disk(
            uuids.instance, name, self.instances.make_base(), **kwargs)

    def overlays(self):
        return list(disks.ephemeral_overlays(self.dir))


@ddt.ddt
class TestOverlays(DisksTestCase):

    @ddt.data(('disk.local', 0), ('disk.eph0', 0), ('disk.eph1', 1),
              ('disk.eph12', 12))
    @ddt.unpack
    def test_ephemeral_disk_with_a_base_is_an_overlay(self, name, number):
        path = self.disk(name)
        overlay, = self.overlays()
        self.assertEqual((name, str(path), number),
                         (overlay.name, overlay.path, overlay.number))
        self.assertTrue(os.path.samefile(
            overlay.backing, self.instances.base / 'ephemeral_1_40d1d2c'))

    @ddt.data('disk', 'disk.swap', 'disk.config', 'disk.eph0.rescue')
    def test_other_disks_are_no_ephemeral_overlays(self, name):
        self.disk(name)
        self.assertEqual([], self.overlays())

    def test_complete_disk_is_no_overlay(self):
        path = self.disk()
        image_file.flatten(str(path), 'qcow2', str(path))
        self.assertEqual([], self.overlays())

    def test_swap_disk_is_among_all_overlays(self):
        self.instances.make_disk(uuids.instance, 'disk.swap',
                                 self.instances.make_base('swap_64'))
        overlay, = disks.overlays(str(self.dir))
        self.assertTrue(overlay.is_swap)

    def test_raw_disk_is_not_inspected(self):
        # its guest can write a header with any backing file
        path = self.disk()
        record = self.dir / 'disk.info'
        record.write_text(record.read_text().replace('qcow2', 'raw'))
        self.assertTrue(path.exists())
        self.assertEqual([], self.overlays())

    def test_instance_without_files_has_no_overlays(self):
        self.assertEqual([], self.overlays())

    def test_guest_writes_are_detected_without_the_base(self):
        for written in (b'', b'\x07' * 512, b'\x00' * 512):
            path = self.disk(written=written)
            overlay, = self.overlays()
            self.assertFalse(disks.lacks_backing_file(overlay))
            (self.instances.base / 'ephemeral_1_40d1d2c').unlink()
            self.assertEqual(bool(written), disks.is_written(overlay))
            self.assertTrue(disks.lacks_backing_file(overlay))
            path.unlink()
