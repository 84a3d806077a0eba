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


"""Ephemeral disks keep their bytes in a cold migration and a resize."""

import collections
import contextlib
import shutil
from unittest import mock

from oslo_concurrency import processutils
from oslo_utils import units

from nova_migfix.storage import image_file
from nova_migfix.tests.functional import storage

#: all but the fix for ephemeral disks
WITHOUT = ['config_drive', 'kernel_ramdisk', 'source_address']


@contextlib.contextmanager
def free_space(size):
    """Limit the free space of the instances to *size* bytes."""
    usage = collections.namedtuple('usage', 'total used free')
    with mock.patch.object(shutil, 'disk_usage', autospec=True,
                           return_value=usage(units.Ti, units.Ti, size)):
        yield


class ColdTestCase(storage.StorageTestCase):

    #: two on one base; the guest has not written to the second
    DISKS = ('disk.eph0', 'disk.eph1', 'disk.eph2')

    def setUp(self):
        super().setUp()
        self.boot(1, 1, (2, 'xfs'))
        self.write('disk.eph0')
        self.write('disk.eph2')
        self.before = {name: self.image(name) for name in self.DISKS}
        self.sizes = self.virtual_sizes('src')

    def virtual_sizes(self, host):
        return [image_file.virtual_size(self.path(name, host))
                for name in self.DISKS]

    def assert_all_kept(self, host='dest'):
        for name, before in self.before.items():
            self.assert_kept(before, name, host)

    def resize(self):
        self.move(resize={'flavorRef': self._create_flavor(
            disk=2, ephemeral=8)})

    def resize_on_the_same_host(self):
        self.flags(allow_resize_to_same_host=True)
        service, = self.api.get_services(host='dest', binary='nova-compute')
        self.api.put_service(service['id'], {'status': 'disabled'})
        self.resize()
        self.assertEqual('src', self.host())

    def assert_stays(self, status):
        """Assert that the guest is on its source, in its former state."""
        self.assertEqual(status, self.server['status'])
        self.assertEqual('src', self.host())
        self.assertEqual(status == 'ACTIVE',
                         bool(self.source_domain().isActive()))
        self.assertEqual(['error'], [
            record['status'] for record in self.migrations()])
        self.assert_nothing_left('dest')


class OverlaySourceTestCase(ColdTestCase):
    """The source completes the disks."""

    def pulled_by_qemu(self):
        return [str(self.path(name)) for name in self.DISKS]

    def test_disks_of_a_running_guest_are_pulled_before_its_stop(self):
        self.move(migrate=None)
        # A block pull fails on a guest that does not run.
        self.assertEqual(self.pulled_by_qemu(), self.jobs.pulled)
        self.assert_all_kept()
        self.assertEqual([], self.hosts.pulled)
        self.assertEqual([], self.bases('dest'))

    def test_disks_of_a_stopped_guest_are_converted(self):
        self.server = self._stop_server(self.server)
        self.move(migrate=None)
        self.assertEqual([], self.jobs.pulled)
        self.assert_all_kept()
        self.assertEqual([], self.hosts.pulled)
        self.assertEqual([], self.bases('dest'))

    def test_reverted_migration_of_overlays_keeps_the_bytes(self):
        self.move(migrate=None)
        self.api.post_server_action(self.server['id'], {'revertResize': None})
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.assert_all_kept('src')

    def test_resize_to_a_larger_flavor_keeps_the_bytes(self):
        self.resize()
        self.assert_all_kept()
        self.assertEqual(self.sizes, self.virtual_sizes('dest'))
        self.api.post_server_action(self.server['id'], {'confirmResize': None})
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.assert_nothing_left('src')

    def test_guest_with_an_incompletable_disk_keeps_running(self):
        with self.hosts.failing('qemu-img', 'convert'):
            reason = self.refused(migrate=None)
        for part in ('disk.eph0', self.server['id'], 'No space left',
                     'The guest is unchanged'):
            self.assertIn(part, reason)
        self.assert_stays('ACTIVE')
        self.move(migrate=None)
        self.assert_all_kept()

    def test_disk_with_a_lost_base_is_pulled_from_the_running_guest(self):
        self.lose_base()
        self.move(migrate=None)
        self.assertEqual(self.pulled_by_qemu(), self.jobs.pulled)
        self.assert_all_kept()
        self.assertEqual([], self.bases('dest'))

    def test_stopped_guest_with_data_on_a_lost_base_stays(self):
        self.server = self._stop_server(self.server)
        self.lose_base()
        before = self.path().read_bytes()
        reason = self.refused(migrate=None)
        for part in ('disk.eph0', self.server['id'],
                     'has data, but its backing file'):
            self.assertIn(part, reason)
        self.assertIn('restore that very file from a backup', self.log())
        self.assert_stays('SHUTOFF')
        self.assertEqual(before, self.path().read_bytes())

    def test_unwritten_disk_on_a_lost_base_gets_a_file_system(self):
        self.boot(1, (2, 'xfs'))
        self.server = self._stop_server(self.server)
        before = self.image('disk.eph0')
        self.lose_base('disk.eph1')
        self.move(migrate=None)
        self.assert_kept(before, 'disk.eph0')
        self.assert_has('xfs', 'ephemeral1', 'disk.eph1', 'dest')
        self.assertIsNone(self.backing('disk.eph1', 'dest'))
        self.assertIn('has a new file system', self.log())


