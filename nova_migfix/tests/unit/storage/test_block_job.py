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

"""Disks of running guests are completed by a block copy; on real files."""

import os
import shutil
from unittest import mock

import ddt
import fixtures
from nova import exception
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import host as libvirt_host
from oslo_concurrency import processutils
from oslo_utils.fixture import uuidsentinel as uuids
from oslo_utils import units
import testtools

from nova_migfix.storage import block_job
from nova_migfix.storage import completion
from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.storage import scratch
from nova_migfix.tests import fake_qemu
from nova_migfix.tests import fixtures as migfix_fixtures

_SIZE = 64 * units.Mi


class BlockJobTestCase(testtools.TestCase):
    """A running guest with a disk on a raw base."""

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.base = self.instances.make_base(size=_SIZE, mkfs=None)
        processutils.execute(
            'qemu-io', '-f', 'raw', '-c', 'write -P 99 30M 128k', self.base)
        self.path = self.instances.make_disk(
            uuids.instance, 'disk.eph0', self.base, size=_SIZE)
        self.overlay, = disks.overlays(str(self.path.parent))
        self.qemu = self.useFixture(fake_qemu.Qemu(self.path))
        self.guest = self.qemu.guest
        self.qemu.write()
        self.useFixture(fixtures.MockPatchObject(block_job, '_POLL', 0.01))
        self.useFixture(fixtures.MockPatchObject(
            block_job, '_STALL_TIMEOUT', 3))
        # a copy of such a small disk counts as cheaper, too
        self.useFixture(fixtures.MockPatchObject(
            completion, '_COPY_OVERHEAD', 0))

    def complete(self, **kwargs):
        """Complete the disk as a newly started nova-compute does."""
        found = list(disks.overlays(str(self.path.parent)))
        overlay, = found or [self.overlay]
        completion.complete(self.guest, overlay, **kwargs)

    def lay_on_copy(self, **kwargs):
        return block_job.lay_on_copy(self.guest, self.overlay, **kwargs)

    def fail(self, step, message='it failed'):
        """Make libvirt refuse a step until the hook is removed."""
        def refuse():
            raise fake_qemu.failure(message)
        self.qemu.hooks[step] = refuse

    def free(self, size):
        usage = shutil.disk_usage(self.path.parent)
        return mock.patch.object(shutil, 'disk_usage', autospec=True,
                                 return_value=usage._replace(free=size))

    @property
    def steps(self):
        return [step for step, *_details in self.qemu.asked]

    def files(self):
        """Return the files of the instance, without scratch files."""
        return {name for name in os.listdir(self.path.parent)
                if not name.startswith('migfix-')
                and not name.endswith('.lock')}

    def assert_same_bytes(self, image):
        processutils.execute('qemu-img', 'compare', self.qemu.expected, image)

    def assert_complete(self):
        """Assert that the guest runs on the complete disk with all bytes."""
        self.assertEqual('', image_file.qcow2_header(str(self.path)).backing)
        self.assertTrue(self.qemu.runs_on(self.path), self.qemu.source)
        self.assertIsNone(self.qemu.job)
        self.assertEqual({'disk.eph0', 'disk.info'}, self.files())
        self.assert_same_bytes(self.path)

    def assert_as_before(self):
        """Assert that the disk is on its base, without a job or a copy."""
        self.assertEqual(str(self.base),
                         image_file.qcow2_header(str(self.path)).backing)
        self.assertTrue(self.qemu.runs_on(self.path), self.qemu.source)
        self.assertIsNone(self.qemu.job)
        self.assertEqual({'disk.eph0', 'disk.info'},
                         set(os.listdir(self.path.parent)))
        self.assert_same_bytes(self.path)

    def assert_on_copy(self):
        """Assert that the disk is on a copy that has all bytes."""
        overlay, = disks.overlays(str(self.path.parent))
        self.assertTrue(disks.is_on_copy(overlay))
        self.assertTrue(disks.is_written(overlay))
        self.assert_same_bytes(self.path)


