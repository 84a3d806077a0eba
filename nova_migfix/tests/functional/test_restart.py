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


"""What a guest's disks lie upon is looked at before it is started again."""

import ddt

from nova_migfix.tests.functional import storage


class RestartTestCase(storage.StorageTestCase):

    def setUp(self):
        super().setUp()
        hard_reboot = self.src.driver._hard_reboot

        def by_a_user(context, *args, **kwargs):
            # Without a token Nova makes no backing files.
            context.auth_token = 'token'
            hard_reboot(context, *args, **kwargs)
        self.src.driver._hard_reboot = by_a_user

    def bring_to(self, action):
        """Bring the guest to the state in which it is acted upon so."""
        if action == 'os-start':
            self.server = self._stop_server(self.server)

    def restart(self, action):
        self.act(**{'os-start': {'os-start': None},
                    'soft reboot': {'reboot': {'type': 'SOFT'}},
                    'reboot': {'reboot': {'type': 'HARD'}}}[action])

    def assert_refused(self, action, reason):
        """The guest is in the state in which it was, and is told why."""
        before = self.server['status']
        disk = self.path().read_bytes()
        self.restart(action)
        for part in (f'disk.eph0 of instance {self.server["id"]} has data',
                     reason):
            self.assertIn(part, self.fault())
        self.assertEqual(before, self.server['status'])
        self.assertEqual(before == 'ACTIVE',
                         bool(self.source_domain().isActive()))
        self.assertEqual(disk, self.path().read_bytes())


@ddt.ddt
class LostBaseTestCase(RestartTestCase):
    """The image cache has removed the backing file."""

    @ddt.data('reboot', 'os-start')
    def test_under_data_it_is_not_made_anew(self, action):
        self.boot(1)
        self.write()
        self.bring_to(action)
        self.lose_base()
        self.assert_refused(action, 'is missing')
        self.assertEqual([], self.bases())

    @ddt.data('reboot', 'os-start')
    def test_a_disk_never_written_to_is_made_anew(self, action):
        self.boot(1, (2, 'xfs'))
        self.bring_to(action)
        self.lose_base('disk.eph1')
        self.restart(action)
        self.assertEqual('ACTIVE', self.server['status'])
        self._wait_for_assert(lambda: self.assertIsNone(
            self.backing('disk.eph1')))
        self.assert_has('xfs', 'ephemeral1', 'disk.eph1')
        self.assertIsNotNone(self.backing('disk.eph0'))

    def test_one_that_is_refused_has_kept_the_others(self):
        self.boot(1, 1)
        self.write('disk.eph1')
        self.lose_base()
        never = self.path('disk.eph0')
        inode = never.stat().st_ino
        self.restart('reboot')
        self.assertIn('disk.eph1 of instance', self.fault())
        # which QEMU has open
        self.assertEqual(inode, never.stat().st_ino)
        self.assertIsNotNone(self.backing('disk.eph0'))

    def test_a_guest_that_is_stopped_has_its_disk_afterwards(self):
        self.boot(1)
        self.write()
        before = self.image()
        self.lose_base()
        self.server = self._stop_server(self.server)
        self.assert_kept(before, host='src')
        self.restart('os-start')
        self.assertEqual('ACTIVE', self.server['status'])
        self.assert_kept(before, host='src')

    def test_a_soft_reboot_goes_on_with_its_disk(self):
        self.boot(1)
        self.write()
        before = self.image()
        self.lose_base()
        self.restart('soft reboot')
        self.assertEqual('ACTIVE', self.server['status'])
        self.assert_kept(before, host='src')


@ddt.ddt
class RefusedTestCase(RestartTestCase):
    """The backing file is lost, and the disk cannot be made complete."""

    def setUp(self):
        super().setUp()
        self.boot(1)
        self.write()
        self.lose_base()
        self.jobs.failing = 'No space left on device'

    @ddt.data({'os-stop': None}, {'suspend': None}, {'shelve': None},
              {'reboot': {'type': 'SOFT'}}, {'migrate': None})
    def test_the_guest_stays_as_it_is(self, action):
        self.act(**action)
        self.assertIn('No space left on device', self.fault())
        self.assertEqual('ACTIVE', self.server['status'])
        self.assertTrue(self.source_domain().isActive())

    def test_a_rescue_leaves_it_running_where_nova_says_error(self):
        self.act(rescue=None)
        self.assertEqual('ERROR', self.server['status'])
        self.assertTrue(self.source_domain().isActive())

    def test_a_rebuild_needs_it_no_more(self):
        self.act(rebuild={'imageRef': self.upload()})
        self.assertEqual('ACTIVE', self.server['status'])
        self.assert_has('ext4', 'ephemeral0')

    def test_nor_does_a_deletion(self):
        self._delete_server(self.server)
        self.assert_nothing_left('src')


