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

"""Operations while ``nova-migfix-status heal`` completes a disk.

The test holds the lock of the disk, as ``heal`` does.
"""

import contextlib

import ddt

from nova_migfix.storage import disks
from nova_migfix.storage import scratch
from nova_migfix.tests.functional import storage

WITHOUT = ['config_drive', 'kernel_ramdisk', 'source_address']

HARD_REBOOT = {'reboot': {'type': 'HARD'}}
STOP = {'os-stop': None}


class CompletionTestCase(storage.StorageTestCase):

    def setUp(self):
        super().setUp()
        self.flags(shelved_offload_time=-1)     # the disks stay here
        # libvirt's fake has no block copy
        self.flags(disable_libvirt_livesnapshot=True, group='workarounds')
        self.boot(1, swap=64)
        self.write()

    @contextlib.contextmanager
    def completing(self, name='disk.eph0'):
        """Hold the lock of a disk."""
        disk, = (disk for disk in disks.overlays(str(self.directory()))
                 if disk.name == name)
        with scratch.locked(f'{disk.copy}.lock') as is_locked:
            self.assertTrue(is_locked)
            yield

    def assert_refused(self, message, name='disk.eph0'):
        for part in (f'The disk {name} of instance {self.server["id"]}',
                     'is being completed by another process',
                     'nova-migfix-status heal',
                     'Wait until it ends, or interrupt it, and try again.'):
            self.assertIn(part, message)

    def assert_stays(self):
        self.assertEqual('ACTIVE', self.server['status'])
        self.assertEqual('src', self.host())
        self.assertTrue(self.source_domain().isActive())
        self.assertEqual([], self.jobs.pulled)


@ddt.ddt
class BaseInPlaceTestCase(CompletionTestCase):
    """The backing file of the disk exists."""

    @ddt.data(({'suspend': None}, {'resume': None}),
              ({'pause': None}, {'unpause': None}),
              ({'rescue': None}, {'unrescue': None}),
              (STOP, {'os-start': None}),
              ({'reboot': {'type': 'SOFT'}}, HARD_REBOOT),
              ({'shelve': None}, {'unshelve': None}),
              ({'createImage': {'name': 'snapshot'}},))
    def test_operations_on_the_source_succeed(self, actions):
        before = self.image()
        with self.completing():
            for action in actions:
                self.assertEqual([], self.act(**action))
        self.assert_stays()
        self.assertEqual([str(base) for base in self.bases()],
                         [self.backing()])
        self.assertEqual(before.read_bytes(), self.image().read_bytes())

    def test_rebuild_succeeds(self):
        with self.completing():
            self.assertEqual(
                [], self.act(rebuild={'imageRef': self.upload()}))
        self.assert_stays()

    def test_deletion_succeeds(self):
        with self.completing():
            self._delete_server(self.server)
        self.assert_nothing_left('src')

    @ddt.data('disk.eph0', 'disk.swap')
    def test_live_migration_is_refused(self, name):
        with self.completing(name):
            self.live_migrate('failed')
        self.assert_stays()
        self.assert_refused(self.log(), name)
        self.assertEqual([], self.destination_xmls)
        self.assertEqual([], self.hosts.pulled)
        self.assert_nothing_left('dest')

    @ddt.data({'migrate': None}, 'resize')
    def test_cold_migration_and_resize_are_refused(self, action):
        if action == 'resize':
            action = {'resize': {'flavorRef': self._create_flavor(
                disk=2, ephemeral=2)}}
        with self.completing():
            self.assert_refused(self.refused(**action))
        self.assert_stays()
        self.assert_nothing_left('dest')

    def test_migrations_succeed_after_the_completion(self):
        before = self.image()
        with self.completing():
            self.live_migrate('failed')
            self.act(migrate=None)
        self.live_migrate('completed')
        self.assert_kept(before)

    def test_lock_file_of_a_killed_process_refuses_nothing(self):
        self.path('ephemeral.disk.eph0.lock').touch()
        self.live_migrate('completed')
        self.assertEqual('dest', self.host())


class UnpatchedDestinationTestCase(CompletionTestCase):
    """The source has to complete the disks of its guests."""

    enabled_on = {'dest': WITHOUT}

    def test_live_migration_is_refused(self):
        with self.completing():
            self.live_migrate('failed')
        self.assert_stays()
        self.assert_refused(self.log())


@ddt.ddt
class LostBaseTestCase(CompletionTestCase):
    """Only the running QEMU has the data of the backing file."""

    @ddt.data(STOP, HARD_REBOOT, {'shelve': None}, {'migrate': None})
    def test_operations_that_stop_the_guest_are_refused(self, action):
        before = self.image()
        self.lose_base()
        with self.completing():
            self.act(**action)
            self.assert_refused(self.fault())
        self.assert_stays()
        self._stop_server(self.server)
        self.assert_kept(before, host='src')

    def test_live_migration_is_refused(self):
        before = self.image()
        self.lose_base()
        with self.completing():
            self.live_migrate('failed')
        self.assert_stays()
        self.assert_refused(self.log())
        self.live_migrate('completed')
        self.assert_kept(before)

    @ddt.data(({'pause': None}, {'unpause': None}),
              ({'reboot': {'type': 'SOFT'}},),
              ({'createImage': {'name': 'snapshot'}},))
    def test_other_operations_succeed(self, actions):
        self.lose_base()
        with self.completing():
            for action in actions:
                self.assertEqual([], self.act(**action))
        self.assert_stays()

    def test_deletion_succeeds(self):
        self.lose_base()
        with self.completing():
            self._delete_server(self.server)
        self.assert_nothing_left('src')
