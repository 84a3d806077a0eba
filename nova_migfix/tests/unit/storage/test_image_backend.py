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

"""New disks are complete; no base is made under data; on real files."""

import functools
import os

import ddt
import fixtures
from nova import exception
from nova import objects
from nova import privsep
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import imagebackend
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix import conf
from nova_migfix.storage import disks
from nova_migfix.storage import image_backend
from nova_migfix.storage import image_file
from nova_migfix.tests import fixtures as migfix_fixtures

BASE = 'ephemeral_1_40d1d2c'


class BackendTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))
        conf.register_opts(cfg.CONF)
        privsep.sys_admin_pctxt.set_client_mode(False)
        self.addCleanup(privsep.sys_admin_pctxt.set_client_mode, True)
        self.dir = self.instances.path / uuids.instance
        self.backend = imagebackend.Backend(use_cow=True)
        image_backend.extend(self.backend.BACKEND)

    def image(self, name='disk.eph0', uuid=uuids.instance):
        return self.backend.by_name(
            objects.Instance(uuid=uuid), name, 'qcow2')

    def create(self, name='disk.eph0', form='ext4', size=1, **kwargs):
        """Create a disk as the driver does; return its path."""
        image = self.image(name, **kwargs)
        os.makedirs(os.path.dirname(image.path), exist_ok=True)
        image.cache(
            fetch_func=functools.partial(
                nova_driver.LibvirtDriver._create_ephemeral,
                fs_label=name.replace('disk.eph', 'ephemeral'), os_type=None),
            filename=f'ephemeral_{size}_40d1d2c', size=size << 30,
            ephemeral_size=size, specified_fs=form)
        return image.path

    def create_swap(self):
        image = self.image('disk.swap')
        self.dir.mkdir(exist_ok=True)
        image.cache(fetch_func=nova_driver.LibvirtDriver._create_swap,
                    filename='swap_64', size=64 << 20, swap_mb=64)
        return image.path

    def found(self, path):
        """Return the file system that blkid finds in a disk."""
        raw = self.instances.path / 'raw'
        processutils.execute('qemu-img', 'convert', '-O', 'raw', path, raw)
        return image_file.filesystem(str(raw))

    def lost(self, name='disk.eph0', base=BASE, written=b''):
        """Make an overlay with a missing base; return its path."""
        base = self.instances.make_base(base)
        path = self.instances.make_disk(
            uuids.instance, name, base, written=written)
        base.unlink()
        return path

    def assert_complete(self, path):
        self.assertEqual('', image_file.qcow2_header(str(path)).backing)
        self.assertEqual([], os.listdir(self.instances.base))
        self.assertEqual([], [
            name for name in os.listdir(os.path.dirname(path))
            if name.startswith('migfix')])


@ddt.ddt
class TestNewDisk(BackendTestCase):

    @ddt.data('ext4', 'xfs', 'vfat')
    def test_new_disk_has_the_requested_file_system(self, form):
        path = self.create('disk.eph1', form)
        found = self.found(path)
        self.assertEqual((form, 'ephemeral1'),
                         (found['TYPE'], found['LABEL']))
        self.assertEqual(1 << 30, image_file.virtual_size(path))
        self.assert_complete(path)

    def test_disks_of_one_size_have_separate_file_systems(self):
        one, other = self.create(), self.create(
            'disk.eph1', 'xfs', uuid=uuids.other)
        self.assertNotEqual(
            self.found(one)['UUID'], self.found(other)['UUID'])
        self.assertEqual('xfs', self.found(other)['TYPE'])

    def test_new_swap_disk_is_complete(self):
        path = self.create_swap()
        self.assertEqual('swap', self.found(path)['TYPE'])
        self.assertEqual(64 << 20, image_file.virtual_size(path))
        self.assert_complete(path)

    def test_blank_base_on_the_host_is_not_used(self):
        blank = self.instances.make_base(mkfs=None)
        path = self.create()
        self.assertEqual('ext4', self.found(path)['TYPE'])
        self.assertEqual({}, image_file.filesystem(str(blank)))

    def test_failed_mkfs_leaves_no_disk(self):
        self.useFixture(fixtures.MockPatch(
            'nova.privsep.fs.unprivileged_mkfs',
            side_effect=processutils.ProcessExecutionError))
        self.assertRaises(processutils.ProcessExecutionError, self.create)
        self.assertEqual([], os.listdir(self.instances.base))
        self.assertNotIn('disk.eph0', os.listdir(self.dir))

    def test_preallocate_images_applies_to_complete_disks(self):
        self.config.config(preallocate_images='space')
        self.useFixture(fixtures.MockPatchObject(
            image_backend.Qcow2, '_can_fallocate', return_value=True))
        path = self.create()
        self.assertGreaterEqual(os.stat(path).st_blocks * 512, 1 << 30)

    def test_glance_image_stays_a_backing_file(self):
        name = 'a' * 40
        base = self.instances.make_base(name)
        self.dir.mkdir()
        image = self.image('disk')
        image.cache(fetch_func=None, filename=name, size=1 << 30,
                    image_id='image')
        self.assertEqual(
            str(base), image_file.qcow2_header(image.path).backing)

    def test_other_backends_stay_those_of_nova(self):
        stock = imagebackend.Backend(use_cow=True).BACKEND
        for name, backend in self.backend.BACKEND.items():
            self.assertEqual(
                stock[name] is not imagebackend.Qcow2,
                backend is stock[name], name)


