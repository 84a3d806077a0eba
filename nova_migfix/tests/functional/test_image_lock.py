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

"""QEMU locks the images of a running guest, and those of a moved one later."""

import pathlib

import fixtures

from nova_migfix.abi import image_lock
from nova_migfix.tests.functional.tls import base
from nova_migfix.tests import qemu_pair


class ImageLockTestCase(base.QemuTestCase):

    def setUp(self):
        super().setUp()
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.images = [directory / 'disk', directory / 'disk.config']
        for image in self.images:
            image.write_bytes(bytes(65536))
        disk, cd_rom = self.images
        self.pair = self.useFixture(qemu_pair.Pair(qemu_pair.MIB * 16, (
            '-S', '-drive', f'file={disk},format=raw,if=virtio',
            '-drive', f'file={cd_rom},format=raw,media=cdrom,read-only=on')))

    def assert_locked(self, expected):
        self.assertEqual([expected] * 2, [
            image_lock.is_locked(str(image)) for image in self.images])

    def test_paused_guest_holds_locks_until_it_migrates(self):
        self.assert_locked(True)
        # libvirt uses this for each guest
        self.pair.migrate('late-block-activate')
        self.assertEqual('completed', self.pair.wait(
            *qemu_pair.ENDED)['status'])
        self.assert_locked(False)
        self.pair.destination.ask('cont')
        self.assert_locked(True)
