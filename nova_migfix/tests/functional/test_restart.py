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


"""Old overlays: bases are kept, disks completed, or starts refused."""

import contextlib
import shutil

import ddt
from nova import context
from oslo_concurrency import processutils

from nova_migfix.storage import image_file
from nova_migfix.tests.functional import storage

#: all but the fix for ephemeral disks
WITHOUT = ['config_drive', 'kernel_ramdisk', 'source_address']

START = {'os-start': None}
HARD_REBOOT = {'reboot': {'type': 'HARD'}}
NO_SPACE = 'No space left on device'


class RestartTestCase(storage.StorageTestCase):

    overlays = True

    def stop(self):
        self.server = self._stop_server(self.server)

    def is_running(self):
        return bool(self.source_domain().isActive())

    def assert_changed(self, image, name='disk.eph0'):
        """Assert that the guest now reads other bytes than those."""
        self.assertRaises(
            processutils.ProcessExecutionError, processutils.execute,
            'qemu-img', 'compare', image, self.path(name))

    @contextlib.contextmanager
    def untouched(self, name='disk.eph0'):
        """Assert that the disk stays the same file with the same bytes."""
        path = self.path(name)
        before = self.backing(name), path.read_bytes()
        self.assertIsNotNone(before[0])
        yield
        self.assertEqual(before, (self.backing(name), path.read_bytes()))

    def stay_on_the_source(self):
        """Make a resize stay on the source."""
        self.flags(allow_resize_to_same_host=True)
        service, = self.api.get_services(host='dest', binary='nova-compute')
        self.api.put_service(service['id'], {'status': 'disabled'})

    def resize(self):
        self.move(resize={'flavorRef': self._create_flavor(
            disk=2, ephemeral=8)})

    def revert(self, status='ACTIVE'):
        self.api.post_server_action(self.server['id'], {'revertResize': None})
        self.server = self._wait_for_state_change(self.server, status)


@ddt.ddt
class BaseLostWhileRunningTestCase(RestartTestCase):
    """The backing file is removed; QEMU still has it open."""

    def boot_and_lose(self, *ephemerals):
        self.boot(*ephemerals or (1,))
        self.write()
        before = self.image()
        self.lose_base()
        return before

    def test_stop_completes_a_disk_with_a_lost_base(self):
        before = self.boot_and_lose()
        self.stop()
        self.assertEqual([str(self.path())], self.jobs.pulled)
        self.assert_kept(before, host='src')
        self.act(**START)
        self.assertEqual('ACTIVE', self.server['status'])
        self.assert_kept(before, host='src')
        self.assertEqual([], self.bases())

    def test_hard_reboot_completes_a_disk_with_a_lost_base(self):
        before = self.boot_and_lose()
        self.act(**HARD_REBOOT)
        self.assertEqual([str(self.path())], self.jobs.pulled)
        self.assertEqual('ACTIVE', self.server['status'])
        self.assert_kept(before, host='src')
        self.assertEqual([], self.bases())

    def test_unwritten_disk_with_a_lost_base_keeps_its_file_system(self):
        self.boot((1, 'xfs'))
        before = self.image()
        self.lose_base()
        self.act(**HARD_REBOOT)
        self.assert_kept(before, host='src')

    def test_only_the_disk_with_a_lost_base_is_completed(self):
        before = self.boot_and_lose(1, 2)
        with self.untouched('disk.eph1'):
            self.stop()
        self.assertEqual([str(self.path())], self.jobs.pulled)
        self.assert_kept(before, host='src')

    def test_swap_disk_of_a_running_guest_gets_a_new_swap_area(self):
        self.boot(1, swap=64)
        self.lose_base('disk.swap')
        self.act(**HARD_REBOOT)
        self.assertEqual('ACTIVE', self.server['status'])
        self.assertEqual([], self.jobs.pulled)
        self.assertIsNone(self.backing('disk.swap'))
        self.assert_has('swap', None, 'disk.swap')

    @ddt.data({'os-stop': None}, HARD_REBOOT, {'shelve': None},
              {'migrate': None})
    def test_guest_with_an_incompletable_disk_keeps_running(self, action):
        self.boot_and_lose()
        self.jobs.failing = NO_SPACE
        with self.untouched():
            self.act(**action)
        for part in (f'disk.eph0 of instance {self.server["id"]}', NO_SPACE):
            self.assertIn(part, self.fault())
        self.assertEqual('ACTIVE', self.server['status'])
        self.assertTrue(self.is_running())

    def test_stop_succeeds_once_there_is_space(self):
        before = self.boot_and_lose()
        self.jobs.failing = NO_SPACE
        self.act(**{'os-stop': None})
        self.jobs.failing = ''
        self.stop()
        self.assert_kept(before, host='src')

    def test_rebuild_of_a_running_guest_needs_no_base(self):
        self.boot_and_lose()
        self.jobs.failing = NO_SPACE
        self.act(rebuild={'imageRef': self.upload()})
        self.assertEqual('ACTIVE', self.server['status'])
        self.assert_has('ext4', 'ephemeral0')

    def test_deletion_of_a_running_guest_needs_no_base(self):
        self.boot_and_lose()
        self.jobs.failing = NO_SPACE
        self._delete_server(self.server)
        self.assert_nothing_left('src')