@ddt.ddt
class TestKilledNovaCompute(BlockJobTestCase):
    """A nova-compute is killed at a step, and another one starts."""

    def kill_at(self, step):
        self.qemu.kill_at(step, self.complete)
        self.assert_same_bytes(self.qemu.image)

    @ddt.data(*fake_qemu.STEPS)
    def test_disk_is_completed_by_the_next_nova_compute(self, step):
        self.kill_at(step)
        self.complete()
        self.assert_complete()

    @ddt.data(*fake_qemu.STEPS)
    def test_name_of_the_disk_leads_to_all_data(self, step):
        # for a guest that starts again after its host lost power
        self.kill_at(step)
        self.assert_same_bytes(self.path)

    def test_disk_is_completed_after_one_kill_at_each_step(self):
        for step in fake_qemu.STEPS:
            self.kill_at(step)
        self.complete()
        self.assert_complete()

    @ddt.data(*fake_qemu.STEPS)
    def test_disk_is_completed_after_the_guest_was_restarted(self, step):
        self.kill_at(step)
        self.qemu.restart()
        self.assert_same_bytes(self.qemu.image)
        self.complete()
        self.assert_complete()

    @ddt.data('pivot asked', 'pivoted', 'snapshot made', 'pull runs')
    def test_data_is_copied_only_once(self, step):
        self.kill_at(step)
        self.complete()
        self.assertNotIn('copy asked', self.steps)

    def test_running_pull_continues_after_a_kill(self):
        self.kill_at('pull runs')
        self.complete()
        self.assertEqual(['pull done'], [
            step for step in self.steps if step != 'pull runs'])

    @ddt.data('pull asked', 'pull runs')
    def test_pull_without_a_copy_is_completed_by_the_next_nova_compute(
            self, step):
        with self.free(completion.allocated(str(self.base))):
            self.kill_at(step)
            self.complete()
        self.assert_complete()

    def test_pull_is_completed_where_copies_are_refused(self):
        self.fail('copy asked')
        self.kill_at('pull runs')
        self.complete()
        self.assert_complete()

    @ddt.data('pivot asked', 'pivoted', 'snapshot made', 'pull runs')
    def test_copy_is_completed_without_its_base(self, step):
        self.kill_at(step)
        self.base.unlink()
        self.complete()
        self.assert_complete()

    @ddt.data(*fake_qemu.STEPS[:-1])
    def test_disk_is_converted_after_the_guest_stopped(self, step):
        self.kill_at(step)
        overlay, = disks.overlays(str(self.path.parent))
        completion.convert(overlay)
        self.assertEqual('', image_file.qcow2_header(str(self.path)).backing)
        self.assertEqual({'disk.eph0', 'disk.info'}, self.files())
        self.assert_same_bytes(self.path)


class TestBlockCopy(BlockJobTestCase):

    def test_guest_continues_with_the_disk_on_a_copy(self):
        overlay = self.lay_on_copy()
        self.assertEqual(
            self.overlay._replace(backing=self.overlay.copy), overlay)
        self.assertTrue(self.qemu.runs_on(self.path))
        self.assertEqual({'disk.eph0', 'disk.info', 'ephemeral.disk.eph0'},
                         set(os.listdir(self.path.parent)))
        self.assert_same_bytes(self.qemu.image)
        self.assert_on_copy()

    def test_block_copy_has_no_backing_file(self):
        self.lay_on_copy()
        self.assertEqual(
            '', image_file.qcow2_header(self.overlay.copy).backing)

    def test_disk_is_complete_after_copy_and_pull(self):
        self.complete()
        self.assertEqual(list(fake_qemu.STEPS), self.steps)
        self.assert_complete()

    def details(self, wanted):
        found, = (details for step, *details in self.qemu.asked
                  if step == wanted)
        return found

    def test_bandwidth_bounds_copy_and_pull(self):
        # bytes for the copy, MiB for the pull
        self.complete(bandwidth=7)
        self.assertEqual({'bandwidth': 7 * units.Mi},
                         self.details('copy asked')[1])
        self.assertEqual([7], self.details('pull asked'))

    def test_bandwidth_is_unlimited_by_default(self):
        self.complete()
        self.assertEqual({}, self.details('copy asked')[1])
        self.assertEqual([0], self.details('pull asked'))

    def test_progress_of_copy_and_pull_is_reported(self):
        seen = []
        self.complete(progress=lambda *job: seen.append(job))
        self.assertEqual({(2, 2)}, set(seen))
        self.assertEqual(2, len(seen))

    def test_copy_is_not_begun_without_exchange_of_names(self):
        with mock.patch.object(scratch, 'exchange', autospec=True,
                               side_effect=OSError(22, 'Invalid argument')):
            self.complete()
        self.assertNotIn('copy asked', self.steps)
        self.assert_complete()

    def test_file_of_an_earlier_copy_is_not_reused(self):
        processutils.execute('qemu-img', 'create', '-f', 'qcow2',
                             self.overlay.copy, str(_SIZE))
        processutils.execute('qemu-io', '-c', 'write -P 1 0 4M',
                             self.overlay.copy)
        self.complete()
        self.assert_complete()