class LittleSpaceTestCase(storage.StorageTestCase):
    """The source has no space for a second copy of the disk."""

    def setUp(self):
        super().setUp()
        self.boot(1)
        self.write(size='64M')      # more than the size of the backing file
        self.before = self.image()
        self.file = self.path().stat().st_ino
        base, = self.bases()
        self.needed = base.stat().st_blocks * 512

    def assert_refused(self, status):
        with free_space(self.needed - 1):
            reason = self.refused(migrate=None)
        for part in ('disk.eph0', self.server['id'], 'MiB are free'):
            self.assertIn(part, reason)
        self.assertIn('Make space here', self.log())
        self.assertEqual(status, self.server['status'])
        self.assertEqual('src', self.host())
        self.assertEqual(self.file, self.path().stat().st_ino)
        processutils.execute(
            'qemu-img', 'compare', self.before, self.image())
        self.assert_nothing_left('dest')

    def test_backing_file_is_copied_into_the_disk_of_a_stopped_guest(self):
        self.server = self._stop_server(self.server)
        with free_space(self.needed):
            self.move(migrate=None)
        self.assert_kept(self.before)
        left = self.directory().with_name(f'{self.server["id"]}_resize')
        self.assertEqual(self.file, (left / 'disk.eph0').stat().st_ino)

    def test_running_guest_needs_space_only_for_its_backing_file(self):
        with free_space(self.needed):
            self.move(migrate=None)
        self.assertEqual([str(self.path())], self.jobs.pulled)
        self.assert_kept(self.before)

    def test_stopped_guest_stays_without_space_for_its_backing_file(self):
        self.server = self._stop_server(self.server)
        self.assert_refused('SHUTOFF')

    def test_running_guest_stays_without_space_for_its_backing_file(self):
        self.assert_refused('ACTIVE')
        self.assertTrue(self.source_domain().isActive())


class SwapTestCase(storage.StorageTestCase):
    """Nova makes a new swap disk on the destination."""

    def test_guest_with_a_lost_swap_base_moves_and_starts(self):
        self.boot(swap=64)
        self.lose_base('disk.swap')
        self.move(migrate=None)
        self.assert_has('swap', None, 'disk.swap', 'dest')
        self.api.post_server_action(self.server['id'], {'confirmResize': None})
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.act(reboot={'type': 'HARD'})
        self.assertEqual('ACTIVE', self.server['status'])