@ddt.ddt
class BaseLostWhileOffTestCase(RestartTestCase):
    """The backing file is removed, and no process has it open."""

    def boot_and_lose(self, *ephemerals, name='disk.eph0', **others):
        self.boot(*ephemerals, **others)
        self.stop()
        self.lose_base(name)

    @ddt.data((START, 'SHUTOFF'),
              # Nova's state of a guest that is off after a reboot
              (HARD_REBOOT, 'ERROR'))
    @ddt.unpack
    def test_start_with_data_on_a_lost_base_is_refused(self, action, status):
        self.boot(1)
        self.write()
        self.stop()
        self.lose_base()
        with self.untouched():
            self.act(**action)
        for part in (f'disk.eph0 of instance {self.server["id"]}',
                     'has data, but its backing file', 'is missing'):
            self.assertIn(part, self.fault())
        self.assertEqual(status, self.server['status'])
        self.assertFalse(self.is_running())
        self.assertEqual([], self.bases())

    @ddt.data(START, HARD_REBOOT)
    def test_refused_guest_starts_with_its_restored_base(self, action):
        self.boot(1)
        self.write()
        before, base = self.image(), self.backing()
        self.stop()
        self.lose_base()
        self.act(**action)
        shutil.move(self.jobs.held[base], base)
        self.act(**HARD_REBOOT)
        self.assertEqual('ACTIVE', self.server['status'])
        self.assertEqual(base, self.backing())
        processutils.execute('qemu-img', 'compare', before, self.path())

    @ddt.data(START, HARD_REBOOT)
    def test_unwritten_disk_with_a_lost_base_gets_a_new_file_system(
            self, action):
        self.boot_and_lose(1, (2, 'xfs'), name='disk.eph1')
        with self.untouched('disk.eph0'):
            self.act(**action)
        self.assertEqual('ACTIVE', self.server['status'])
        self.assert_has('xfs', 'ephemeral1', 'disk.eph1')
        self.assertIsNone(self.backing('disk.eph1'))
        self.assertEqual([self.backing('disk.eph0')],
                         list(map(str, self.bases())))

    def test_refused_start_leaves_the_other_disks_untouched(self):
        self.boot(1, 1)
        self.write('disk.eph1')
        self.stop()
        self.lose_base()    # of both
        with self.untouched('disk.eph1'):
            self.act(**START)
        self.assertIn('disk.eph1 of instance', self.fault())
        self.assertEqual('SHUTOFF', self.server['status'])

    @ddt.data(START, HARD_REBOOT)
    def test_swap_disk_of_a_stopped_guest_gets_a_new_swap_area(self, action):
        self.boot_and_lose(swap=64, name='disk.swap')
        self.act(**action)
        self.assertEqual('ACTIVE', self.server['status'])
        self.assertIsNone(self.backing('disk.swap'))
        self.assert_has('swap', None, 'disk.swap')

    def test_rebuild_of_a_stopped_guest_needs_no_base(self):
        self.boot(1)
        self.write()
        self.stop()
        self.lose_base()
        self.act(rebuild={'imageRef': self.upload()})
        self.assertEqual('SHUTOFF', self.server['status'])
        self.assert_has('ext4', 'ephemeral0')

    def test_deletion_of_a_stopped_guest_needs_no_base(self):
        self.boot(1)
        self.write()
        self.stop()
        self.lose_base()
        self._delete_server(self.server)
        self.assert_nothing_left('src')


