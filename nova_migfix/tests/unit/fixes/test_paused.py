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

from unittest import mock

import ddt
from nova.compute import power_state
from nova import exception
from nova import objects
from nova.virt.libvirt import config as vconfig
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.fixes import paused

# CPU time in nanoseconds.
NEVER_RAN = 900_000
HAS_RUN = 60_000_000

DISK, CD_ROM, VOLUME = ('file', 'disk'), ('file', 'cdrom'), ('block', 'disk')


@ddt.ddt
class TestPaused(testtools.TestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host.has_min_version.side_effect = (
            lambda hv_ver: hv_ver <= self.qemu)
        self.qemu = (7, 2, 22)
        self.guest = self.host.get_guest.return_value
        self.guest.get_power_state.return_value = power_state.PAUSED
        self.vcpus(NEVER_RAN, NEVER_RAN)

    def vcpus(self, *times):
        self.guest.get_vcpus_info.return_value = [
            libvirt_guest.VCPUInfo(id=number, cpu=0, state=1, time=time)
            for number, time in enumerate(times)]

    def check(self, *disks, block_migration=True):
        self.guest.get_all_disks.return_value = []
        for source_type, source_device in disks:
            disk = vconfig.LibvirtConfigGuestDisk()
            disk.source_type = source_type
            disk.source_device = source_device
            self.guest.get_all_disks.return_value.append(disk)
        paused.Paused().check_can_live_migrate_source(
            objects.Instance(uuid=uuids.guest, host='compute1'), self.host,
            objects.LibvirtLiveMigrateData(block_migration=block_migration))

    def assert_refused(self, *disks, **kwargs):
        error = self.assertRaises(
            exception.MigrationPreCheckError, self.check, *disks, **kwargs)
        for part in (uuids.guest, 'compute1', 'QEMU before 10.0', 'Unpause',
                     'migrate it cold'):
            self.assertIn(part, str(error))

    @ddt.data([DISK, CD_ROM], [DISK, VOLUME])
    def test_guest_with_a_disk_that_is_not_copied_is_refused(self, disks):
        self.assert_refused(*disks)

    def test_guest_on_shared_storage_is_refused(self):
        self.assert_refused(DISK, block_migration=False)

    def test_guest_whose_disks_are_copied_moves(self):
        self.check(DISK, DISK)

    def test_guest_that_has_run_moves(self):
        self.vcpus(NEVER_RAN, HAS_RUN)
        self.check(DISK, CD_ROM)

    @ddt.data(power_state.RUNNING, power_state.SHUTDOWN)
    def test_guest_that_is_not_paused_moves(self, state):
        self.guest.get_power_state.return_value = state
        self.check(DISK, CD_ROM)

    def test_guest_of_a_repaired_qemu_moves(self):
        self.qemu = (10, 0, 0)
        self.check(DISK, CD_ROM)
