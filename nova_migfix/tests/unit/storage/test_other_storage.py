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


"""The plugin leaves disks that are no overlays to Nova.

By ``[libvirt] images_type``: raw and flat have the file system in a file of
the instance, lvm in a logical volume, rbd in Ceph. The driver creates,
describes, moves and restarts each with Nova's image backend. Directories
stand in for LVM and Ceph.
"""

import pathlib
from unittest import mock

import ddt
import fixtures
from nova import context
from nova import objects
from nova import privsep
from nova.tests import fixtures as nova_fixtures
from nova.tests.unit import fake_instance
from nova.virt import fake
from nova.virt.libvirt import config as guest_config
from nova.virt.libvirt import driver as nova_driver
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_serialization import jsonutils
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix import driver
from nova_migfix import migration
from nova_migfix.storage import image_file
from nova_migfix.tests import fixtures as migfix_fixtures

BASE = 'ephemeral_1_40d1d2c'
MAPPING = {'dev': 'vdb', 'bus': 'virtio', 'type': 'disk'}


class Volumes(fixtures.Fixture):
    """A volume group that is a directory, each volume a file in it."""

    def _setUp(self):
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        for name, replacement in (
                ('create_volume', self._create),
                ('remove_volumes', self._remove),
                ('get_volume_size', lambda path: pathlib.Path(
                    path).stat().st_size)):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova.virt.libvirt.storage.lvm.{name}', replacement))

    def _create(self, group, name, size, sparse=False):
        processutils.execute(
            'truncate', '--size', size, pathlib.Path(group) / name)

    def _remove(self, paths):
        for path in paths:
            pathlib.Path(path).unlink()


class Pool(fixtures.Fixture):
    """A Ceph pool that is a directory, each image a file in it."""

    def _setUp(self):
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        ceph = self.useFixture(fixtures.MockPatch(
            'nova.storage.rbd_utils.RBDDriver',
            autospec=True)).mock.return_value
        ceph.pool, ceph.rbd_user, ceph.ceph_conf = 'pool', None, None
        ceph.get_mon_addrs.return_value = (['192.0.2.9'], ['6789'])
        ceph.exists.side_effect = lambda name, *_: (self.path / name).exists()
        ceph.size.side_effect = lambda name: (self.path / name).stat().st_size
        ceph.import_image.side_effect = (
            lambda base, name: processutils.execute(
                'cp', base, self.path / name))


class OtherStorageTestCase(testtools.TestCase):
    """One ephemeral disk of an instance that boots from a volume."""

    IMAGES_TYPES = ('raw', 'flat', 'lvm', 'rbd')
    DEVICES = {'ephemerals': [{'size': 1, 'guest_format': None}],
               'block_device_mapping': [], 'swap': None}

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.useFixture(nova_fixtures.LibvirtFixture())
        self.useFixture(migfix_fixtures.PatchedMigrateData())
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.ssh = self.useFixture(migfix_fixtures.FakeSsh())
        self.volumes = self.useFixture(Volumes())
        self.pool = self.useFixture(Pool())
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))
        self.config.config(
            use_cow_images=False, default_ephemeral_format='ext4')
        privsep.sys_admin_pctxt.set_client_mode(False)
        self.addCleanup(privsep.sys_admin_pctxt.set_client_mode, True)
        self.context = context.get_admin_context()
        self.instance = fake_instance.fake_instance_obj(
            self.context, uuid=uuids.instance, os_type=None,
            expected_attrs=['system_metadata'])
        self.instance.flavor = objects.Flavor(
            root_gb=0, ephemeral_gb=1, swap=0, memory_mb=64, vcpus=1,
            extra_specs={})
        self.dir = self.instances.path / uuids.instance
        for method in ('_is_booted_from_volume', '_create_guest'):
            self.nova(method, return_value=True)
        self.driver = driver.LibvirtDriver(fake.FakeVirtAPI())

    def nova(self, method, **behaviour):
        return self.useFixture(fixtures.MockPatchObject(
            nova_driver.LibvirtDriver, method, autospec=True,
            **behaviour)).mock

    def create(self, images_type):
        """Create the disk, then remove its base, if it has one."""
        self.config.config(
            group='libvirt', images_type=images_type, images_rbd_pool='pool',
            # Nova joins it to /dev; an absolute path stays as it is
            images_volume_group=str(self.volumes.path))
        self.driver._create_image(
            self.context, self.instance, {'disk.eph0': MAPPING},
            block_device_info=self.DEVICES)
        for base in self.instances.base.iterdir():
            base.unlink()
        self.before = self.content()

    def backend(self):
        return self.driver.image_backend.by_name(
            self.instance, 'disk.eph0', disk_info_mapping=MAPPING)

    def files(self):
        """Return every file of the instance."""
        return sorted(path for place in (
            self.dir, self.volumes.path, self.pool.path)
            for path in place.glob('*'))

    def content(self):
        """Return the first MiB of each file, with the metadata."""
        found = {}
        for path in self.files():
            with open(path, 'rb') as file:
                found[path] = file.read(1 << 20)
        return found

    def described(self):
        """Return Nova's disk info for the disk in the guest's XML."""
        guest = guest_config.LibvirtConfigGuest()
        guest.add_device(self.backend().libvirt_info('none', {}))
        return self.driver._get_instance_disk_info_from_config(
            guest, self.DEVICES)

    def assert_left_alone(self):
        self.assertTrue(self.before == self.content(), self.files())
        self.assertEqual([], self.ssh.asked)
        self.assertEqual([], list(self.instances.base.iterdir()))


