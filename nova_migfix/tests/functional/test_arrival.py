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

"""Guests that stop, or are lost from sight, while they migrate live."""

import threading

import fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import driver as libvirt_driver
import oslo_messaging
from testtools import matchers

from nova_migfix import action
from nova_migfix import nova_release
from nova_migfix.tests.functional import storage

# Reasons for a domain that is off (virDomainShutoffReason).
CRASHED = 3
MIGRATED = 4
# Reasons for a paused domain (virDomainPausedReason).
SWITCHING = 2
POST_COPY_FAILED = 13

#: states of record and server as unmodified Nova leaves them
NOVA = ('error' if nova_release.major() >= 32 else 'completed', 'ERROR')


class EndingMigrationTestCase(storage.StorageTestCase):
    """libvirt's call fails while the guest is in some state.

    :ivar ends: a function that changes the domains in the call
    """

    overlays = False

    def setUp(self):
        super().setUp()
        self.is_aborted = threading.Event()
        for name, seconds in (('_INTERVAL', 0), ('_CERTAINTY', 0),
                              ('_PATIENCE', 1)):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova_migfix.place.{name}', seconds))
        self.boot(1)
        self.write()
        self.before = self.path().read_bytes()
        self.domain = self.source_domain()

    def _migrate_stub(self, domain, destination, params, flags):
        domain = self.source_domain()
        domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_NONE
        self.ends(domain, params['destination_xml'])
        raise fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'domain is not running',
            error_code=fakelibvirt.VIR_ERR_OPERATION_FAILED)

    def left(self):
        """Return the consumers and hosts that have something of the guest."""
        return [*(consumer for consumer in self.consumers if
                  self.placement.get(f'/allocations/{consumer}').body[
                      'allocations']),
                *(host for host in ('src', 'dest')
                  if self.directory(host).exists())]

    def arrive(self, xml):
        """Start the domain on the destination."""
        self.connection(self.dest).createXML(xml, 'flags')

    def dies(self, domain, xml):
        """The source's QEMU is killed while memory is copied."""
        domain._state = fakelibvirt.VIR_DOMAIN_SHUTOFF
        domain.reason = CRASHED

    def dies_after_arrival(self, domain, xml):
        """The source's QEMU is killed, but the destination runs the guest."""
        self.dies(domain, xml)
        self.arrive(xml)

    def is_migrated(self, domain, xml):
        """The answer of libvirt is lost after the migration."""
        domain._state = fakelibvirt.VIR_DOMAIN_SHUTOFF
        domain.reason = MIGRATED
        self.arrive(xml)

    def is_undefined(self, domain, xml):
        """The domain is gone, and the destination does not have it."""
        domain.destroy()
        domain.undefine()

    def is_undefined_after_arrival(self, domain, xml):
        self.is_undefined(domain, xml)
        self.arrive(xml)

    def is_deleted(self, domain, xml):
        """The server is deleted while memory is copied."""
        # The API lists no migrations of deleted servers.
        self.consumers = [self.server['id'], self.migrations()[-1]['uuid']]
        self.assertEqual([*self.consumers, 'src', 'dest'], self.left())
        self._delete_server(self.server)

    def is_left_paused(self, domain, xml):
        """libvirt does not know whether the destination runs the guest."""
        domain._state = fakelibvirt.VIR_DOMAIN_PAUSED
        domain.reason = SWITCHING

    def is_left_paused_after_arrival(self, domain, xml):
        self.is_left_paused(domain, xml)
        self.arrive(xml)

    def fails_in_post_copy(self, domain, xml):
        domain._state = fakelibvirt.VIR_DOMAIN_PAUSED
        domain.reason = POST_COPY_FAILED
        self.arrive(xml)

    @staticmethod
    def connection(compute):
        return compute.driver._host.get_connection()


