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

import fcntl
import os
import struct
from unittest import mock

import ddt
import fixtures
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

ON_CEPH = 'pool/image'


def lock_as_qemu_does(path):
    """Lock an image for a reader that denies writing to others.

    :returns: the file descriptor that holds the lock
    """
    image = os.open(path, os.O_RDWR)
    for byte in (100, 201):
        fcntl.fcntl(image, fcntl.F_OFD_SETLK, struct.pack(
            'hhqqi0q', fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
    return image


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
        self.guest.get_all_disks.return_value = []
        self.vcpus(NEVER_RAN, NEVER_RAN)
        self.directory = self.useFixture(fixtures.TempDir())

    def vcpus(self, *times):
        self.guest.get_vcpus_info.return_value = [
            libvirt_guest.VCPUInfo(id=number, cpu=0, state=1, time=time)
            for number, time in enumerate(times)]

    def disk(self, **source):
        disk = vconfig.LibvirtConfigGuestDisk()
        for name, value in source.items():
            setattr(disk, name, value)
        self.guest.get_all_disks.return_value.append(disk)

    def image(self, name, active):
        path = self.directory.join(name)
        with open(path, 'wb') as file:
            file.truncate(65536)
        if active:
            self.addCleanup(os.close, lock_as_qemu_does(path))
        self.disk(source_path=path)

    def check(self):
        paused.Paused().check_can_live_migrate_source(
            objects.Instance(uuid=uuids.guest, host='compute1'), self.host,
            objects.LibvirtLiveMigrateData())

    def assert_refused(self):
        error = self.assertRaises(
            exception.MigrationPreCheckError, self.check)
        for part in (uuids.guest, 'compute1', 'QEMU before 10.0', 'Unpause',
                     'migrate it cold'):
            self.assertIn(part, str(error))

    def test_guest_with_inactive_images_is_refused(self):
        self.image('disk', active=False)
        self.image('disk.config', active=False)
        self.assert_refused()

    def test_guest_with_one_inactive_image_is_refused(self):
        self.image('disk', active=True)
        self.image('disk.config', active=False)
        self.assert_refused()

    def test_guest_with_active_images_moves(self):
        self.image('disk', active=True)
        self.image('disk.config', active=True)
        self.check()

    def test_empty_drive_has_no_image(self):
        self.image('disk', active=True)
        self.disk(source_device='cdrom')
        self.check()

    def test_guest_on_ceph_that_never_ran_is_refused(self):
        self.image('disk', active=True)
        self.disk(source_type='network', source_name=ON_CEPH)
        self.assert_refused()

    def test_guest_on_ceph_that_has_run_moves(self):
        self.vcpus(NEVER_RAN, HAS_RUN)
        self.disk(source_type='network', source_name=ON_CEPH)
        self.check()

    def test_image_that_nova_cannot_read_is_unknown(self):
        self.disk(source_path=self.directory.join('missing'))
        self.assert_refused()
        self.vcpus(HAS_RUN)
        self.check()

    @ddt.data(power_state.RUNNING, power_state.SHUTDOWN)
    def test_guest_that_is_not_paused_moves(self, state):
        self.guest.get_power_state.return_value = state
        self.image('disk', active=False)
        self.check()

    def test_guest_of_a_repaired_qemu_moves(self):
        self.qemu = (10, 0, 0)
        self.image('disk', active=False)
        self.check()
