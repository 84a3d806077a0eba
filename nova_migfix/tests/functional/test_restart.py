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


"""Old disks keep their data when guests stop and start."""

import os

import ddt
from nova import context

from nova_migfix import disks
from nova_migfix.tests.functional import storage

#: what Nova does to a guest, by what it does to the disks
STOP = {'os-stop': None}
HARD_REBOOT = {'reboot': {'type': 'HARD'}}


class RestartTestCase(storage.StorageTestCase):
    """A guest with an old disk, to which it has written."""

    def setUp(self):
        super().setUp()
        self.boot(1)
        self.write()
        self.before = self.image()

    def assert_runs(self):
        self.assertEqual('ACTIVE', self.server['status'])
        self.assertTrue(self.source_domain().isActive())

    def assert_is_kept_without_base(self):
        self.assert_kept(self.before, host='src')
        self.assertEqual([], self.bases())


@ddt.ddt
class LostBaseTestCase(RestartTestCase):
    """The backing file of a running guest is gone; QEMU has it open."""

    def setUp(self):
        super().setUp()
        self.lose_base()

    def test_a_stop_completes_the_disk(self):
        self.act(**STOP)
        self.assertEqual('SHUTOFF', self.server['status'])
        self.assertEqual([str(self.path())], self.jobs.pulled)
        self.assert_is_kept_without_base()
        self.act(**{'os-start': None})
        self.assert_runs()
        self.assert_is_kept_without_base()

    def test_a_hard_reboot_completes_the_disk(self):
        self.act(**HARD_REBOOT)
        self.assert_runs()
        self.assertEqual([str(self.path())], self.jobs.pulled)
        self.assert_is_kept_without_base()

    @ddt.data(STOP, {'migrate': None})
    def test_a_guest_whose_disk_cannot_be_completed_runs_on(self, action):
        self.jobs.failing = 'No space left on device'
        before = self.path().read_bytes()
        self.act(**action)
        self.assertIn('No space left on device', self.fault())
        self.assert_runs()
        self.assertEqual(before, self.path().read_bytes())

    def test_a_rebuild_makes_a_new_disk(self):
        self.jobs.failing = 'No space left on device'
        self.act(rebuild={'imageRef': self.upload()})
        self.assert_runs()
        self.assert_has('ext4', 'ephemeral0')

    def test_a_deletion_leaves_nothing(self):
        self.jobs.failing = 'No space left on device'
        self._delete_server(self.server)
        self.assert_nothing_left('src')


@ddt.ddt
class LostBaseOfStoppedGuestTestCase(RestartTestCase):
    """Nobody has the backing file any more."""

    STARTS = ({'os-start': None}, HARD_REBOOT)

    def stop_and_lose_base(self, name='disk.eph0'):
        self.act(**STOP)
        self.lose_base(name)

    @ddt.data(*STARTS)
    def test_data_is_not_laid_on_a_new_base(self, start):
        self.stop_and_lose_base()
        before = self.path().read_bytes()
        self.act(**start)
        self.assertIn('has data, but its backing file', self.fault())
        self.assertIn('is missing', self.fault())
        self.assertNotEqual('ACTIVE', self.server['status'])
        self.assertEqual(before, self.path().read_bytes())
        self.assertEqual([], self.bases())

    @ddt.data(*STARTS)
    def test_a_disk_without_data_gets_a_new_file_system(self, start):
        self.boot(1)
        self.stop_and_lose_base()
        self.act(**start)
        self.assert_runs()
        self.assert_has('ext4', 'ephemeral0')
        self.assertIsNone(self.backing())

    def test_a_swap_disk_gets_a_new_swap_area(self):
        self.boot(swap=64)
        self.stop_and_lose_base('disk.swap')
        self.act(**{'os-start': None})
        self.assert_runs()
        self.assert_has('swap', None, 'disk.swap')
        self.assertIsNone(self.backing('disk.swap'))


@ddt.ddt
class KeptBaseTestCase(RestartTestCase):
    """Where nothing is lost, nothing happens to the disk."""

    @ddt.data((STOP, {'os-start': None}),
              ({'suspend': None}, {'resume': None}),
              ({'rescue': None}, {'unrescue': None}),
              ({'reboot': {'type': 'SOFT'}}, HARD_REBOOT))
    def test_the_disk_stays_as_it_is(self, actions):
        inode, backing = self.path().stat().st_ino, self.backing()
        for action in actions:
            self.act(**action)
        self.assert_runs()
        self.assertEqual(inode, self.path().stat().st_ino)
        self.assertEqual(backing, self.backing())
        self.assertEqual([], self.jobs.pulled)
        self.assertEqual(self.before, self.image())


class ImageCacheTestCase(RestartTestCase):
    """A base that is old is removed, unless a disk on this host names it."""

    def setUp(self):
        super().setUp()
        self.flags(remove_unused_base_images=True,
                   remove_unused_original_minimum_age_seconds=0,
                   group='image_cache')

    def age(self):
        for base in self.bases():
            os.utime(base, (0, 0))
        with self.hosts.on('src'):
            self.src.manager._run_image_cache_manager_pass(
                context.get_admin_context())

    def forget(self):
        """Have Nova's database know nothing of the disks."""
        path = self.hosts.instances('src') / self.server['id']
        other = path.with_name(f'{path.name}_resize')
        path.rename(other)
        self.addCleanup(other.rename, path)

    def test_the_base_of_a_stopped_guest_stays(self):
        self.boot((1, None), (2, None))
        self.act(**STOP)
        self.age()
        self.age()
        self.assertTrue(os.path.exists(self.backing('disk.eph1')))

    def test_the_base_of_a_directory_of_a_resize_stays(self):
        base, = self.bases()
        self.forget()
        self.age()
        self.age()
        self.assertTrue(base.exists())


class SwitchedOffTestCase(RestartTestCase):
    """Nova's own behaviour, from which the tests above protect."""

    enabled_fixes = ['config_drive', 'kernel_ramdisk', 'source_address']

    def test_nova_makes_a_new_base_under_data(self):
        base, = self.bases()
        before = disks.filesystem(str(base))['UUID']
        self.act(**STOP)
        base.unlink()
        self.act(**HARD_REBOOT)
        self.assert_runs()
        self.assertNotEqual(before, disks.filesystem(str(base))['UUID'])
