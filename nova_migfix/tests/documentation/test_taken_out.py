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

"""The commands for the removal of the patches."""

import subprocess

import testtools

from nova_migfix.tests.documentation import machine
from nova_migfix.tests import pages


class RemovedPatchesTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.host = self.useFixture(machine.Host('compute1'))
        try:
            self.host.run(['true'])
        except AssertionError as error:
            self.skipTest(f'no mount namespace of our own: {error}')

    def lay(self, disk, base):
        """Make an overlay on a base, or a complete disk."""
        path = self.host.instances / disk
        path.parent.mkdir(exist_ok=True)
        below = []
        if base:
            (self.host.base / base).touch()
            below = ['-F', 'raw', '-b',
                     f'/var/lib/nova/instances/_base/{base}']
        subprocess.run(['qemu-img', 'create', '-q', '-u', '-f', 'qcow2',
                        *below, path, '1G'], check=True, timeout=60)

    def test_commands_list_the_backing_files_in_use(self):
        self.lay('one/disk.eph0', 'ephemeral_1_f3c01a7b')
        self.lay('two/disk.local', 'ephemeral_1_40d1d2c')
        self.lay('two/disk.eph1', None)
        (self.host.base / 'ephemeral_2_f3c01a7b').touch()
        *_, printed = self.host.run([
            command for command, _ in pages.commands('patches/images.rst')])
        self.assertEqual(
            '/var/lib/nova/instances/_base/ephemeral_1_40d1d2c '
            'two/disk.local\n'
            '/var/lib/nova/instances/_base/ephemeral_1_f3c01a7b '
            'one/disk.eph0\n', printed)