@ddt.ddt
class TestMovedDisk(OtherStorageTestCase):

    @ddt.data(*OtherStorageTestCase.IMAGES_TYPES)
    def test_live_migration_pulls_no_disk(self, images_type):
        self.create(images_type)
        described = self.described()
        self.nova('get_instance_disk_info',
                  return_value=jsonutils.dumps(described))
        self.assertEqual(described, jsonutils.loads(
            self.driver.get_instance_disk_info(self.instance)))
        self.assertEqual(0 if images_type == 'rbd' else 1, len(described))
        there = self.instances.path / 'there'
        there.mkdir()
        nova = self.nova('_create_images_and_backing')
        with migration.incoming(None, is_live=True):
            self.driver._create_images_and_backing(
                self.context, self.instance, str(there), described, 'cut')
        self.assertEqual(described, nova.call_args.args[4])
        self.assertEqual([], list(there.iterdir()))
        self.assert_left_alone()

    @ddt.data(*OtherStorageTestCase.IMAGES_TYPES)
    def test_migration_starts_no_block_pull(self, images_type):
        self.create(images_type)
        self.nova('get_instance_disk_info', return_value='[]')
        self.nova('migrate_disk_and_power_off', return_value='[]')
        with mock.patch.object(self.driver._host, 'get_guest',
                               autospec=True) as get_guest:
            guest = get_guest.return_value
            guest.get_xml_desc.return_value = '<domain/>'
            self.driver.get_instance_disk_info(self.instance)
            self.driver.migrate_disk_and_power_off(
                self.context, self.instance, 'dest', 'flavor', 'network')
        self.assertLessEqual(
            {name for name, *_call in guest.method_calls}, {'get_xml_desc'})
        self.assert_left_alone()

    @ddt.data(*OtherStorageTestCase.IMAGES_TYPES)
    def test_cold_migration_completes_no_disk(self, images_type):
        self.create(images_type)
        self.nova('_is_path_shared_with', return_value=False)
        self.nova('_get_instance_disk_info')
        self.nova('finish_migration')
        self.driver._is_path_shared_with('dest', str(self.dir))
        self.driver._get_instance_disk_info(self.instance, self.DEVICES)
        self.driver.finish_migration(
            self.context, objects.Migration(source_compute='cut'),
            self.instance, jsonutils.dumps(self.described()), 'network',
            'image', False, {}, self.DEVICES)
        self.assert_left_alone()


@ddt.ddt
class TestCreatedDisk(OtherStorageTestCase):

    @ddt.data(*OtherStorageTestCase.IMAGES_TYPES)
    def test_new_disk_has_its_file_system(self, images_type):
        self.create(images_type)
        disk, = (path for path in self.files() if path.name != 'disk.info')
        self.assertEqual('ext4', image_file.filesystem(str(disk))['TYPE'])
        self.assertEqual(1 << 30, disk.stat().st_size)

    @ddt.data(*OtherStorageTestCase.IMAGES_TYPES)
    def test_failed_mkfs_leaves_no_base(self, images_type):
        with mock.patch('nova.privsep.fs.mkfs', autospec=True,
                        side_effect=processutils.ProcessExecutionError), \
                mock.patch('nova.privsep.fs.unprivileged_mkfs',
                           autospec=True,
                           side_effect=processutils.ProcessExecutionError):
            self.assertRaises(processutils.ProcessExecutionError,
                              self.create, images_type)
        self.assertEqual([], list(self.instances.base.iterdir()))
        self.create(images_type)

    @ddt.data(*OtherStorageTestCase.IMAGES_TYPES)
    def test_hard_reboot_leaves_the_disk_alone(self, images_type):
        self.create(images_type)
        nova = self.nova('_hard_reboot')
        self.driver._hard_reboot(
            self.context, self.instance, 'network', self.DEVICES)
        nova.assert_called_once()
        self.assert_left_alone()
