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

from unittest import mock

import ddt
import fixtures
from nova.compute import power_state
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova import exception
from nova import objects
from nova.tests import fixtures as nova_fixtures
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix import driver
from nova_migfix.fixes import rollback_state
from nova_migfix import migration
from nova_migfix import nova_release

ERROR = RuntimeError('qemu unexpectedly closed the monitor')


@ddt.ddt
class TestRollbackState(testtools.TestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.reporter = self.useFixture(fixtures.MockPatchObject(
            compute_utils, 'EventReporter', autospec=True)).mock
        self.event = self.reporter.return_value
        self.event.__exit__.return_value = False

    def settles(self, vm_state, state, record='failed'):
        """Return whether the fix settles a failure in this state."""
        host = mock.create_autospec(libvirt_host.Host, instance=True)
        host.get_guest.return_value.get_power_state.side_effect = [state]
        return rollback_state.RollbackState().live_migration_failed(
            'context', objects.Instance(
                uuid=uuids.guest, host='compute1', vm_state=vm_state),
            host, objects.LibvirtLiveMigrateData(
                migration=objects.Migration(status=record)), ERROR,
            migration.Operation(error=ERROR))

    @ddt.data((vm_states.ACTIVE, power_state.RUNNING),
              (vm_states.PAUSED, power_state.PAUSED))
    @ddt.unpack
    def test_unchanged_guest_keeps_its_vm_state(self, vm_state, state):
        self.assertTrue(self.settles(vm_state, state))
        self.assertIn(f'kept {vm_state} where Nova would have set error',
                      self.log.output)
        self.assertIn(str(ERROR), self.log.output)

    @ddt.data((vm_states.ACTIVE, power_state.SHUTDOWN),
              (vm_states.ACTIVE, power_state.CRASHED),
              (vm_states.PAUSED, power_state.SHUTDOWN))
    @ddt.unpack
    def test_guest_that_is_off_after_a_rollback_needs_no_error(
            self, vm_state, state):
        self.assertTrue(self.settles(vm_state, state))
        self.reporter.assert_not_called()

    def test_reason_is_an_event_of_the_instance_action(self):
        self.settles(vm_states.ACTIVE, power_state.RUNNING)
        self.reporter.assert_called_once_with(
            'context', 'compute__live_migration_operation', 'compute1',
            uuids.guest)
        recorded = self.event.__exit__.call_args.args[1]
        self.assertEqual(f'Migration error: {ERROR}', str(recorded))
        self.assertIs(ERROR, recorded.__cause__)

    def test_unrecordable_reason_is_no_new_failure(self):
        self.event.__exit__.side_effect = exception.InstanceActionNotFound(
            request_id='r', instance_uuid='u')
        self.assertTrue(self.settles(vm_states.ACTIVE, power_state.RUNNING))
        self.assertIn('could not be recorded', self.log.output)

    @ddt.data(
        # post-copy failed, or it is unknown on which host the guest may run
        (vm_states.ACTIVE, power_state.PAUSED),
        (vm_states.ACTIVE, power_state.NOSTATE),
        (vm_states.PAUSED, power_state.RUNNING),
        (vm_states.ERROR, power_state.RUNNING),
        (vm_states.ACTIVE, exception.InstanceNotFound(instance_id='u')),
        (vm_states.ACTIVE, exception.InternalError('no libvirt')),
        (vm_states.ACTIVE, ConnectionError('libvirtd is gone')),
    )
    @ddt.unpack
    def test_guest_in_any_other_state_is_left_to_nova(self, vm_state, state):
        self.assertFalse(self.settles(vm_state, state))
        self.assertIn('Nova handles the failure', self.log.output)
        self.reporter.assert_not_called()

    def test_cancelled_migration_is_settled_as_cancelled(self):
        self.assertTrue(self.settles(
            vm_states.ACTIVE, power_state.RUNNING, 'cancelled'))
        self.assertIn('Live migration cancelled and rolled back',
                      self.log.output)

    @ddt.data('running', 'completed', 'error', 'preparing')
    def test_unfinished_rollback_is_left_to_nova(self, record):
        self.assertFalse(self.settles(
            vm_states.ACTIVE, power_state.RUNNING, record))
        self.assertIn(f'the record is {record}', self.log.output)
        self.reporter.assert_not_called()

    def test_failure_without_migration_record_is_left_to_nova(self):
        self.assertFalse(rollback_state.RollbackState().live_migration_failed(
            'context', objects.Instance(), mock.Mock(),
            objects.LibvirtLiveMigrateData(), ERROR,
            migration.Operation(error=ERROR)))

    @ddt.data((29, False), (31, False), (32, True), (34, True))
    @ddt.unpack
    def test_fix_is_needed_from_nova_32(self, major, needed):
        with mock.patch('nova_migfix.nova_release.major', autospec=True,
                        return_value=major):
            reason = rollback_state.RollbackState.not_needed()
        self.assertEqual(needed, reason is None)


@testtools.skipIf(nova_release.major() < 32, 'there is nothing to settle')
class TestWithMonitorOfNova(testtools.TestCase):
    """Nova's ``_live_migration`` and monitor handle a failed operation."""

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.useFixture(nova_fixtures.LibvirtFixture())
        self.useFixture(fixtures.MockPatchObject(
            compute_utils, 'EventReporter', autospec=True
        )).mock.return_value.__exit__.return_value = False
        for name, behaviour in (
                ('_live_migration_operation', {'side_effect': ERROR}),
                ('_live_migration_data_gb', {'return_value': 1}),
                ('_get_vpmems', {'return_value': []}),
                ('live_migration_abort', {})):
            self.useFixture(fixtures.MockPatchObject(
                libvirt_driver.LibvirtDriver, name, autospec=True,
                **behaviour))
        self.useFixture(fixtures.MockPatch(
            'nova_migfix.fixes.load', autospec=True,
            return_value=(rollback_state.RollbackState(),)))
        self.driver = driver.LibvirtDriver(fake.FakeVirtAPI())
        self.driver._host = mock.create_autospec(
            libvirt_host.Host, instance=True)
        self.guest = self.driver._host.get_guest.return_value
        self.guest.get_job_info.return_value = libvirt_guest.JobInfo()
        self.record = objects.Migration(status='running')
        self.post_method = mock.Mock()

    def recover(self, *args, **kwargs):
        self.record.status = 'failed'

    def migrate(self, active, state):
        """Migrate a guest that is in this state after the failure."""
        self.guest.is_active.return_value = active
        self.guest.get_power_state.return_value = state
        data = objects.LibvirtLiveMigrateData(
            block_migration=False, migration=self.record)
        self.driver._live_migration(
            'context', objects.Instance(
                uuid=uuids.guest, host='compute1',
                vm_state=vm_states.ACTIVE, resources=None),
            'dest', self.post_method, self.recover, False, data)

    def test_rolled_back_failure_is_not_raised_again(self):
        self.migrate(active=True, state=power_state.RUNNING)
        self.assertEqual('failed', self.record.status)
        self.post_method.assert_not_called()

    def test_guest_that_disappears_is_left_to_nova(self):
        # the monitor treats it as a completed migration
        self.assertRaises(RuntimeError, self.migrate,
                          active=False, state=power_state.RUNNING)
        self.post_method.assert_called_once()

    def test_paused_guest_is_left_to_nova(self):
        self.assertRaises(RuntimeError, self.migrate,
                          active=True, state=power_state.PAUSED)

    def test_failed_rollback_is_left_to_nova(self):
        self.recover = mock.Mock(side_effect=ConnectionError('no conductor'))
        self.assertRaises(ConnectionError, self.migrate,
                          active=True, state=power_state.RUNNING)

    def test_failure_is_raised_again_without_the_fix(self):
        self.driver._fixes = ()
        self.assertRaises(RuntimeError, self.migrate,
                          active=True, state=power_state.RUNNING)