class CompleteDiskTestCase(ColdTestCase):
    """Disks that are complete from their creation move unchanged."""

    overlays = False

    def assert_moved_by_nova(self, host='dest'):
        self.assert_all_kept(host)
        self.assertEqual(self.sizes, self.virtual_sizes(host))
        for name, kind, label in (('disk.eph0', 'ext4', 'ephemeral0'),
                                  ('disk.eph1', 'ext4', 'ephemeral1'),
                                  ('disk.eph2', 'xfs', 'ephemeral2')):
            self.assert_has(kind, label, name, host)
        self.assertEqual([], self.hosts.pulled)
        self.assertEqual([], self.jobs.pulled)

    def test_migration_of_complete_disks_keeps_bytes_without_a_base(self):
        self.move(migrate=None)
        self.assert_moved_by_nova()
        self.assert_no_base_made()

    def test_migration_of_a_stopped_guest_makes_no_base(self):
        self.server = self._stop_server(self.server)
        self.move(migrate=None)
        self.assert_moved_by_nova()
        self.assert_no_base_made()

    def test_reverted_migration_of_complete_disks_keeps_the_bytes(self):
        self.move(migrate=None)
        self.api.post_server_action(self.server['id'], {'revertResize': None})
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.assert_moved_by_nova('src')
        self.assert_no_base_made('src')

    def test_resize_to_a_larger_flavor_keeps_bytes_and_sizes(self):
        self.resize()
        self.assert_moved_by_nova()
        self.assert_no_base_made()

    def test_resize_on_the_same_host_keeps_bytes_and_sizes(self):
        self.resize_on_the_same_host()
        self.assert_moved_by_nova('src')
        self.assert_no_base_made('src')

    def test_swap_disk_is_complete_on_the_destination(self):
        self.boot(swap=64)
        self.move(migrate=None)
        self.assert_has('swap', None, 'disk.swap', 'dest')
        self.assertIsNone(self.backing('disk.swap', 'dest'))
        self.assert_no_base_made()


class CompleteDiskUnpatchedDestinationTestCase(ColdTestCase):
    """A destination without the plugin leaves complete disks unchanged."""

    overlays = False
    enabled_on = {'dest': WITHOUT}

    def test_complete_disks_keep_their_bytes_there_and_back(self):
        self.move(migrate=None)
        self.assert_all_kept()
        self.api.post_server_action(self.server['id'], {'confirmResize': None})
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.move(migrate=None)
        self.assert_all_kept('src')
        self.assertEqual([], self.hosts.pulled)
        self.assertEqual([], self.jobs.pulled)


class NewDiskTestCase(storage.StorageTestCase):
    """A resize to a larger flavor creates a disk."""

    def resize(self, size):
        self.move(resize={'flavorRef': self._create_flavor(
            disk=1, ephemeral=size)})

    def test_resize_creates_a_disk_and_the_next_resize_keeps_it(self):
        self.boot()
        self.resize(1)
        self.assert_has('ext4', 'ephemeral0', 'disk.local', 'dest')
        self.api.post_server_action(self.server['id'], {'confirmResize': None})
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.write('disk.local', 'dest')
        before = self.image('disk.local', 'dest')
        self.resize(2)
        # It does not grow: Nova leaves an existing qcow2 disk unchanged.
        self.assert_kept(before, 'disk.local', 'src')
        self.assertEqual(
            units.Gi, image_file.virtual_size(self.path('disk.local')))


class CompleteNewDiskTestCase(NewDiskTestCase):
    """The new disk is complete from its creation."""

    overlays = False

    def test_resize_creates_a_complete_disk_without_a_base(self):
        self.boot()
        self.resize(1)
        self.assertIsNone(self.backing('disk.local', 'dest'))
        self.assert_no_base_made()


class UnpatchedSourceNewDiskTestCase(NewDiskTestCase):
    """Unmodified Nova creates the disk; the other host completes it."""

    enabled_on = {'dest': WITHOUT}


class SameHostTestCase(ColdTestCase):

    def test_resize_on_the_same_host_leaves_overlays_on_their_bases(self):
        before = {name: self.backing(name) for name in self.DISKS}
        self.resize_on_the_same_host()
        self.assertEqual(
            before, {name: self.backing(name) for name in self.DISKS})
        self.assertEqual([], self.hosts.pulled)


class UnpatchedDestinationTestCase(ColdTestCase):
    """A destination without the plugin gets complete disks."""

    enabled_on = {'dest': WITHOUT}

    def test_destination_without_the_plugin_gets_the_bytes(self):
        self.move(migrate=None)
        self.assert_all_kept()


