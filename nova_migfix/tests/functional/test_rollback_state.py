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


"""A guest that runs on after a failed live migration stays as it was."""

import time
from unittest import mock

import fixtures
from nova import exception
from nova.tests.fixtures import libvirt as fakelibvirt

from nova_migfix import nova_release
from nova_migfix.tests.functional import base

REASON = 'unable to execute QEMU command: Failed to load virtio-net:virtio'

# VIR_ERR_OPERATION_ABORTED
ABORTED = 78

#: The event with the reason, for which the migration record has no field.
EVENT = 'compute__live_migration_operation'

#: Nova raises a failure again after it has rolled back.
RAISED_AGAIN = nova_release.major() >= 32

#: states of record and server as unmodified Nova leaves them
NOVA = ('error', 'ERROR') if RAISED_AGAIN else ('failed', 'ACTIVE')


def fail(domain, also=lambda domain: None):
    """Fail as libvirt on the source when QEMU refuses the guest.

    :param also: a function that changes the domain further
    """
    # as libvirt reports after the end of a job
    domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_NONE
    also(domain)
    raise fakelibvirt.make_libvirtError(
        fakelibvirt.libvirtError, REASON,
        error_code=fakelibvirt.VIR_ERR_INTERNAL_ERROR)


class FailingMigrationTestCase(base.MigrationTestCase):
    """Libvirt fails to migrate, with an error of QEMU.

    :ivar fails: a function that changes the domain on the source during the
        failure; None lets libvirt succeed
    """

    def setUp(self):
        super().setUp()
        self.fails = self.runs_on
        self.boot()

    def _migrate_stub(self, domain, destination, params, flags):
        if self.fails is None:
            super()._migrate_stub(domain, destination, params, flags)
            return
        fail(self.source_domain(), self.fails)

    def runs_on(self, domain):
        """Leave the guest running, as after most failures."""

    def is_cancelled(self, domain):
        """Cancel the job; the guest keeps running."""
        domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_CANCELLED
        raise fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'migration out: canceled by client',
            error_code=ABORTED)

    def is_paused_by_nova(self, domain):
        """Wait until Nova pauses a guest that does not converge."""
        domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED
        while domain._state != fakelibvirt.VIR_DOMAIN_PAUSED:
            time.sleep(0.1)
        domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_NONE

    def is_left_paused(self, domain):
        """Pause the guest: it is unknown on which host it may run."""
        domain.suspend()

    def cannot_be_asked(self, domain):
        """Make libvirt fail to report the state of the guest."""
        domain.info = mock.create_autospec(
            domain.info, side_effect=fakelibvirt.make_libvirtError(
                fakelibvirt.libvirtError, 'cannot acquire state change lock',
                error_code=fakelibvirt.VIR_ERR_OPERATION_TIMEOUT))

    def assert_nothing_left_on_destination(self):
        self.assertEqual(
            {}, self.dest.driver._host.get_connection()._vms)
        self.assertEqual(
            ['src'], list(self.neutron._port_bindings[
                self.neutron.port_1['id']]))
        self.assertEqual({}, self._get_allocations_by_server_uuid(
            self.migrations()[-1]['uuid']))


class RolledBackTestCase(FailingMigrationTestCase):

    def test_guest_is_active_on_its_source_and_migrates_next_time(self):
        self.live_migrate('failed', 'ACTIVE')
        self.assertEqual('src', self.host())
        self.assert_nothing_left_on_destination()
        self.fails = None
        self.live_migrate('completed', 'ACTIVE')
        self.assertEqual('dest', self.host())

    def test_guest_of_a_cancelled_migration_stays_active(self):
        self.fails = self.is_cancelled
        self.live_migrate('cancelled', 'ACTIVE')
        self.assertEqual('src', self.host())
        self.assert_nothing_left_on_destination()

    def test_guest_of_a_forced_migration_stays_active(self):
        self.flags(live_migration_timeout_action='force_complete',
                   live_migration_completion_timeout=1, group='libvirt')
        self.fails = self.is_paused_by_nova
        self.live_migrate('failed', 'ACTIVE')
        self.assertEqual(
            fakelibvirt.VIR_DOMAIN_RUNNING, self.source_domain().info()[0])

    def test_guest_paused_by_its_owner_stays_paused(self):
        self.api.post_server_action(self.server['id'], {'pause': {}})
        self._wait_for_state_change(self.server, 'PAUSED')
        self.live_migrate('failed', 'PAUSED')
        self.assertEqual('src', self.host())
        self.assert_nothing_left_on_destination()

    def test_reason_is_an_event_of_the_instance_action(self):
        if not RAISED_AGAIN:
            self.skipTest('this Nova does not need the fix, which steps aside')
        self.live_migrate('failed', 'ACTIVE')
        event = self.failed_event(EVENT)
        self.assertEqual('src', event['host'])
        self.assertIn(REASON, event['details'])


class UnknownStateTestCase(FailingMigrationTestCase):
    """A guest whose state is unknown is not reported as running."""

    def test_guest_left_paused_is_left_to_nova(self):
        self.fails = self.is_left_paused
        self.live_migrate(*NOVA)

    def test_guest_with_unknown_state_is_in_error(self):
        self.useFixture(fixtures.MonkeyPatch(
            'nova_migfix.place._PATIENCE', 1))
        self.fails = self.cannot_be_asked
        self.live_migrate('error', 'ERROR')

    def test_failed_rollback_is_left_to_nova(self):
        self.useFixture(fixtures.MockPatch(
            'nova.compute.manager.ComputeManager._revert_allocation',
            autospec=True, side_effect=exception.NovaException()))
        self.live_migrate('error', 'ERROR')


class WithoutFixTestCase(FailingMigrationTestCase):
    """The fault of Nova that the fix prevents."""

    enabled_fixes = ['source_address', 'vnic']

    def test_unmodified_nova_puts_a_running_guest_in_error(self):
        if not RAISED_AGAIN:
            self.skipTest('this Nova does not need the fix')
        self.live_migrate('error', 'ERROR')
        self.assertEqual(
            fakelibvirt.VIR_DOMAIN_RUNNING, self.source_domain().info()[0])
