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

import ddt
from nova import objects
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.fixes import kernel_ramdisk
from nova_migfix.tests import fixtures as migfix_fixtures
from nova_migfix.transport import fetch


@ddt.ddt
class TestKernelRamdisk(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.ssh = self.useFixture(migfix_fixtures.FakeSsh())
        self.dir = self.instances.path / uuids.instance
        self.dir.mkdir()
        self.fix = kernel_ramdisk.KernelRamdisk()

    def wanted(self, kernel, ramdisk):
        instance = objects.Instance(
            uuid=uuids.instance, kernel_id=kernel, ramdisk_id=ramdisk)
        return instance, list(
            self.fix.files_to_fetch(instance, str(self.dir), []))

    @ddt.data(('k', 'r', ['kernel', 'ramdisk']), ('k', '', ['kernel']),
              ('', '', []), (None, None, []),
              # Nova boots no guest from a ramdisk without a kernel.
              ('', 'r', []))
    @ddt.unpack
    def test_kernel_and_ramdisk_are_pulled(self, kernel, ramdisk, files):
        _instance, wanted = self.wanted(kernel, ramdisk)
        self.assertEqual([str(self.dir / name) for name in files],
                         [file.path for file in wanted])

    def test_files_are_pulled_from_beside_the_disks_of_the_source(self):
        instance = objects.Instance(
            uuid=uuids.instance, kernel_id='k', ramdisk_id='r')
        self.assertEqual(['/there/kernel', '/there/ramdisk'], [
            file.path for file in self.fix.files_to_fetch(
                instance, str(self.dir), [{'path': '/there/disk'}])])

    def test_existing_kernel_is_not_pulled(self):
        (self.dir / 'kernel').write_bytes(b'bzImage')
        _instance, wanted = self.wanted('k', 'r')
        self.assertEqual(['ramdisk'], [name for file in wanted
                                       for name in file.used_for])

    def test_files_are_put_at_the_paths_that_nova_reads(self):
        source = self.instances.path / 'source'
        self.dir.rename(source)
        for name in ('kernel', 'ramdisk'):
            (source / name).write_bytes(name.encode())
        self.dir.mkdir()
        instance, wanted = self.wanted('k', 'r')
        fetch.fetch(instance, str(self.dir), [
            file._replace(path=str(source / file.used_for[0]))
            for file in wanted], 'source')
        self.assertEqual(b'kernel', (self.dir / 'kernel').read_bytes())
        self.assertEqual(b'ramdisk', (self.dir / 'ramdisk').read_bytes())
        self.assertEqual(1, len(self.ssh.asked))