@ddt.ddt
class ReplacedBaseTestCase(RestartTestCase):
    """Another guest has had the backing file made anew since."""

    @ddt.data('reboot', 'os-start')
    def test_under_data_it_is_not_taken_for_the_same(self, action):
        self.boot(1)
        self.write()
        self.bring_to(action)
        self.lose_base()
        written, self.server = self.server, None
        self.boot(1)
        self.server = written
        self.assert_refused(
            action, 'is another one than the disk was laid upon')

    def test_it_is_known_also_of_a_disk_from_before_the_plugin(self):
        self.boot(1)
        self.write()
        self.install()
        self.replace_base()
        self.assert_refused(
            'reboot', 'is another one than the disk was laid upon')

    def test_and_of_one_that_was_lost_before_the_plugin(self):
        self.boot(1)
        self.write()
        before = self.image()
        base = self.path(self.backing()).name
        self.lose_base()
        self.install()
        self.have_base(base, 'src')
        self.assert_refused('reboot', 'was missing before')
        self.server = self._live_migrate(self.server)
        self.assert_kept(before)

    def install(self):
        """nova-compute is started first with the plugin."""
        (self.directory() / 'migfix-bases.json').unlink()
        with self.hosts.on('src'):
            self.src.driver.init_host('src')

    @ddt.data(('suspend', 'resume', 'SUSPENDED'),
              # Nova has no better name for it
              ('rescue', 'unrescue', 'ERROR'))
    @ddt.unpack
    def test_a_guest_does_not_go_on_with_it(self, action, end, status):
        self.boot(1)
        self.write()
        self.act(**{action: None})
        domain = self.source_domain().XMLDesc(0)
        self.replace_base()
        self.act(**{end: None})
        self.assertEqual(status, self.server['status'])
        self.assertIn('is another one than the disk was laid upon',
                      self.fault())
        self.assertEqual(domain, self.source_domain().XMLDesc(0))

    def test_after_a_rescue_a_disk_never_written_to_is_made_anew(self):
        self.boot(1)
        self.act(rescue=None)
        self.replace_base()
        self.act(unrescue=None)
        self.assertEqual('ERROR', self.server['status'])
        self.restart('reboot')
        self.assertEqual('ACTIVE', self.server['status'])
        self.assertIsNone(self.backing())

    def test_a_resize_can_be_reverted_while_the_guest_is_off(self):
        self.flags(allow_resize_to_same_host=True)
        service, = self.api.get_services(host='dest', binary='nova-compute')
        self.api.put_service(service['id'], {'status': 'disabled'})
        self.boot(1)
        self.write()
        self.server = self._stop_server(self.server)
        self.move(resize={'flavorRef': self._create_flavor(
            disk=2, ephemeral=8)})
        self.replace_base()
        self.api.post_server_action(self.server['id'], {'revertResize': None})
        self.server = self._wait_for_state_change(self.server, 'SHUTOFF')
        self.assert_refused('os-start', 'is another one')

    def test_a_disk_never_written_to_is_not_laid_upon_it(self):
        self.boot((1, 'xfs'))
        self.lose_base()
        base = self.have_base(self.path(self.backing()).name, 'src')
        was = base.stat().st_mtime_ns
        self.restart('reboot')
        self._wait_for_assert(lambda: self.assertIsNone(self.backing()))
        self.assert_has('xfs', 'ephemeral0')
        self.assertEqual(was, base.stat().st_mtime_ns)


class SwitchedOffTestCase(RestartTestCase):
    """What the tests above are worth."""

    enabled_fixes = ['config_drive', 'kernel_ramdisk', 'source_address']

    def test_nova_makes_it_anew_under_data(self):
        self.boot(1)
        self.write()
        self.lose_base()
        self.restart('reboot')
        self.assertEqual([self.backing()], list(map(str, self.bases())))