class UnpatchedSourceTestCase(ColdTestCase):
    """The destination completes the disks with the bases of the source."""

    enabled_on = {'src': WITHOUT}

    def test_source_without_the_plugin_keeps_the_bytes(self):
        bases = [base.name for base in self.bases()]
        foreign = self.have_base(bases[0])
        was = foreign.stat().st_mtime_ns
        self.move(migrate=None)
        self.assert_all_kept()
        session, = self.hosts.pulled
        self.assertTrue(session.startswith('src '), session)
        for base in bases:
            self.assertEqual(1, session.count(f'/{base}'), session)
        self.assertEqual(was, foreign.stat().st_mtime_ns)

    def test_disk_with_data_on_a_lost_base_stays_an_overlay(self):
        self.lose_base()
        reason = self.refused(migrate=None)
        self.assertIn('could not be fetched from src', reason)
        self.assertIn('The guest is off', reason)
        self.assertEqual('ERROR', self.server['status'])
        self.assertIsNotNone(self.backing(host='dest'))
        self.assertEqual([], self.bases('dest'))

    def test_hard_reboot_uses_no_other_base_for_the_disk(self):
        # Nova's log advises a hard reboot
        foreign = self.have_base(self.bases()[0].name)
        self.lose_base()
        self.refused(migrate=None)
        self.act(reboot={'type': 'HARD'})
        self.assertIn('disk.eph0 of instance', self.fault())
        self.assertIn(f'{foreign.name} is missing', self.fault())
        self.assertEqual('ERROR', self.server['status'])


class UnpatchedSourceUnwrittenTestCase(storage.StorageTestCase):
    """The guest has not written to its disk on a lost base."""

    enabled_on = {'src': WITHOUT}

    def test_unwritten_disk_on_a_lost_base_gets_a_new_file_system(self):
        self.boot(2, (1, 'xfs'))
        self.lose_base('disk.eph0')
        self.lose_base('disk.eph1')
        self.move(migrate=None)
        self.assert_has('ext4', 'ephemeral0', 'disk.eph0', 'dest')
        self.assert_has('xfs', 'ephemeral1', 'disk.eph1', 'dest')
        for name in ('disk.eph0', 'disk.eph1'):
            self.assertIsNone(self.backing(name, 'dest'))
        self.assertEqual([], self.bases('dest'))
        self.assertIn('they get new file systems', self.log())


class SharedStorageTestCase(ColdTestCase):
    """Both hosts see the same files: no disk is completed."""

    shared = True

    def test_disk_on_shared_storage_stays_an_overlay(self):
        backing = self.backing()
        self.move(migrate=None)
        self.assertEqual('dest', self.host())
        self.assertEqual(backing, self.backing(host='dest'))
        self.assertEqual([], self.hosts.pulled)


class SharedStorageUnpatchedTestCase(SharedStorageTestCase):
    """The destination completes no disk on shared storage either."""

    enabled_on = {'src': WITHOUT}


class SharedStorageLostBaseTestCase(ColdTestCase):

    shared = True

    def test_disks_with_a_lost_base_are_pulled_on_shared_storage(self):
        other = self.backing('disk.eph2')
        self.lose_base()
        self.move(migrate=None)
        self.assertEqual(
            [str(self.path(name)) for name in ('disk.eph0', 'disk.eph1')],
            self.jobs.pulled)
        for name in ('disk.eph0', 'disk.eph1'):
            self.assert_kept(self.before[name], name)
        self.assertEqual(other, self.backing('disk.eph2'))


class WithoutFixTestCase(ColdTestCase):
    """The fault of Nova that the fix prevents."""

    enabled_fixes = WITHOUT

    def test_unmodified_nova_puts_the_disk_on_another_file_system(self):
        self.move(migrate=None)
        self.assertEqual([str(base) for base in self.bases('dest')], [
            self.backing(name, 'dest') for name in self.DISKS[1:]])
        self.assertNotEqual(
            self.bases('src')[0].read_bytes()[:1 << 16],
            self.bases('dest')[0].read_bytes()[:1 << 16])

    def test_unmodified_nova_does_not_enlarge_disks_in_a_resize(self):
        self.resize()
        self.assertEqual(self.sizes, self.virtual_sizes('dest'))
