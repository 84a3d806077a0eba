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

import collections
import itertools
from unittest import mock

import ddt
import fixtures
from nova.compute import task_states
from nova import exception
from nova import objects
import oslo_messaging
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.fixes import outage
from nova_migfix import migration
from nova_migfix import nova_release
from nova_migfix import place
from nova_migfix.tests import clock

SILENT = oslo_messaging.MessagingTimeout()


class OutageTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.clock = self.useFixture(fixtures.MonkeyPatch(
            'nova_migfix.fixes.outage.time', clock.Clock())).new_value
        self.instance = objects.Instance(uuid=uuids.guest, host='src')
        self.found = mock.create_autospec(
            objects.Instance, instance=True, host='src', uuid=uuids.guest,
            task_state=task_states.MIGRATING)
        self.read = self.useFixture(fixtures.MockPatchObject(
            objects.Instance, 'get_by_uuid', autospec=True,
            return_value=self.found)).mock
        self.last_call = mock.Mock()
        self.driver = mock.Mock(spec=['virtapi', 'active_migrations'])
        self.driver.active_migrations = {}
        self.rpcapi = self.driver.virtapi._compute.compute_rpcapi = mock.Mock()

        # a mock has each attribute, also the mark of a repeated call
        def post_live_migration_at_destination(*args):
            return self.last_call(*args)
        self.rpcapi.post_live_migration_at_destination = (
            post_live_migration_at_destination)
        self.monitor, self.post, self.recover = (
            mock.Mock(), mock.Mock(), mock.Mock())
        self.useFixture(fixtures.MockPatchObject(
            objects.ComputeNode, 'get_first_node_by_host_for_old_compat',
            autospec=True, return_value=objects.ComputeNode(
                id=7, hypervisor_hostname='dest.example')))
        self.outgoing = migration.Outgoing(
            'context', self.instance, 'dest', mock.Mock(), mock.Mock(),
            self.post, self.recover, migration.Operation(), self.monitor)
        outage.Outage().live_migration_monitor(self.driver, self.outgoing)


@ddt.ddt
class TestMonitor(OutageTestCase):

    def test_monitor_ends_as_nova_s_does(self):
        self.outgoing.monitor()
        self.monitor.assert_called_once_with()

    def test_monitor_starts_again_after_an_outage(self):
        self.monitor.side_effect = [SILENT, OSError(), None]
        self.outgoing.monitor()
        self.assertEqual(3, self.monitor.call_count)
        self.assertEqual(10, self.clock.now)
        self.assertIn('starts again', self.log.output)

    def test_pending_requests_survive(self):
        pending = self.driver.active_migrations[uuids.guest] = (
            collections.deque(['force-complete']))
        self.monitor.side_effect = [SILENT, None]
        self.outgoing.monitor()
        self.assertIs(pending, self.driver.active_migrations[uuids.guest])

    def test_next_requests_find_a_list(self):
        self.monitor.side_effect = [SILENT, None]
        self.outgoing.monitor()
        self.assertEqual(collections.deque(),
                         self.driver.active_migrations[uuids.guest])

    @ddt.data(
        place.PlaceUnknown(uuid=uuids.guest, dest='dest', reason='silence'),
        exception.InstanceNotFound(instance_id=uuids.guest))
    def test_unknown_or_deleted_guest_ends_the_monitor(self, error):
        self.monitor.side_effect = error
        self.assertRaises(type(error), self.outgoing.monitor)
        self.monitor.assert_called_once_with()

    @ddt.data('post', 'recover')
    def test_failure_at_the_end_ends_the_monitor(self, method):
        self.found.task_state = None
        getattr(self, method).side_effect = ConnectionError
        self.monitor.side_effect = getattr(self.outgoing, f'{method}_method')
        self.assertRaises(ConnectionError, self.outgoing.monitor)
        self.monitor.assert_called_once_with()

    def test_monitor_of_an_ended_operation_fails_in_the_end(self):
        self.outgoing.operation.has_ended = True
        self.monitor.side_effect = OSError
        self.assertRaises(OSError, self.outgoing.monitor)
        self.assertGreater(self.clock.now, 600)

    def test_monitor_without_an_operation_is_nova_s(self):
        monitor = self.outgoing.monitor = mock.Mock()
        self.outgoing.operation = None
        outage.Outage().live_migration_monitor(self.driver, self.outgoing)
        self.assertIs(monitor, self.outgoing.monitor)