class TestFailedStep(BlockJobTestCase):
    """A step fails; the guest keeps running; its disk is completed later."""

    def assert_left_as_before(self, error):
        self.assertRaises(error, self.lay_on_copy)
        self.assert_as_before()

    def assert_pulled(self):
        self.complete()
        self.assertIn('pull done', self.steps)
        self.assertNotIn('pivoted', self.steps)
        self.assert_complete()

    def test_copy_refused_by_an_old_libvirt_leaves_the_disk_as_before(self):
        self.fail('copy asked', 'unsupported flags (0xe)')
        self.assert_left_as_before(fakelibvirt.libvirtError)
        self.assert_pulled()

    def test_copy_without_space_leaves_the_disk_as_before(self):
        self.useFixture(fixtures.MockPatchObject(
            image_file, 'virtual_size', autospec=True, side_effect=OSError))
        self.assert_left_as_before(OSError)
        self.assert_pulled()

    def test_copy_that_ends_early_leaves_the_disk_as_before(self):
        self.qemu.hooks['copy runs'] = self.qemu.end_job
        error = self.assertRaises(exception.MigrationError, self.lay_on_copy)
        self.assertIn('the block copy ended early', str(error))
        self.assert_as_before()
        self.assert_pulled()

    def test_copy_without_progress_is_aborted(self):
        self.qemu.stuck = True
        with mock.patch.object(block_job, '_STALL_TIMEOUT', 0.1):
            self.assert_left_as_before(TimeoutError)

    def test_pull_without_progress_is_aborted(self):
        self.qemu.hooks['pull asked'] = lambda: setattr(
            self.qemu, 'stuck', True)
        with mock.patch.object(block_job, '_STALL_TIMEOUT', 0.1):
            self.assertRaises(TimeoutError, self.complete)
        self.assertIsNone(self.qemu.job)
        self.assert_on_copy()
        self.qemu.stuck, self.qemu.hooks = False, {}
        self.complete()
        self.assert_complete()

    def test_interrupted_copy_leaves_the_disk_as_before(self):
        def interrupt(*_job):
            raise KeyboardInterrupt
        self.assertRaises(
            KeyboardInterrupt, self.complete, progress=interrupt)
        self.assert_as_before()

    def test_progress_that_raises_ends_copy_and_pull(self):
        progress = mock.Mock(side_effect=ValueError)
        self.assertRaises(ValueError, self.complete, progress=progress)
        self.assert_as_before()

    def test_failed_pivot_leaves_the_disk_as_before(self):
        self.fail('pivot asked')
        self.assert_left_as_before(fakelibvirt.libvirtError)
        self.assert_pulled()

    def test_disk_is_completed_after_a_failed_pivot_and_abort(self):
        self.fail('pivot asked')
        self.fail('abort asked')
        self.assertRaises(fakelibvirt.libvirtError, self.complete)
        self.assertEqual('copy', self.qemu.job)
        self.assertTrue(os.path.exists(self.overlay.copy))
        self.assert_on_copy()
        self.qemu.hooks = {}
        self.complete()
        self.assert_complete()

    def test_disk_is_completed_after_a_pivot_reported_as_failed(self):
        self.fail('pivoted', 'timed out')
        self.assertRaises(fakelibvirt.libvirtError, self.complete)
        self.assertTrue(self.qemu.runs_on(self.overlay.copy))
        self.assert_on_copy()
        self.qemu.hooks = {}
        self.complete()
        self.assert_complete()

    def test_disk_is_completed_after_libvirt_ended_during_the_pivot(self):
        def gone():
            for step in ('looked at', 'abort asked', 'pivot asked'):
                self.fail(step, 'End of file while reading data')
            self.qemu.hooks['looked at']()
        self.qemu.hooks['pivot asked'] = gone
        self.assertRaises(fakelibvirt.libvirtError, self.complete)
        self.assert_on_copy()
        self.qemu.hooks = {}
        self.complete()
        self.assert_complete()

    def test_disk_is_completed_after_a_failed_snapshot(self):
        self.fail('snapshot asked')
        self.assertRaises(fakelibvirt.libvirtError, self.complete)
        self.assertNotIn('pull asked', self.steps)
        self.assertTrue(self.qemu.runs_on(self.overlay.copy))
        self.assert_on_copy()
        self.qemu.hooks = {}
        self.complete()
        self.assert_complete()

    def test_disk_is_completed_after_a_pull_that_ends_early(self):
        self.qemu.hooks['pull runs'] = self.qemu.end_job
        error = self.assertRaises(exception.MigrationError, self.complete)
        self.assertIn('before the disk was complete', str(error))
        self.assert_on_copy()
        self.qemu.hooks = {}
        self.complete()
        self.assert_complete()


