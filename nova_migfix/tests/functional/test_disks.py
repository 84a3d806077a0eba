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

"""Local disks keep their bytes in a live migration."""

import os
import time

import fixtures
from nova import conf
from oslo_concurrency import processutils

from nova_migfix.storage import disks
from nova_migfix.tests.functional import base
from nova_migfix.tests.functional import test_source_address

CONF = conf.CONF
ADDRESS = test_source_address.ADDRESS
BASE = 'ephemeral_1_40d1d2c'

#: the content of a file of the source, by its name
CONTENT = b'of the source: %s'


class Disks(test_source_address.LocalDisks):
    """Two ephemeral disks on one base, and an ISO config drive."""

    DISKS = (('disk.eph0', 'qcow2', BASE), ('disk.eph1', 'qcow2', BASE),
             ('disk.config', 'raw', None))


class DisksTestCase(base.MigrationTestCase):

    def setUp(self):
        super().setUp()
        self.flags(live_migration_inbound_addr=ADDRESS, group='libvirt')
        self.disks = self.useFixture(Disks())
        self.pull = self.useFixture(fixtures.MockPatch(
            'nova_migfix.transport.transfer.fetch', autospec=True,
            side_effect=self.bring)).mock
        self.arrived = {}

    @staticmethod
    def bring(_host, paths, directory):
        for path in paths:
            name = os.path.basename(path)
            with open(os.path.join(directory, name), 'wb') as file:
                file.write(CONTENT % name.encode())
                file.truncate(1 << 20)

    def instance_path(self, *names):
        return os.path.join(CONF.instances_path, self.server['id'], *names)

    def assert_cleaned_up(self):
        """Wait until the destination has removed the files of the instance."""
        deadline = time.monotonic() + 120
        while os.path.exists(self.instance_path()):
            self.assertLess(time.monotonic(), deadline, 'files are left')
            time.sleep(0.1)

    def boot(self):
        super().boot(kernel_id=self.glance.image1['id'],
                     ramdisk_id=self.glance.image2['id'])

    def _migrate_stub(self, domain, destination, params, flags):
        # the source's files are removed later, and both hosts share one path
        for name in os.listdir(self.instance_path()):
            with open(self.instance_path(name), 'rb') as file:
                self.arrived[name] = file.read().replace(b'\0', b'')
        super()._migrate_stub(domain, destination, params, flags)


class ArrivalTestCase(DisksTestCase):

    def test_files_are_pulled_at_once_over_the_migration_network(self):
        self.boot()
        self.live_migrate('completed')
        self.pull.assert_called_once()
        host, paths, _directory = self.pull.call_args.args
        self.assertEqual(ADDRESS, host)
        self.assertEqual(
            {self.disks.base_path(BASE), *map(self.instance_path, (
                'disk.config', 'kernel', 'ramdisk'))}, set(paths))
        self.assertEqual([], self.disks.commands)

    def test_files_arrive_before_libvirt_migrates(self):
        self.boot()
        self.live_migrate('completed')
        for name in ('disk.config', 'kernel', 'ramdisk'):
            self.assertIn(CONTENT % name.encode(), self.arrived[name])
        for name in ('disk.eph0', 'disk.eph1'):
            self.assertEqual(b'QFI\xfb', self.arrived[name][:4], name)
            self.assertIn(CONTENT % BASE.encode(), self.arrived[name])

    def test_failed_pull_leaves_the_guest_on_its_source(self):
        self.boot()
        self.pull.side_effect = processutils.ProcessExecutionError(
            stderr='Connection timed out')
        self.live_migrate('failed')
        self.assertEqual('src', self.host())
        self.assertEqual([], self.destination_xmls)
        self.assert_cleaned_up()
        details = self.failed_event('compute_pre_live_migration')['details']
        for part in ('disk.eph0', self.server['id'], ADDRESS,
                     'Connection timed out', 'The guest has not been moved'):
            self.assertIn(part, details)

    def test_migration_succeeds_after_a_failed_pull(self):
        self.boot()
        self.pull.side_effect = OSError(28, 'No space left on device')
        self.live_migrate('failed')
        self.pull.side_effect = self.bring
        self.live_migrate('completed')
        self.assertEqual('dest', self.host())


class UnpatchedDestinationTestCase(DisksTestCase):
    """The destination has not announced that it pulls bases."""

    def setUp(self):
        super().setUp()
        self.complete = self.useFixture(fixtures.MockPatch(
            'nova_migfix.storage.completion.complete', autospec=True)).mock
        self.disk = disks.Overlay('disk.eph0', '/inst/disk.eph0', '/base')
        self.useFixture(fixtures.MockPatch(
            'nova_migfix.fixes.ephemeral._overlays_of', autospec=True,
            return_value=[self.disk]))
        self.lacks_backing_file = self.useFixture(fixtures.MockPatch(
            'nova_migfix.storage.disks.lacks_backing_file', autospec=True,
            return_value=False)).mock
        self.useFixture(fixtures.MockPatch(
            'nova_migfix.storage.disks.is_on_copy', autospec=True,
            return_value=False))

    def test_source_completes_the_disk_for_an_unpatched_destination(self):
        self.dest.driver._capabilities = {}
        self.boot()
        self.live_migrate('completed')
        self.assertEqual(self.disk, self.complete.call_args.args[1])

    def test_source_does_not_complete_the_disk_for_the_plugin(self):
        self.boot()
        self.live_migrate('completed')
        self.complete.assert_not_called()

    def test_source_completes_a_disk_with_a_lost_base(self):
        self.lacks_backing_file.return_value = True
        self.boot()
        self.live_migrate('completed')
        self.assertEqual(self.disk, self.complete.call_args.args[1])

    def test_failed_completion_leaves_the_guest_on_its_source(self):
        self.dest.driver._capabilities = {}
        self.boot()
        self.complete.side_effect = OSError('no space')
        self.live_migrate('failed')
        self.assertEqual('src', self.host())
        self.pull.assert_not_called()


class WithoutFixTestCase(DisksTestCase):
    """Without the fixes Nova creates the files itself."""

    enabled_fixes = ['rollback_state', 'source_address', 'vnic']

    def test_unmodified_nova_pulls_no_files(self):
        self.boot()
        self.live_migrate('completed')
        self.pull.assert_not_called()
        self.assertEqual(b'', self.arrived['disk.config'])