@ddt.ddt
class BaseInPlaceTestCase(RestartTestCase):
    """No base is lost; the plugin behaves as Nova does."""

    def setUp(self):
        super().setUp()
        self.flags(shelved_offload_time=-1)     # the disks stay here
        self.boot(1, (1, 'xfs'), swap=64)
        self.write()

    @ddt.data(({'suspend': None}, {'resume': None}),
              ({'rescue': None}, {'unrescue': None}),
              ({'os-stop': None}, {'os-start': None}),
              ({'reboot': {'type': 'SOFT'}}, HARD_REBOOT),
              ({'shelve': None}, {'unshelve': None}))
    def test_actions_leave_disks_with_bases_untouched(self, actions):
        with self.untouched(), self.untouched('disk.eph1'), \
                self.untouched('disk.swap'):
            for action in actions:
                self.act(**action)
        self.assertEqual('ACTIVE', self.server['status'])
        self.assertEqual([], self.jobs.pulled)

    @ddt.data('ACTIVE', 'SHUTOFF')
    def test_reverted_resize_leaves_disks_with_bases_untouched(self, status):
        self.stay_on_the_source()
        if status == 'SHUTOFF':
            self.stop()
        with self.untouched(), self.untouched('disk.eph1'):
            self.resize()
            self.revert(status)
        self.assertEqual([], self.jobs.pulled)


class CacheTestCase(RestartTestCase):
    """The image cache removes unused files at once."""

    def setUp(self):
        super().setUp()
        self.flags(remove_unused_base_images=True,
                   remove_unused_original_minimum_age_seconds=0,
                   remove_unused_resized_minimum_age_seconds=0,
                   group='image_cache')

    def run_pass(self, host='src'):
        """Run the image cache task of a nova-compute."""
        with self.hosts.on(host):
            self.computes[host].manager._run_image_cache_manager_pass(
                context.get_admin_context())


class ImageCacheTestCase(CacheTestCase):
    """A base stays as long as a disk names it.

    Nova counts the first size of the ephemeral disks of each instance in its
    database.
    """

    def test_bases_of_a_running_guest_stay(self):
        self.boot(1, 2, (3, 'xfs'), swap=64)
        before = self.bases()
        self.run_pass()
        self.assertEqual(3, len(before))
        self.assertEqual(before, self.bases())

    def test_bases_of_a_stopped_guest_stay(self):
        self.boot(1, 2)
        self.write('disk.eph1')
        self.stop()
        before = self.image('disk.eph1')
        self.run_pass()
        self.act(**START)
        self.assertEqual('ACTIVE', self.server['status'])
        processutils.execute(
            'qemu-img', 'compare', before, self.path('disk.eph1'))

    def test_bases_of_a_resized_guest_stay(self):
        self.stay_on_the_source()
        self.boot(1, 2)
        self.write('disk.eph1')
        before = self.image('disk.eph1')
        self.resize()
        for path in self.path(), self.path('disk.eph1'):
            # now only the disks in <uuid>_resize name the bases
            image_file.flatten(str(path), 'qcow2', str(path))
        self.run_pass()
        self.revert()
        self.assertIsNotNone(self.backing('disk.eph1'))
        processutils.execute(
            'qemu-img', 'compare', before, self.path('disk.eph1'))

    def test_base_that_no_disk_names_is_removed(self):
        self.boot(1, swap=64)
        kept = self.bases()
        self.have_base('ephemeral_2_40d1d2c', 'src')
        self.have_base('swap_128', 'src')
        self.run_pass()
        self.assertEqual(kept, self.bases())
        self.assertEqual(['swap_64'], [
            path.name for path in kept[0].parent.glob('swap_*')])

    def test_bases_of_a_deleted_guest_are_removed(self):
        self.boot(1, 2)
        self._delete_server(self.server)
        self.run_pass()
        self.assertEqual([], self.bases())