@ddt.ddt
class TestCopyOrPull(BlockJobTestCase):

    def test_disk_is_pulled_where_a_copy_has_no_space(self):
        with self.free(completion.allocated(str(self.base))):
            self.complete()
        self.assertEqual(['pull asked', 'pull runs', 'pull done'], self.steps)
        self.assert_complete()

    def test_disk_with_a_lost_base_is_pulled(self):
        self.base.unlink()
        self.complete()
        self.assertEqual(['pull asked', 'pull runs', 'pull done'], self.steps)
        self.assert_complete()

    # sizes in MiB: of the disk, its data, the free space
    @ddt.data(
        (1 << 20, 0, 0, True),
        (1 << 20, 100 << 10, 1 << 20, True),
        # much data
        (1 << 20, 130 << 10, 1 << 20, False),
        (1 << 20, 127 << 10, 1 << 20, True),
        # small
        (4 << 10, 0, 1 << 20, False),
        ((4 << 10) + 1, 0, 1 << 20, True),
        (12 << 10, 1 << 10, 1 << 20, False),
        ((12 << 10) + 1, 1 << 10, 1 << 20, True),
        # little space: the data exists twice for a while
        (1 << 20, 1 << 10, 2 << 10, True),
        (1 << 20, 1 << 10, (2 << 10) - 1, False),
    )
    @ddt.unpack
    def test_large_disk_with_little_data_is_copied(
            self, size, data, free, copied):
        self.assertEqual(copied, self.is_copied(size, data, free))

    def test_disk_with_a_lost_base_is_not_copied(self):
        self.base.unlink()
        self.assertFalse(self.is_copied(1 << 20, 0, 1 << 20))

    def is_copied(self, size, data, free):
        with mock.patch.multiple(
                image_file, autospec=True,
                virtual_size=mock.DEFAULT, flat_size=mock.DEFAULT) as sizes, \
                mock.patch.object(completion, '_COPY_OVERHEAD', 4 * units.Gi):
            sizes['virtual_size'].return_value = size * units.Mi
            sizes['flat_size'].return_value = data * units.Mi
            with self.free(free * units.Mi):
                return completion._is_copy_cheaper(self.overlay)

    @ddt.data(OSError('gone'), processutils.ProcessExecutionError())
    def test_disk_that_cannot_be_measured_is_pulled(self, error):
        with mock.patch.object(image_file, 'flat_size', autospec=True,
                               side_effect=error):
            self.assertFalse(completion._is_copy_cheaper(self.overlay))


@ddt.ddt
class TestStartAfterKill(BlockJobTestCase):
    """A nova-compute starts after a previous one was killed."""

    def setUp(self):
        super().setUp()
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host.list_guests.return_value = [self.guest]
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))

    def go_on(self):
        completion.go_on(self.host)

    @ddt.data('copy asked', 'copy runs')
    def test_unused_copy_is_removed(self, step):
        self.qemu.kill_at(step, self.complete)
        for left in self.path.parent.glob('migfix-*'):
            shutil.rmtree(left)     # as scratch.sweep does
        self.go_on()
        self.assert_as_before()

    @ddt.data('pivot asked', 'pivoted', 'snapshot made', 'pull runs')
    def test_disk_on_a_copy_is_completed(self, step):
        self.qemu.kill_at(step, self.complete)
        self.go_on()
        self.assert_complete()

    def test_copy_of_a_complete_disk_is_removed(self):
        self.qemu.kill_at('pull done', self.complete)
        self.assertTrue(os.path.exists(self.overlay.copy))
        self.go_on()
        self.assert_complete()

    def test_start_leaves_other_disks_unchanged(self):
        self.go_on()
        self.assert_as_before()
        self.assertEqual([], self.steps)

    def test_start_leaves_the_disk_of_a_stopped_guest_unchanged(self):
        self.qemu.kill_at('pivoted', self.complete)
        self.host.list_guests.return_value = []
        self.go_on()
        self.assert_on_copy()

    def test_disk_that_another_process_completes_is_not_touched(self):
        self.qemu.kill_at('pivoted', self.complete)
        with scratch.locked(f'{self.overlay.copy}.lock'):
            self.go_on()
        self.assert_on_copy()
        self.assertIn('Could not finish completing disk.eph0 of instance '
                      f'{uuids.instance}', self.log.output)

    def test_removed_copy_is_made_again(self):
        # as by an operator, or for lack of space
        self.qemu.kill_at('pivot asked', self.complete)
        self.qemu.end_job()
        self.qemu.write()
        self.go_on()
        self.assert_complete()