@ddt.ddt
class TestEnd(OutageTestCase):

    @ddt.data('post', 'recover')
    def test_end_waits_for_the_control_plane(self, method):
        self.read.side_effect = itertools.chain(
            [SILENT, OSError()], itertools.repeat(self.found))
        getattr(self.outgoing, f'{method}_method')('context', status='failed')
        getattr(self, method).assert_called_once_with(
            'context', status='failed')
        self.assertEqual(10, self.clock.now)
        self.assertIn('has to wait for the conductor', self.log.output)

    @ddt.data('post', 'recover')
    def test_end_of_a_deleted_guest_does_not_wait(self, method):
        self.read.side_effect = exception.InstanceNotFound(
            instance_id=uuids.guest)
        getattr(self.outgoing, f'{method}_method')('context')
        getattr(self, method).assert_called_once_with('context')


@ddt.ddt
class TestFailureAfterArrival(OutageTestCase):
    """Nova fails after the guest has arrived."""

    def setUp(self):
        super().setUp()
        self.post.side_effect = ConnectionError

    def finish(self):
        self.assertRaises(ConnectionError, self.outgoing.post_method)

    def test_new_host_is_saved(self):
        self.finish()
        self.found.apply_migration_context.assert_called_once_with()
        self.found.drop_migration_context.assert_called_once_with()
        self.found.save.assert_called_once_with()
        self.assertEqual(
            ('dest', 'dest.example', 7, None, 0),
            (self.found.host, self.found.node, self.found.compute_id,
             self.found.task_state, self.found.progress))

    @ddt.data((29, 1), (30, 0))
    @ddt.unpack
    def test_new_host_is_saved_if_nova_29_ignores_the_failure(
            self, release, saved):
        self.useFixture(fixtures.MockPatchObject(
            nova_release, 'major', autospec=True, return_value=release))
        self.post.side_effect = None
        self.outgoing.post_method()
        self.assertEqual(saved, self.found.save.call_count)
        # the wait for the conductor reads the instance too
        self.assertEqual(1 + saved, self.read.call_count)

    def test_host_that_nova_has_saved_stays(self):
        self.found.host = 'dest'
        self.finish()
        self.found.save.assert_not_called()

    def test_instance_in_another_task_stays(self):
        self.found.task_state = task_states.DELETING
        self.finish()
        self.found.save.assert_not_called()

    def test_deleted_instance_is_not_saved(self):
        self.read.side_effect = exception.InstanceNotFound(
            instance_id=uuids.guest)
        self.finish()
        self.found.save.assert_not_called()


class TestLastCall(OutageTestCase):
    """The destination's nova-compute restarts after the arrival."""

    def setUp(self):
        super().setUp()
        self.post.side_effect = self.call

    def call(self):
        self.rpcapi.post_live_migration_at_destination(
            'context', self.instance, True, 'dest')

    def test_call_is_repeated_until_it_answers(self):
        self.last_call.side_effect = [SILENT, SILENT, None]
        self.outgoing.post_method()
        self.assertEqual(3, self.last_call.call_count)
        self.last_call.assert_called_with(
            'context', self.instance, True, 'dest')

    def test_call_that_has_taken_effect_is_not_repeated(self):
        self.last_call.side_effect = SILENT
        self.read.side_effect = itertools.chain(
            [self.found], itertools.repeat(mock.Mock(host='dest')))
        self.outgoing.post_method()
        self.last_call.assert_called_once()

    def test_error_of_the_destination_is_nova_s(self):
        self.last_call.side_effect = exception.NovaException
        self.found.host = 'dest'
        self.assertRaises(exception.NovaException, self.outgoing.post_method)
        self.last_call.assert_called_once()

    def test_destination_that_stays_silent_is_nova_s(self):
        self.last_call.side_effect = SILENT
        self.assertRaises(
            oslo_messaging.MessagingTimeout, self.outgoing.post_method)
        self.assertGreater(self.clock.now, 600)

    def test_next_migration_repeats_no_more_often(self):
        self.outgoing.post_method()
        repeated = self.rpcapi.post_live_migration_at_destination
        self.outgoing.post_method()
        self.assertIs(
            repeated, self.rpcapi.post_live_migration_at_destination)