class SharedImageCacheTestCase(CacheTestCase):
    """Both hosts share one directory of instances and one image cache."""

    shared = True

    def test_bases_of_another_host_stay(self):
        self.boot(1, 2)
        before = self.bases()
        self.run_pass('dest')
        self.assertEqual(2, len(before))
        self.assertEqual(before, self.bases())

    def test_base_that_no_disk_names_is_removed_from_a_shared_cache(self):
        self.boot(1)
        kept = self.bases()
        self.have_base('ephemeral_2_40d1d2c')
        self.run_pass('dest')
        self.assertEqual(kept, self.bases())


@ddt.ddt
class WithoutFixTestCase(CacheTestCase):
    """The fault of Nova that the fix prevents."""

    enabled_fixes = WITHOUT

    def lose(self, name='disk.eph0'):
        """Write to a disk and remove its base; return its former image."""
        self.write(name)
        before = self.image(name)
        self.lose_base(name)
        return before

    def test_hard_reboot_of_nova_makes_a_base_under_data(self):
        self.boot(1)
        before = self.lose()
        self.act(**HARD_REBOOT)
        self.assertEqual([self.backing()], list(map(str, self.bases())))
        self.assert_changed(before)

    def test_stop_and_start_of_nova_make_a_base_under_data(self):
        self.boot(1)
        before = self.lose()
        self.stop()
        self.assertEqual([], self.jobs.pulled)
        self.act(**START)
        self.assert_changed(before)

    @ddt.data(START, HARD_REBOOT)
    def test_stopped_guest_of_nova_starts_with_another_base(self, action):
        self.boot(1)
        self.stop()
        before = self.lose()
        self.act(**action)
        self.assertEqual('ACTIVE', self.server['status'])
        self.assert_changed(before)

    def test_unwritten_disk_of_nova_gets_another_file_system_and_label(self):
        self.boot(1, (2, 'xfs'))
        self.stop()
        self.lose_base('disk.eph1')
        self.act(**START)
        found = image_file.filesystem(str(self.image('disk.eph1')))
        self.assertEqual('ext4', found['TYPE'])
        # the label of the first disk, or the name of the base in Nova 29
        self.assertNotEqual('ephemeral1', found['LABEL'])

    def test_image_cache_of_nova_removes_the_base_of_a_second_disk(self):
        self.boot(1, 2)
        self.write('disk.eph1')
        before, base = self.image('disk.eph1'), self.backing('disk.eph1')
        self.run_pass()
        self.assertNotIn(base, map(str, self.bases()))
        self.act(**HARD_REBOOT)
        self.assertIn(base, map(str, self.bases()))
        self.assert_changed(before, 'disk.eph1')


class SharedStorageWithoutFixTestCase(CacheTestCase):

    enabled_fixes = WITHOUT
    shared = True

    def test_image_cache_of_nova_removes_a_base_of_another_host(self):
        self.boot(1, 2)
        base = self.backing('disk.eph1')
        self.run_pass('dest')
        self.assertNotIn(base, map(str, self.bases()))
