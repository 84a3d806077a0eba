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
from nova.virt.libvirt import guest as libvirt_guest
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.fixes import rollback_state

ERROR = RuntimeError('qemu unexpectedly closed the monitor')


@ddt.ddt
class TestRollbackState(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.reporter = self.useFixture(fixtures.MockPatchObject(
            compute_utils, 'EventReporter', autospec=True)).mock
        self.event = self.reporter.return_value
        self.event.__exit__.return_value = False
        self.guest = mock.create_autospec(libvirt_guest.Guest, instance=True)

    def settles(self, vm_state, state):
        self.guest.get_power_state.side_effect = [state]
        return rollback_state.RollbackState().settles_failure(
            'context', objects.Instance(
                uuid=uuids.guest, host='compute1', vm_state=vm_state),
            self.guest, 'host', ERROR)

    @ddt.data((vm_states.ACTIVE, power_state.RUNNING),
              (vm_states.PAUSED, power_state.PAUSED))
    @ddt.unpack
    def test_a_guest_that_is_as_before(self, vm_state, state):
        self.assertTrue(self.settles(vm_state, state))
        self.assertIn(f'kept {vm_state} where Nova would have set error',
                      self.log.output)
        self.assertIn(str(ERROR), self.log.output)

    def test_the_reason_is_an_event_of_the_action(self):
        self.settles(vm_states.ACTIVE, power_state.RUNNING)
        self.reporter.assert_called_once_with(
            'context', 'compute__live_migration_operation', 'compute1',
            uuids.guest)
        recorded = self.event.__exit__.call_args.args[1]
        self.assertEqual(f'Migration error: {ERROR}', str(recorded))
        self.assertIs(ERROR, recorded.__cause__)

    def test_a_reason_that_cannot_be_recorded_is_no_new_failure(self):
        self.event.__exit__.side_effect = exception.InstanceActionNotFound(
            request_id='r', instance_uuid='u')
        self.assertTrue(self.settles(vm_states.ACTIVE, power_state.RUNNING))
        self.assertIn('could not be recorded', self.log.output)

    @ddt.data(
        # post-copy failed, or nobody knows where the guest may run on
        (vm_states.ACTIVE, power_state.PAUSED),
        (vm_states.ACTIVE, power_state.SHUTDOWN),
        (vm_states.ACTIVE, power_state.CRASHED),
        (vm_states.ACTIVE, power_state.NOSTATE),
        (vm_states.PAUSED, power_state.RUNNING),
        (vm_states.ERROR, power_state.RUNNING),
        (vm_states.ACTIVE, exception.InstanceNotFound(instance_id='u')),
        (vm_states.ACTIVE, exception.InternalError('no libvirt')),
        (vm_states.ACTIVE, ConnectionError('libvirtd is gone')),
    )
    @ddt.unpack
    def test_whatever_else_is_left_to_nova(self, vm_state, state):
        self.assertFalse(self.settles(vm_state, state))
        self.assertIn('it is left to Nova', self.log.output)
        self.reporter.assert_not_called()

    @ddt.data((29, False), (31, False), (32, True), (34, True))
    @ddt.unpack
    def test_needed_from_nova_32(self, major, needed):
        with mock.patch('nova_migfix.nova_release.major', autospec=True,
                        return_value=major):
            reason = rollback_state.RollbackState.not_needed()
        self.assertEqual(needed, reason is None)
