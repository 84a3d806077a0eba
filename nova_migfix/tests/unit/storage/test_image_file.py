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
import functools
import os
import pathlib
from unittest import mock

import ddt
import hypothesis
from hypothesis import strategies
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.storage import image_file
from nova_migfix.storage import scratch
from nova_migfix.tests import fixtures as migfix_fixtures


class ImageFileTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.dir = self.instances.path / uuids.instance

    def disk(self, name='disk.eph0', **kwargs):
        return self.instances.make_disk(
            uuids.instance, name, self.instances.make_base(), **kwargs)

    def assert_same_bytes(self, disk, other):
        processutils.execute('qemu-img', 'compare', disk, other)


class TestHeader(ImageFileTestCase):

    def test_qcow2_header_matches_the_image(self):
        path = self.disk(written=b'\x07' * 512)
        header = image_file.qcow2_header(str(path))
        self.assertEqual(
            (f'{self.instances.base}/ephemeral_1_40d1d2c',
             self.instances.GIB, True, False), header)

    def test_file_that_is_not_qcow2_has_no_header(self):
        for content in (b'', b'QFI', b'\x00' * 512):
            path = self.instances.path / 'file'
            path.write_bytes(content)
            self.assertIsNone(image_file.qcow2_header(str(path)))

    @hypothesis.given(strategies.binary(max_size=200))
    def test_damaged_qcow2_header_is_read(self, content):
        path = self.instances.path / 'file'
        path.write_bytes(b'QFI\xfb' + content)
        self.assertIsNotNone(image_file.qcow2_header(str(path)))


@ddt.ddt
class TestFlatten(ImageFileTestCase):

    @ddt.data(b'', b'\x07' * 65536)
    def test_flatten_keeps_the_bytes(self, written):
        path = self.disk(written=written)
        made = self.dir / 'made'
        image_file.flatten(str(path), 'qcow2', str(made))
        self.assert_same_bytes(path, made)
        self.assertIsNone(libvirt_utils.get_disk_backing_file(str(made)))

    def test_flatten_flushes_the_new_file_before_it_replaces_the_disk(self):
        path = self.disk(written=b'\x07' * 65536)
        before = path.read_bytes()
        with mock.patch.object(
                scratch, 'write_through', autospec=True,
                side_effect=lambda made: self.assertEqual(
                    (before, True),
                    (path.read_bytes(), os.path.exists(made)))) as through:
            image_file.flatten(str(path), 'qcow2', str(path))
            image_file.flatten(str(path), 'qcow2', str(self.dir / 'another'))
        through.assert_called_once()

    def test_flat_size_predicts_the_size(self):
        # independent of the space that the file system of the base reserves
        path = self.disk(written=b'\x07' * (3 << 20))
        before = image_file.flat_size(str(path))
        image_file.flatten(str(path), 'qcow2', str(path))
        made = path.stat().st_blocks * 512
        self.assertTrue(made <= before < made + (8 << 20), (made, before))

    def test_flatten_can_read_another_backing_file(self):
        path = self.disk(written=b'\x07' * 65536)
        expected = self.dir / 'expected'
        image_file.flatten(str(path), 'qcow2', str(expected))
        base = self.instances.base / 'ephemeral_1_40d1d2c'
        copy = base.rename(self.dir / 'copy')
        self.instances.make_base()      # the base on the destination
        image_file.flatten(str(path), 'qcow2', str(path), backing=str(copy))
        self.assert_same_bytes(path, expected)

    def test_disk_with_an_external_data_file_is_refused(self):
        path = self.disk()
        processutils.execute(
            'qemu-img', 'create', '-f', 'qcow2', '-o',
            f'data_file={self.instances.path}/data', path, '1G')
        for action in (functools.partial(
                image_file.flatten, str(path), 'qcow2', str(path)),
                functools.partial(
                    image_file.name_backing_file, str(path), '/any')):
            error = self.assertRaises(ValueError, action)
            self.assertIn('external data file', str(error))

    def test_flatten_does_not_replace_another_disk(self):
        path = self.disk()
        base = str(self.instances.base / 'ephemeral_1_40d1d2c')
        before = path.read_bytes()
        self.assertRaises(
            FileExistsError, image_file.flatten, base, 'raw', str(path))
        self.assertEqual(before, path.read_bytes())

    def test_flatten_can_enlarge_the_disk(self):
        made = self.dir / 'made'
        self.dir.mkdir()
        image_file.flatten(str(self.instances.make_base()), 'raw', str(made),
                      size=3 * self.instances.GIB)
        self.assertIn(b'QFI\xfb', made.read_bytes()[:4])
        self.assertEqual(3 * self.instances.GIB, image_file.virtual_size(made))

    def test_failed_flatten_leaves_the_disk_and_no_other_file(self):
        path = self.disk()
        (self.instances.base / 'ephemeral_1_40d1d2c').unlink()
        before = path.read_bytes()
        self.assertRaises(
            processutils.ProcessExecutionError, image_file.flatten, str(path),
            'qcow2', str(path))
        self.assertEqual(before, path.read_bytes())
        self.assertEqual({'disk.eph0', 'disk.info'},
                         set(os.listdir(self.dir)))


class TestContents(ImageFileTestCase):

    def file(self, *parts):
        path = pathlib.Path(self.instances.path, 'file')
        with open(path, 'wb') as out:
            for part in parts:
                out.write(part) if isinstance(part, bytes) else out.seek(part)
            out.truncate()
        return str(path)

    def test_hole_counts_as_zeros(self):
        self.assertTrue(image_file.is_zeros(self.file(1 << 40)))

    def test_blank_image_of_qemu_img_counts_as_zeros(self):
        # although its first block is allocated
        self.assertTrue(image_file.is_zeros(
            str(self.instances.make_base(size=1 << 40, mkfs=None))))

    def test_file_system_is_not_zeros(self):
        self.assertFalse(image_file.is_zeros(str(self.instances.make_base())))

    def test_written_zeros_count_as_zeros(self):
        path = self.file(bytes(1 << 16))
        self.assertTrue(image_file.is_zeros(path))
        self.assertTrue(image_file.is_zeros(self.file(1 << 20)))

    def test_file_system_of_an_unreadable_file_is_unknown(self):
        # blkid reports the same for a file without a file system
        base = str(self.instances.make_base())
        with mock.patch.object(os, 'access', autospec=True,
                               return_value=False):
            self.assertIsNone(image_file.filesystem(base))
        self.assertEqual('ext4', image_file.filesystem(base)['TYPE'])
        self.assertEqual({}, image_file.filesystem(
            str(self.instances.make_base(mkfs=None))))

    def test_nonzero_byte_at_the_end_is_not_zeros(self):
        self.assertFalse(
            image_file.is_zeros(self.file(bytes(1 << 22), b'\x01')))