class TestOverlays(BackendTestCase):
    """With ``[migfix] ephemeral_overlays`` new disks are overlays."""

    def setUp(self):
        super().setUp()
        self.config.config(ephemeral_overlays=True, group='migfix')

    def test_new_disk_is_an_overlay_as_with_nova(self):
        path = self.create()
        self.assertEqual(f'{self.instances.base}/{BASE}',
                         image_file.qcow2_header(path).backing)

    def test_base_that_another_disk_lost_is_not_made_again(self):
        lost = self.lost(written=b'\x07' * 512)
        path = self.create(uuid=uuids.other)
        self.assert_complete(path)
        self.assertEqual('ext4', self.found(path)['TYPE'])
        self.assertTrue(image_file.qcow2_header(str(lost)).backing)

    def test_base_is_not_made_while_a_disk_cannot_be_read(self):
        self.useFixture(fixtures.MockPatchObject(
            disks, 'bases_in_use', side_effect=PermissionError))
        self.assert_complete(self.create())


@ddt.ddt
class TestLostBase(BackendTestCase):

    def test_disk_with_data_on_a_lost_base_is_refused(self):
        path = self.lost(written=b'\x07' * 512)
        before = path.read_bytes()
        error = self.assertRaises(exception.InvalidDiskInfo, self.create)
        for part in ('disk.eph0', uuids.instance, f'{BASE} is missing',
                     'has data', 'from a backup'):
            self.assertIn(part, str(error))
        self.assertEqual(before, path.read_bytes())
        self.assertEqual([], os.listdir(self.instances.base))

    def test_unwritten_disk_gets_a_new_file_system(self):
        path = self.lost('disk.eph1')
        self.create('disk.eph1', 'xfs')
        found = self.found(path)
        self.assertEqual(('xfs', 'ephemeral1'),
                         (found['TYPE'], found['LABEL']))
        self.assert_complete(path)
        self.assertIn('is missing', self.log.output)

    def test_swap_disk_gets_a_new_swap_area_under_its_data(self):
        path = self.lost('disk.swap', 'swap_64', written=b'\x07' * 512)
        self.create_swap()
        self.assertEqual('swap', self.found(path)['TYPE'])
        self.assertTrue(image_file.qcow2_header(str(path)).is_written)
        self.assert_complete(path)

    @ddt.data(PermissionError, OSError(116, 'Stale file handle'))
    def test_inaccessible_base_does_not_count_as_missing(self, error):
        path = self.lost(written=b'\x07' * 512)
        stat = os.stat

        def fail(name, *args, **kwargs):
            if str(name).endswith(BASE):
                raise error
            return stat(name, *args, **kwargs)
        with fixtures.MonkeyPatch('os.stat', fail):
            overlay, = disks.overlays(str(self.dir))
            self.assertFalse(disks.lacks_backing_file(overlay))
        self.assertTrue(path.exists())

    def test_existing_base_is_left_alone(self):
        base = self.instances.make_base()
        path = self.instances.make_disk(
            uuids.instance, 'disk.eph0', base, written=b'\x07' * 512)
        before = base.stat().st_mtime_ns, path.read_bytes()
        self.create()
        self.assertEqual(before, (base.stat().st_mtime_ns, path.read_bytes()))

    def test_complete_disk_gets_no_base(self):
        path = self.create()
        before = os.stat(path).st_ino
        self.create()
        self.assertEqual(before, os.stat(path).st_ino)
        self.assert_complete(path)

    def test_unmodified_nova_makes_a_new_base_under_data(self):
        path = self.lost(written=b'\x07' * 512)
        self.backend = imagebackend.Backend(use_cow=True)
        self.create()
        self.assertEqual([BASE], os.listdir(self.instances.base))
        self.assertTrue(image_file.qcow2_header(str(path)).backing)
