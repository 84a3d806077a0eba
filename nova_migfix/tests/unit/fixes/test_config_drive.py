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
from unittest import mock

import ddt
import fixtures
from nova import objects
from nova.virt.libvirt import driver as nova_driver
from oslo_concurrency import processutils
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.fixes import config_drive
from nova_migfix.storage import image_file
from nova_migfix.tests import fixtures as migfix_fixtures
from nova_migfix.transport import fetch

DRIVE = b'config-2' * 1000
ZEROS = bytes(len(DRIVE))


class ConfigDriveTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.useFixture(migfix_fixtures.FakeSsh())
        self.instance = objects.Instance(
            uuid=uuids.instance, config_drive='True', image_ref='',
            system_metadata={})
        self.fix = config_drive.ConfigDrive()
        self.path = self.instances.path / uuids.instance / 'disk.config'
        self.path.parent.mkdir()


@ddt.ddt
class TestLiveMigration(ConfigDriveTestCase):

    def test_destination_gets_the_config_drive_of_the_source(self):
        self.path.write_bytes(DRIVE)
        there = self.instances.path / 'there'
        there.mkdir()
        fetch.fetch(self.instance, str(there), list(self.fix.files_to_fetch(
            self.instance, str(there), [{'path': str(self.path)}])), 'source')
        self.assertEqual(DRIVE, (there / 'disk.config').read_bytes())
        self.assertIn('The config drive of the source is kept',
                      self.log.output)

    def test_other_disks_are_not_pulled(self):
        self.assertEqual([], list(self.fix.files_to_fetch(
            self.instance, '/there', [{'path': '/here/disk'}])))

    @ddt.data((ZEROS, True), (DRIVE, False))
    @ddt.unpack
    def test_zeroed_config_drive_is_reported(self, content, reported):
        self.path.write_bytes(content)
        self.fix.check_can_live_migrate_source(self.instance, 'host', 'data')
        self.assertEqual(reported, 'hard reboot the instance'
                         in self.log.output)

    def test_guest_without_config_drive_is_not_reported(self):
        self.fix.check_can_live_migrate_source(self.instance, 'host', 'data')
        self.assertEqual('', self.log.output)

    def test_unreadable_config_drive_does_not_refuse_the_migration(self):
        self.path.write_bytes(DRIVE)
        with mock.patch.object(image_file, 'is_zeros', autospec=True,
                               side_effect=OSError('stale handle')):
            self.fix.check_can_live_migrate_source(
                self.instance, 'host', 'data')
        self.assertIn('stale handle', self.log.output)


class TestHardReboot(ConfigDriveTestCase):

    def reboot(self, create):
        driver = mock.create_autospec(
            nova_driver.LibvirtDriver, instance=True)
        driver._create_configdrive.side_effect = create
        self.fix.hard_reboot(
            driver, 'context', self.instance, 'network', None)
        return driver._create_configdrive

    def build(self, context, instance, injection_info):
        # Nova builds no config drive where a file exists
        self.assertFalse(self.path.exists())
        self.path.write_bytes(DRIVE)

    def test_zeroed_config_drive_is_rebuilt(self):
        self.path.write_bytes(ZEROS)
        create = self.reboot(self.build)
        self.assertEqual('network', create.call_args.args[2].network_info)
        self.assertEqual(DRIVE, self.path.read_bytes())
        self.assertEqual(['disk.config'], os.listdir(self.path.parent))

    def test_intact_config_drive_is_not_rebuilt(self):
        self.path.write_bytes(DRIVE)
        self.reboot(self.build).assert_not_called()

    def test_instance_without_config_drive_gets_none(self):
        self.path.write_bytes(ZEROS)
        self.instance.config_drive = ''
        self.reboot(self.build).assert_not_called()

    def test_failed_rebuild_leaves_the_config_drive_as_before(self):
        # The guest starts nevertheless, as with Nova.
        self.path.write_bytes(ZEROS)
        self.reboot(processutils.ProcessExecutionError('no genisoimage'))
        self.assertEqual(ZEROS, self.path.read_bytes())
        self.assertIn('no genisoimage', self.log.output)

    def test_config_drive_is_rebuilt_after_a_killed_nova_compute(self):
        self.path.with_name('disk.config.zeros').write_bytes(ZEROS)
        self.reboot(self.build).assert_called_once()
        self.assertEqual(DRIVE, self.path.read_bytes())
        self.assertEqual(['disk.config'], os.listdir(self.path.parent))
