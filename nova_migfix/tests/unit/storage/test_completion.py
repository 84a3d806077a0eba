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

"""Disks become complete, whether the guest runs or not; on real files."""

import shutil
from unittest import mock

from nova import exception
from nova.virt.libvirt import guest as libvirt_guest
from oslo_concurrency import processutils
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.storage import block_job
from nova_migfix.storage import completion
from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.tests import fixtures as migfix_fixtures


class CompletionTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.base = self.instances.make_base()
        self.path = self.instances.make_disk(
            uuids.instance, 'disk.eph0', self.base, written=b'\x07' * 65536)
        self.overlay, = disks.overlays(str(self.path.parent))
        self.expected = self.instances.path / 'expected'
        processutils.execute(
            'qemu-img', 'convert', '-O', 'raw', self.path, self.expected)

    def free(self, size):
        usage = shutil.disk_usage(self.path.parent)
        return mock.patch.object(shutil, 'disk_usage', autospec=True,
                                 return_value=usage._replace(free=size))

    def assert_complete(self):
        self.assertEqual('', image_file.qcow2_header(str(self.path)).backing)
        processutils.execute('qemu-img', 'compare', self.expected, self.path)


class TestPull(CompletionTestCase):

    def setUp(self):
        super().setUp()
        self.guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
        self.device = self.guest.get_block_device.return_value
        self.device.get_job_info.return_value = None
        self.device.is_job_complete.side_effect = [False, True]
        self.device.rebase.side_effect = self.qemu_pulls

    def qemu_pulls(self, base):
        image_file.flatten(str(self.path), 'qcow2', str(self.path))

    def test_pull_completes_the_disk(self):
        completion.pull(self.guest, self.overlay, bandwidth=7)
        self.device.rebase.assert_called_once_with(None)
        self.assertEqual(7, self.device.REBASE_DEFAULT_BANDWIDTH)
        self.guest.get_block_device.assert_called_once_with(str(self.path))
        self.assert_complete()

    def test_pull_without_base_skips_the_space_check(self):
        self.base.rename(self.instances.path / 'held')
        self.device.rebase.side_effect = lambda base: image_file.flatten(
            str(self.path), 'qcow2', str(self.path),
            backing=str(self.instances.path / 'held'))
        with self.free(0):
            completion.pull(self.guest, self.overlay)
        self.assert_complete()

    def test_pull_without_enough_space_is_refused(self):
        with self.free(1 << 20):
            error = self.assertRaises(
                OSError, completion.pull, self.guest, self.overlay)
        self.assertRegex(str(error), r'up to \d+ MiB will be written, and 1 M')
        self.device.rebase.assert_not_called()

    def test_pull_that_ends_early_is_an_error(self):
        # libvirt only reports that no job exists any more
        self.device.rebase.side_effect = None
        error = self.assertRaises(
            exception.MigrationError, completion.pull, self.guest,
            self.overlay)
        self.assertIn('ended before the disk was complete', str(error))

    def test_pull_of_a_killed_nova_compute_is_waited_for(self):
        self.device.get_job_info.return_value = mock.Mock(cur=1)
        self.device.is_job_complete.side_effect = (
            lambda: self.qemu_pulls(None) or True)
        completion.pull(self.guest, self.overlay)
        self.device.rebase.assert_not_called()
        self.assert_complete()

    def test_pull_is_aborted_if_libvirt_does_not_answer(self):
        self.device.is_job_complete.side_effect = OSError('libvirt is gone')
        self.assertRaises(
            OSError, completion.pull, self.guest, self.overlay)
        self.device.abort_job.assert_called_once_with()

    def test_pull_without_progress_is_aborted(self):
        self.device.is_job_complete.side_effect = lambda: False
        with mock.patch.object(block_job, '_STALL_TIMEOUT', 0.3):
            error = self.assertRaises(
                TimeoutError, completion.pull, self.guest, self.overlay)
        self.assertIn('no progress', str(error))
        self.device.abort_job.assert_called_once_with()

    def test_slow_pull_with_progress_is_not_aborted(self):
        jobs = iter(range(100))
        self.device.get_job_info.side_effect = [None] + [
            mock.Mock(cur=cur) for cur in range(100)]
        self.device.is_job_complete.side_effect = lambda: next(jobs) == 4
        with mock.patch.object(block_job, '_STALL_TIMEOUT', 0.3):
            completion.pull(self.guest, self.overlay)
        self.device.abort_job.assert_not_called()


class TestConvert(CompletionTestCase):

    def test_convert_completes_the_disk(self):
        inode = self.path.stat().st_ino
        completion.convert(self.overlay)
        self.assertNotEqual(inode, self.path.stat().st_ino)
        self.assert_complete()

    def test_convert_without_space_for_a_copy_works_in_place(self):
        inode = self.path.stat().st_ino
        needed = image_file.flat_size(str(self.path))
        with mock.patch.object(image_file, 'flat_size', autospec=True,
                               return_value=needed + (1 << 40)):
            completion.convert(self.overlay)
        self.assertEqual(inode, self.path.stat().st_ino)
        self.assert_complete()

    def test_convert_without_space_for_the_base_is_refused(self):
        before = self.path.read_bytes()
        with self.free(1 << 20):
            self.assertRaises(OSError, completion.convert, self.overlay)
        self.assertEqual(before, self.path.read_bytes())

    def test_convert_passes_its_process_to_the_caller(self):
        started = mock.Mock()
        completion.convert(self.overlay, on_execute=started)
        self.assertTrue(started.called)