class ArrivalTestCase(EndingMigrationTestCase):

    def assert_off_on_source(self):
        self.assertEqual('src', self.host())
        self.assertEqual(self.before, self.path().read_bytes())
        self.assertFalse(self.directory('dest').exists())

    def test_guest_that_dies_is_off_on_its_source(self):
        self.ends = self.dies
        self.live_migrate('failed', 'SHUTOFF')
        self.assert_off_on_source()
        event = self.failed_event(action.EVENT)
        self.assertThat(event['details'], matchers.StartsWith(
            'Migration error: the guest stopped before it had arrived on '
            'dest'))

    def test_guest_that_stops_while_the_destination_prepares_stays(self):
        self.ends = None
        prepare = libvirt_driver.LibvirtDriver.pre_live_migration

        def stop_and_prepare(driver, *args, **kwargs):
            self.dies(self.source_domain(), None)
            return prepare(driver, *args, **kwargs)

        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.driver.LibvirtDriver.pre_live_migration',
            stop_and_prepare))
        ask = self.useFixture(fixtures.MockPatch(
            'nova.compute.rpcapi.ComputeAPI.get_instance_diagnostics',
            autospec=True)).mock
        self.live_migrate('failed', 'SHUTOFF')
        self.assert_off_on_source()
        ask.assert_not_called()

    def test_guest_that_dies_after_its_arrival_has_arrived(self):
        self.ends = self.dies_after_arrival
        self.live_migrate('completed')
        self.assertEqual('dest', self.host())

    def test_lost_answer_of_libvirt_loses_no_guest(self):
        self.ends = self.is_migrated
        self.live_migrate('completed')
        self.assertEqual('dest', self.host())

    def test_undefined_guest_that_runs_on_the_destination_has_arrived(self):
        self.ends = self.is_undefined_after_arrival
        self.live_migrate('completed')
        self.assertEqual('dest', self.host())

    def test_nothing_is_left_of_a_server_deleted_meanwhile(self):
        self.ends = self.is_deleted
        self.api.post_server_action(self.server['id'], {
            'os-migrateLive': {'host': None, 'block_migration': 'auto'}})
        self._wait_until_deleted(self.server)
        self._wait_for_assert(
            lambda: self.assertEqual([], self.left()), max_retries=60)

    def test_guest_left_paused_is_resumed_if_it_has_not_arrived(self):
        self.ends = self.is_left_paused
        self.live_migrate('failed')
        self.assertEqual('src', self.host())
        self.assertEqual(
            fakelibvirt.VIR_DOMAIN_RUNNING, self.source_domain()._state)

    def test_guest_left_paused_is_stopped_if_it_runs_on_the_destination(self):
        self.ends = self.is_left_paused_after_arrival
        self.live_migrate('completed')
        self.assertEqual('dest', self.host())
        self.assertEqual(
            fakelibvirt.VIR_DOMAIN_SHUTOFF, self.domain._state)

    def test_abort_that_comes_too_late_does_not_end_the_monitor(self):
        self.flags(live_migration_completion_timeout=1, group='libvirt')
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.abortJob', self.no_job))
        self.ends = self.takes_long
        self.live_migrate('completed')
        self.assertEqual('dest', self.host())

    def no_job(self, domain):
        self.is_aborted.set()
        raise fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'no job is active on the domain',
            error_code=fakelibvirt.VIR_ERR_OPERATION_INVALID)

    def takes_long(self, domain, xml):
        domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED
        self.assertTrue(self.is_aborted.wait(30))
        self.is_migrated(domain, xml)


class UnknownOutcomeTestCase(EndingMigrationTestCase):
    """Nova deletes nothing if it is unknown whether a guest has arrived."""

    def assert_kept(self, reason):
        self.live_migrate('error', 'ERROR')
        self.assertEqual('src', self.host())
        self.assertEqual(self.before, self.path().read_bytes())
        self.assertTrue(self.path(host='dest').exists())
        fault = self.api.get_server(self.server['id'])['fault']['message']
        for words in (self.server['id'], 'has arrived on dest', reason,
                      'virsh list --all'):
            self.assertIn(words, fault)

    def silence_destination(self):
        self.useFixture(fixtures.MockPatch(
            'nova.compute.rpcapi.ComputeAPI.get_instance_diagnostics',
            autospec=True, side_effect=oslo_messaging.MessagingTimeout))

    def test_dead_guest_and_silent_destination_are_kept(self):
        self.ends = self.dies
        self.silence_destination()
        self.assert_kept('dest does not answer')

    def test_guest_that_is_on_no_host_is_kept(self):
        self.ends = self.is_undefined
        self.assert_kept('it is not defined on src')

    def test_guest_in_failed_post_copy_is_kept_on_both_hosts(self):
        self.ends = self.fails_in_post_copy
        self.assert_kept('post-copy failed')

    def test_dead_guest_that_was_paused_is_kept(self):
        self.api.post_server_action(self.server['id'], {'pause': {}})
        self._wait_for_state_change(self.server, 'PAUSED')
        self.ends = self.dies
        self.assert_kept('it is off on src, and was paused')


class WithoutFixTestCase(EndingMigrationTestCase):
    """The fault of Nova that the fix prevents."""

    enabled_fixes = ['config_drive', 'source_address', 'vnic']

    def test_unmodified_nova_takes_a_dead_guest_for_arrived(self):
        self.ends = self.dies
        self.live_migrate(*NOVA)
        self.assertEqual('dest', self.host())
        self.assertFalse(self.directory().exists())
