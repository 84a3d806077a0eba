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

from nova_migfix.tests.functional import storage

#: all but the fix for ephemeral disks
WITHOUT = ['config_drive', 'kernel_ramdisk', 'source_address']


class ColdTestCase(storage.StorageTestCase):

    #: two upon one base, of which the guest has not written to the second
    DISKS = ('disk.eph0', 'disk.eph1', 'disk.eph2')

    def setUp(self):
        super().setUp()
        self.boot(1, 1, (2, 'xfs'))
        self.write('disk.eph0')
        self.write('disk.eph2')
        self.before = {name: self.image(name) for name in self.DISKS}

    def assert_all_kept(self, host='dest'):
        for name, before in self.before.items():
            self.assert_kept(before, name, host)

    def resize(self):
        self.move(resize={'flavorRef': self._create_flavor(
            disk=2, ephemeral=8)})

    def assert_stays(self, status):
        """The guest is on its source, in the state in which it was."""
        self.assertEqual(status, self.server['status'])
        self.assertEqual('src', self.host())
        self.assertEqual(status == 'ACTIVE',
                         bool(self.source_domain().isActive()))
        self.assertEqual(['error'], [
            record['status'] for record in self.migrations()])
        self.assert_nothing_left('dest')


class SourceTestCase(ColdTestCase):
    """The source completes the disks."""

    def test_the_bytes_are_kept(self):
        self.move(migrate=None)
        self.assert_all_kept()
        self.assertEqual([], self.hosts.pulled)

    def test_also_when_the_migration_is_reverted(self):
        self.move(migrate=None)
        self.api.post_server_action(self.server['id'], {'revertResize': None})
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.assert_all_kept('src')

    def test_a_resize_to_a_larger_ephemeral_keeps_them(self):
        self.resize()
        self.assert_all_kept()
        self.api.post_server_action(self.server['id'], {'confirmResize': None})
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.assert_nothing_left('src')

    def test_what_it_cannot_complete_stays(self):
        with self.hosts.failing('qemu-img', 'convert'):
            reason = self.refused(migrate=None)
        for part in ('disk.eph0', self.server['id'], 'No space left',
                     'The guest is left as it is'):
            self.assertIn(part, reason)
        self.assert_stays('ACTIVE')
        # and nothing has happened to it
        self.move(migrate=None)
        self.assert_all_kept()

    def test_a_lost_base_is_pulled_from_the_running_guest(self):
        self.lose_base()
        self.move(migrate=None)
        self.assertEqual(
            [str(self.path(name)) for name in self.DISKS],
            self.jobs.pulled)
        self.assert_all_kept()

    def test_data_on_a_lost_base_stays_while_the_guest_is_off(self):
        self.server = self._stop_server(self.server)
        self.lose_base()
        reason = self.refused(migrate=None)
        for part in ('disk.eph0', self.server['id'],
                     'has data, but its backing file'):
            self.assertIn(part, reason)
        self.assert_stays('SHUTOFF')


class NewDiskTestCase(storage.StorageTestCase):
    """A disk that comes with a larger flavor."""

    def resize(self, size):
        self.move(resize={'flavorRef': self._create_flavor(
            disk=1, ephemeral=size)})

    def test_a_resize_makes_it_and_the_next_one_keeps_it(self):
        self.boot()
        self.resize(1)
        self.assert_has('ext4', 'ephemeral0', 'disk.local', 'dest')
        self.api.post_server_action(self.server['id'], {'confirmResize': None})
        self._wait_for_state_change(self.server, 'ACTIVE')
        self.write('disk.local', 'dest')
        before = self.image('disk.local', 'dest')
        self.resize(2)
        # It does not grow: Nova leaves a qcow2 disk that is there as it is.
        self.assert_kept(before, 'disk.local', 'src')


class UnpatchedSourceNewDiskTestCase(NewDiskTestCase):
    """Made there, then completed by the other host."""

    enabled_on = {'dest': WITHOUT}


class SameHostTestCase(ColdTestCase):

    def test_a_resize_leaves_the_disks_on_their_bases(self):
        self.flags(allow_resize_to_same_host=True)
        service, = self.api.get_services(host='dest', binary='nova-compute')
        self.api.put_service(service['id'], {'status': 'disabled'})
        before = {name: self.backing(name) for name in self.DISKS}
        self.resize()
        self.assertEqual('src', self.host())
        self.assertEqual(
            before, {name: self.backing(name) for name in self.DISKS})
        self.assertEqual([], self.hosts.pulled)


class UnpatchedDestinationTestCase(ColdTestCase):
    """It gets the disks complete."""

    enabled_on = {'dest': WITHOUT}

    def test_the_bytes_are_kept(self):
        self.move(migrate=None)
        self.assert_all_kept()


class UnpatchedSourceTestCase(ColdTestCase):
    """The destination completes the disks, with the source's bases."""

    enabled_on = {'src': WITHOUT}

    def test_the_bytes_are_kept(self):
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

    def test_without_the_base_the_disk_is_left_as_it_came(self):
        self.lose_base()
        reason = self.refused(migrate=None)
        self.assertIn('cannot be had from src', reason)
        self.assertIn('The guest is off', reason)
        self.assertEqual('ERROR', self.server['status'])
        self.assertIsNotNone(self.backing(host='dest'))
        self.assertEqual([], self.bases('dest'))

    def test_a_hard_reboot_lays_it_on_no_other_base(self):
        # which Nova's log advises to do
        foreign = self.have_base(self.bases()[0].name)
        self.lose_base()
        self.refused(migrate=None)
        self.act(reboot={'type': 'HARD'})
        self.assertIn('disk.eph0 of instance', self.fault())
        self.assertIn(f'{foreign.name} is missing', self.fault())
        self.assertEqual('ERROR', self.server['status'])


class SharedStorageTestCase(ColdTestCase):
    """Both hosts see the same files: nothing is to be done."""

    shared = True

    def test_the_disk_is_as_it_was(self):
        backing = self.backing()
        self.move(migrate=None)
        self.assertEqual('dest', self.host())
        self.assertEqual(backing, self.backing(host='dest'))
        self.assertEqual([], self.hosts.pulled)


class SharedStorageUnpatchedTestCase(SharedStorageTestCase):
    """Nor by the destination."""

    enabled_on = {'src': WITHOUT}


class SwitchedOffTestCase(ColdTestCase):
    """What the tests above are worth."""

    enabled_fixes = WITHOUT

    def test_nova_lays_the_disk_upon_another_file_system(self):
        self.move(migrate=None)
        self.assertEqual([str(base) for base in self.bases('dest')], [
            self.backing(name, 'dest') for name in self.DISKS[1:]])
        self.assertNotEqual(
            self.bases('src')[0].read_bytes()[:1 << 16],
            self.bases('dest')[0].read_bytes()[:1 << 16])
