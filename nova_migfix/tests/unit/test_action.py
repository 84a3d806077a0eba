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


import fixtures
from nova.compute import utils as compute_utils
from nova import exception
from nova import objects
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix import action


class TestRecordFailure(testtools.TestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        event = self.useFixture(fixtures.MockPatchObject(
            compute_utils, 'EventReporter', autospec=True)).mock
        self.leave = event.return_value.__exit__
        self.leave.return_value = False
        self.instance = objects.Instance(uuid=uuids.guest, host='src')

    def recorded(self, error):
        action.record_failure('context', self.instance, error)
        (_kind, recorded, traceback), _kwargs = self.leave.call_args
        self.assertIsNotNone(traceback)
        return recorded

    def test_error_of_libvirt_gets_a_message(self):
        error = RuntimeError('unable to connect')
        recorded = self.recorded(error)
        self.assertEqual('Migration error: unable to connect', str(recorded))
        self.assertIs(error, recorded.__cause__)

    def test_migration_error_keeps_its_message(self):
        error = exception.MigrationError(reason='the guest stopped')
        self.assertIs(error, self.recorded(error))

    def test_unrecordable_reason_is_logged(self):
        log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.leave.side_effect = exception.InstanceActionNotFound(
            request_id='r', instance_uuid='u')
        action.record_failure('context', self.instance, RuntimeError())
        self.assertIn('could not be recorded', log.output)
