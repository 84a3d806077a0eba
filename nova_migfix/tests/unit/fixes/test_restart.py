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

import dataclasses
import datetime
from unittest import mock

import ddt
import fixtures
from nova.compute import manager as compute_manager
from nova.compute import power_state
from nova.compute import rpcapi
from nova.compute import task_states
from nova.compute import utils as compute_utils
from nova import exception
from nova.network import neutron
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
from oslo_config import cfg
from oslo_config import fixture as config_fixture
import oslo_messaging
from oslo_utils.fixture import uuidsentinel as uuids
from oslo_utils import timeutils
import testtools

from nova_migfix import action
from nova_migfix.fixes import post_copy
from nova_migfix.fixes import restart
from nova_migfix.fixes.restart import recovery
from nova_migfix import journal
from nova_migfix import place

SOURCE, OFF, DESTINATION, _DELETED = place.Place
SILENT = place.DestinationSilent(uuid=uuids.guest, dest='dest', reason='-')
UNKNOWN = place.PlaceUnknown(uuid=uuids.guest, dest='dest', reason='-')
POST_COPY = 'running (post-copy)'
# Nova's method on the destination: the first one that exists
ROLL_BACK = ('_do_rollback_live_migration_at_destination',
             'rollback_live_migration_at_destination')


class Stop(BaseException):
    """Ends a loop that waits for a change."""


def volume(attachment):
    return objects.BlockDeviceMapping(
        instance_uuid=uuids.guest, volume_id=uuids.volume,
        destination_type='volume', attachment_id=attachment)


class RestartTestCase(testtools.TestCase):
    """nova-compute of the source starts.

    :ivar entry: of the journal
    :ivar record: of the migration
    """

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.guest.libvirt', fakelibvirt))
        config = self.useFixture(config_fixture.Config(cfg.CONF))
        config.config(state_path=self.useFixture(fixtures.TempDir()).path)
        self.config = config.config
        self.sleep = self.patch(recovery.time, 'sleep', side_effect=Stop)
        self.find = self.patch(place, 'find')
        self.go_on = self.patch(post_copy, 'go_on')
        self.event = self.patch(action, 'record_failure')
        self.fault = self.patch(
            compute_utils, 'add_instance_fault_from_exc')
        self.make_manager()
        self.make_records()
        self.entry = journal.Entry(
            uuids.guest, 7, 'dest', True, objects.LibvirtLiveMigrateData(
                block_migration=True),
            objects.BlockDeviceMappingList(objects=[volume(uuids.source)]))

    def patch(self, where, name, **kwargs):
        return self.useFixture(fixtures.MockPatchObject(
            where, name, autospec=True, **kwargs)).mock

    def make_manager(self):
        manager = mock.create_autospec(
            compute_manager.ComputeManager, instance=True)
        manager.host = 'src'
        manager.compute_rpcapi = mock.create_autospec(
            rpcapi.ComputeAPI, instance=True)
        # the fix marks the function that replaces it
        manager.compute_rpcapi.drop_move_claim_at_destination = mock.Mock(
            spec=[])
        manager.network_api = mock.create_autospec(
            neutron.API, instance=True)
        self.guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
        self.guest.get_job_info.return_value = libvirt_guest.JobInfo(
            type=fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED)
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host.get_guest.return_value = self.guest
        self.driver = mock.Mock(
            spec=['_host', 'virtapi', 'emit_event',
                  'rollback_live_migration_at_source'],
            _host=self.host, virtapi=mock.Mock(
                spec=['_compute'], _compute=manager))
        manager.driver = self.driver
        self.manager = manager
        #: Nova's methods, which the fix replaces
        self.nova = {name: mock.Mock() for name in (
            '_reset_live_migration', '_resume_guests_state',
            'pre_start_hook', '_do_live_migration',
            '_rollback_live_migration', 'live_migration_abort',
            '_do_pre_live_migration_from_source',
            next(filter(lambda one: hasattr(manager, one), ROLL_BACK)))}
        manager.configure_mock(**self.nova)

    def make_records(self):
        self.instance = objects.Instance(
            uuid=uuids.guest, host='src', vm_state='active',
            power_state=power_state.RUNNING, migration_context=None,
            task_state=task_states.MIGRATING,
            info_cache=objects.InstanceInfoCache(network_info=None))
        for name in ('save', 'refresh', 'drop_migration_context'):
            setattr(self.instance, name, mock.Mock())
        self.record = objects.Migration(
            id=7, status='running', dest_compute='dest',
            source_compute='src', updated_at=timeutils.utcnow(
                with_timezone=True))
        self.record.save = mock.Mock()
        self.get_instance = self.patch(
            objects.Instance, 'get_by_uuid', return_value=self.instance)
        self.patch(objects.Migration, 'get_by_id', return_value=self.record)
        self.records = self.patch(
            objects.MigrationList, 'get_by_filters',
            return_value=objects.MigrationList(objects=[self.record]))
        self.patch(
            objects.InstanceActionList, 'get_by_instance_uuid',
            return_value=[
                objects.InstanceAction(id=1, action='live-migration',
                                       request_id='req-0'),
                objects.InstanceAction(id=2, action='live-migration',
                                       request_id='req-1'),
                objects.InstanceAction(id=3, action='stop',
                                       request_id='req-2')])
        self.events = self.patch(
            objects.InstanceActionEventList, 'get_by_action',
            return_value=[objects.InstanceActionEvent(
                event='compute_pre_live_migration',
                finish_time=timeutils.utcnow(with_timezone=True))])
        self.patch(objects.BlockDeviceMappingList, 'get_by_instance_uuid',
                   return_value=[volume(uuids.dest)])

        def arrive(*args, **kwargs):
            self.instance.host = 'dest'
        self.manager._post_live_migration_update_host.side_effect = arrive
        self.manager.compute_rpcapi \
            .post_live_migration_at_destination.side_effect = arrive

    def start(self, status='running', entry=True):
        """Start nova-compute, and run its threads to their end."""
        self.record.status = status
        if entry:
            journal.write('src', self.entry)
        restart.Restart().extend_driver(self.driver)
        self.manager._reset_live_migration('context', self.instance)
        with mock.patch.object(recovery.threading, 'Thread', Thread):
            self.manager.pre_start_hook('service')
        self.nova['pre_start_hook'].assert_called_once_with('service')

    def start_in_vain(self, *args, **kwargs):
        """Start nova-compute, which does not settle the migration."""
        self.assertRaises(Stop, self.start, *args, **kwargs)
        self.assertEqual('migrating', self.instance.task_state)
        self.assertIn('is not settled yet', self.log.output)

    # -- the outcome ----------------------------------------------------------

    def assert_cancelled(self, status):
        self.manager._revert_allocation.assert_called_once_with(
            mock.ANY, self.instance, self.record)
        self.manager.network_api.setup_networks_on_host \
            .assert_called_once_with(mock.ANY, self.instance, host='dest',
                                     teardown=True)
        self.assertIsNone(self.instance.task_state)
        self.instance.save.assert_called_once_with(
            expected_task_state=['migrating'])
        self.assertEqual(status, self.record.status)
        self.nova['_rollback_live_migration'].assert_not_called()

    def assert_rolled_back(self, is_running):
        call, = self.nova['_rollback_live_migration'].mock_calls
        self.assertEqual((self.instance, 'dest'), call.args[1:])
        self.assertTrue(call.kwargs['pre_live_migration'])
        data = call.kwargs['migrate_data']
        self.assertIs(self.record, data.migration)
        self.assertEqual([uuids.source], [
            bdm.attachment_id for bdm in call.kwargs['source_bdms']])
        self.assertEqual(
            int(is_running), self.driver
            .rollback_live_migration_at_source.call_count)
        self.assertEqual([], journal.instances('src'))
        self.assertIn('is rolled back', self.log.output)

    def disconnected(self):
        """Return the attachments that the destination removed."""
        call, = self.manager._remove_remote_volume_connections.mock_calls
        return [bdm.attachment_id for bdm in call.args[2]]

    def assert_finished(self):
        call, = self.manager._post_live_migration_update_host.mock_calls
        self.assertEqual((self.instance, 'dest', True), call.args[1:])
        self.assertIs(self.record, call.kwargs['migrate_data'].migration)
        self.assertEqual([uuids.source], [
            bdm.attachment_id for bdm in call.kwargs['source_bdms']])
        self.assertEqual([], journal.instances('src'))
        self.assertIn('had arrived on dest', self.log.output)

    def assert_error(self):
        self.manager._set_instance_obj_error_state.assert_called_once_with(
            self.instance, clean_task_state=True)
        self.assertEqual('error', self.record.status)
        self.nova['_rollback_live_migration'].assert_not_called()


class Thread:
    """A thread that runs at once."""

    def __init__(self, target, args, daemon):
        self.start = lambda: target(*args)


@ddt.ddt
class TestSettle(RestartTestCase):
    """A table of record, place of the guest, and entry of the journal."""

    @ddt.data('queued', 'cancelled')
    def test_queued_migration_is_cancelled(self, status):
        self.start(status, entry=False)
        self.assert_cancelled('cancelled')
        self.find.assert_not_called()

    def test_claims_of_a_queued_migration_are_dropped(self):
        self.instance.migration_context = objects.MigrationContext()
        drop = self.manager.compute_rpcapi.drop_move_claim_at_destination
        drop.side_effect = oslo_messaging.MessagingTimeout
        self.start('queued', entry=False)
        drop.assert_called_once_with(mock.ANY, self.instance, 'dest')
        self.assert_cancelled('cancelled')

    @ddt.data(SOURCE, OFF)
    def test_prepared_migration_is_rolled_back(self, found):
        self.find.return_value = found
        self.start('preparing')
        self.assertEqual({'has_started': False}, self.find.call_args.kwargs)
        self.assert_rolled_back(is_running=False)
        self.assertEqual([uuids.dest], self.disconnected())
        self.assertEqual(
            int(found is OFF), self.driver.emit_event.call_count)

    @ddt.data('running', POST_COPY, 'error', 'completed', 'failed')
    def test_guest_on_the_source_is_rolled_back(self, status):
        self.find.return_value = SOURCE
        self.start(status)
        self.assert_rolled_back(is_running=True)
        self.driver.emit_event.assert_not_called()
        self.assertEqual(
            int(status != POST_COPY), self.guest.abort_job.call_count)

    def test_guest_that_is_off_becomes_shutoff(self):
        self.find.return_value = OFF
        self.start()
        self.assert_rolled_back(is_running=True)
        self.driver.emit_event.assert_called_once()
        self.assertIn('the guest stopped before it had arrived on dest',
                      str(self.event.call_args.args[2]))

    def test_guest_that_is_off_starts_with_its_host(self):
        self.config(resume_guests_state_on_host_boot=True)
        self.find.return_value = OFF
        self.start()
        self.assert_rolled_back(is_running=True)
        self.driver.emit_event.assert_not_called()
        self.nova['_resume_guests_state'].assert_called_once()

    @ddt.data('running', POST_COPY, 'error', 'completed')
    def test_guest_on_the_destination_is_finished(self, status):
        self.find.return_value = DESTINATION
        self.start(status)
        self.assert_finished()

    @ddt.data('running', POST_COPY)
    def test_unknown_place_is_an_error(self, status):
        self.find.side_effect = UNKNOWN
        self.start(status)
        self.assert_error()
        self.event.assert_called_once_with(
            mock.ANY, self.instance, UNKNOWN)
        self.fault.assert_called_once_with(
            mock.ANY, self.instance, UNKNOWN)

    def test_preparation_that_failed_to_roll_back_is_rolled_back(self):
        self.entry = dataclasses.replace(
            self.entry, is_prepared=False)
        self.find.return_value = SOURCE
        self.start('error')
        self.assert_rolled_back(is_running=False)

    @ddt.data(('running', SOURCE), ('preparing', SOURCE), ('running', OFF))
    @ddt.unpack
    def test_guest_stays_without_an_entry(self, status, found):
        self.find.return_value = found
        self.start(status, entry=False)
        self.assert_cancelled('error')
        self.assertIn('data for a complete rollback', self.log.output)
        self.assertEqual(
            int(found is OFF), self.driver.emit_event.call_count)

    def test_guest_has_arrived_without_an_entry(self):
        self.find.return_value = DESTINATION
        self.start(entry=False)
        self.manager._post_live_migration_update_host.assert_not_called()
        self.manager.compute_rpcapi.post_live_migration_at_destination \
            .assert_called_once_with(
                mock.ANY, self.instance, False, 'dest')
        self.assertEqual('completed', self.record.status)
        self.manager._delete_allocation_after_move.assert_called_once()
        self.assertIn('remain in /', self.log.output)
        self.assertIn(uuids.guest, self.log.output)

    def test_entry_of_another_migration_is_ignored(self):
        self.entry = dataclasses.replace(self.entry, migration=6)
        self.find.return_value = SOURCE
        self.start()
        self.assert_cancelled('error')

    def test_events_belong_to_the_action_of_the_user(self):
        self.find.side_effect = UNKNOWN
        self.start()
        self.assertEqual('req-1', self.event.call_args.args[0].request_id)

    def test_volumes_of_the_source_are_not_disconnected(self):
        # A call to the destination would delete their attachment.
        objects.BlockDeviceMappingList.get_by_instance_uuid.return_value = [
            volume(uuids.source)]
        self.find.return_value = SOURCE
        self.start()
        self.assert_rolled_back(is_running=True)
        self.assertEqual([], self.disconnected())

    def test_job_that_has_ended_is_not_aborted(self):
        self.guest.get_job_info.return_value = libvirt_guest.JobInfo()
        self.find.return_value = SOURCE
        self.start()
        self.guest.abort_job.assert_not_called()

    @ddt.data(
        exception.InstanceNotFound(instance_id=uuids.guest),
        fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'no job', error_code=55))
    def test_abort_that_comes_too_late_is_no_error(self, error):
        self.guest.abort_job.side_effect = error
        self.find.return_value = DESTINATION
        self.start()
        self.assert_finished()

    def test_interrupted_post_copy_is_resumed_before_the_search(self):
        self.go_on.side_effect = lambda *args: self.find.assert_not_called()
        self.find.return_value = DESTINATION
        self.start(POST_COPY)
        self.go_on.assert_called_once_with(
            self.driver, mock.ANY, self.instance, mock.ANY)
        (*_others, data), _kw = self.go_on.call_args
        self.assertIs(self.record, data.migration)
        self.assert_finished()

@ddt.ddt
class TestWait(RestartTestCase):
    """The migration cannot be settled yet."""

    def test_conductor_selects_the_destination(self):
        self.start_in_vain('accepted', entry=False)
        self.assertIn('the conductor has not begun it', self.log.output)

    def test_conductor_begins_the_migration_later(self):
        def begin(seconds):
            self.record.status = 'queued'
        self.sleep.side_effect = begin
        self.start('accepted', entry=False)
        self.assertEqual('migrating', self.instance.task_state)

    def test_conductor_that_does_not_begin_is_not_awaited_for_ever(self):
        self.config(long_rpc_timeout=0)
        self.start('accepted', entry=False)
        self.assert_cancelled('error')

    @ddt.data([], [None], [timeutils.utcnow(with_timezone=True), None])
    def test_preparation_is_not_overtaken(self, finish_times):
        self.events.return_value = [
            objects.InstanceActionEvent(
                event='compute_pre_live_migration', finish_time=when)
            for when in finish_times]
        self.start_in_vain('preparing')
        self.assertIn('dest has not finished its preparation',
                      self.log.output)
        self.nova['_rollback_live_migration'].assert_not_called()

    def test_preparation_is_over_when_nova_gives_it_up(self):
        self.events.return_value = []
        self.record.updated_at -= datetime.timedelta(
            seconds=cfg.CONF.long_rpc_timeout)
        self.find.return_value = SOURCE
        self.start('preparing')
        self.assert_rolled_back(is_running=False)

    @ddt.data(SILENT, oslo_messaging.MessagingTimeout('conductor'),
              exception.NeutronAdminCredentialConfigurationInvalid())
    def test_silence_decides_nothing(self, error):
        self.find.side_effect = error
        self.start_in_vain()
        self.sleep.assert_called_once_with(60)
        self.assertEqual([uuids.guest], journal.instances('src'))
        self.manager._set_instance_obj_error_state.assert_not_called()

    @ddt.data('_rollback_live_migration', '_revert_allocation',
              '_remove_remote_volume_connections')
    def test_failed_rollback_is_tried_again(self, method):
        called = getattr(self.manager, method)
        self.find.return_value = SOURCE
        called.side_effect = [oslo_messaging.MessagingTimeout, None]
        self.sleep.side_effect = None
        self.start(entry=method != '_revert_allocation')
        self.assertEqual(2, called.call_count)
        self.assertEqual([], journal.instances('src'))

    def test_failed_end_is_tried_again(self):
        finish = self.manager._post_live_migration_update_host
        finish.side_effect = [
            oslo_messaging.MessagingTimeout, finish.side_effect]
        self.find.return_value = DESTINATION
        self.start_in_vain()

    def test_failed_end_on_the_new_host_is_an_error(self):
        def fail(*args, **kwargs):
            self.instance.host = 'dest'
            raise oslo_messaging.MessagingTimeout
        self.manager._post_live_migration_update_host.side_effect = fail
        self.find.return_value = DESTINATION
        self.start()
        self.assert_error()

    @ddt.data(True, False)
    def test_destination_that_has_not_taken_over_is_asked_again(self, entry):
        self.manager._post_live_migration_update_host.side_effect = None
        self.manager.compute_rpcapi.post_live_migration_at_destination \
            .side_effect = None
        self.find.return_value = DESTINATION
        self.start_in_vain(entry=entry)
        self.assertIn('dest has not completed', self.log.output)

    def test_each_minute_has_one_message(self):
        clock = self.patch(recovery.time, 'monotonic', side_effect=range(
            0, 1000, 5))
        self.sleep.side_effect = [None] * 20 + [Stop]
        self.start_in_vain('accepted', entry=False)
        minutes = clock.call_count * 5 / 60
        self.assertAlmostEqual(
            minutes, self.log.output.count('is not settled yet'), delta=2)


@ddt.ddt
class TestSettledElsewhere(RestartTestCase):
    """Only the entry is left, or the state was changed meanwhile."""

    def start_only_journal(self, status):
        self.record.status = status
        journal.write('src', self.entry)
        restart.Restart().extend_driver(self.driver)
        with mock.patch.object(recovery.threading, 'Thread', Thread):
            self.manager.pre_start_hook('service')
        self.assertEqual([], journal.instances('src'))

    @ddt.data(('dest', 'running', 'completed'),
              ('dest', POST_COPY, 'completed'),
              ('dest', 'error', 'error'),
              ('src', 'running', 'error'), ('src', 'failed', 'failed'),
              ('other', 'running', 'error'))
    @ddt.unpack
    def test_record_gets_its_last_status(self, host, status, last):
        self.instance.host, self.instance.task_state = host, None
        self.start_only_journal(status)
        self.assertEqual(last, self.record.status)
        self.assertEqual(
            int(last == 'completed'),
            self.manager._delete_allocation_after_move.call_count)
        self.find.assert_not_called()

    def test_entry_of_a_deleted_instance_is_removed(self):
        self.get_instance.side_effect = exception.InstanceNotFound(
            instance_id=uuids.guest)
        self.start_only_journal('running')

    def test_instance_that_an_operator_resets_is_left_alone(self):
        self.find.side_effect = SILENT

        def reset(seconds):
            self.instance.task_state = None
        self.sleep.side_effect = reset
        self.start()
        self.assertEqual('error', self.record.status)
        self.nova['_rollback_live_migration'].assert_not_called()


@ddt.ddt
class TestStart(RestartTestCase):

    def note(self, *records):
        self.records.return_value = objects.MigrationList(objects=records)
        restart.Restart().extend_driver(self.driver)
        self.manager._reset_live_migration('context', self.instance)

    def test_instance_stays_migrating(self):
        self.note(self.record)
        self.nova['_reset_live_migration'].assert_not_called()
        self.assertEqual('migrating', self.instance.task_state)
        self.instance.save.assert_not_called()

    def test_instance_without_a_record_is_nova_s(self):
        self.note()
        self.nova['_reset_live_migration'].assert_called_once_with(
            'context', self.instance)

    def test_newest_record_counts(self):
        self.note(objects.Migration(id=6, status='failed'),
                  objects.Migration(id=8, status='queued'),
                  objects.Migration(id=7, status='error'))
        self.assertIn('while live migration 8 was queued', self.log.output)

    @ddt.data((task_states.MIGRATING, 0), (None, 1))
    @ddt.unpack
    def test_migrating_guest_does_not_start_with_its_host(self, state, calls):
        self.note(self.record)
        self.instance.task_state = state
        self.manager._resume_guests_state('context', self.instance, 'ports')
        self.assertEqual(
            calls, self.nova['_resume_guests_state'].call_count)

    def test_driver_without_a_manager_changes_nothing(self):
        restart.Restart().extend_driver(mock.Mock(virtapi=object()))


@ddt.ddt
class TestKeepJournal(RestartTestCase):
    """A migration runs from its begin to its end."""

    def setUp(self):
        super().setUp()
        self.settle = self.patch(recovery.Recovery, 'settle_unfinished')
        restart.Restart().extend_driver(self.driver)
        self.data = objects.LibvirtLiveMigrateData(block_migration=True)
        self.kept = []

    def read(self):
        return journal.read('src', uuids.guest, 'context')

    def prepare(self):
        return self.manager._do_pre_live_migration_from_source(
            'context', 'dest', self.instance, True, self.record, self.data,
            self.entry.source_bdms)

    def migrate(self):
        return self.manager._do_live_migration(
            'context', 'dest', self.instance, True, self.record, self.data)

    def test_entry_exists_before_the_destination_is_called(self):
        answer = objects.LibvirtLiveMigrateData(block_migration=False)

        def call(*args):
            self.assertFalse(self.read().is_prepared)
            return answer
        self.nova['_do_pre_live_migration_from_source'].side_effect = call
        self.assertIs(answer, self.prepare())
        entry = self.read()
        self.assertTrue(entry.is_prepared)
        self.assertFalse(entry.migrate_data.block_migration)
        self.assertEqual(7, entry.migration)

    def test_migration_goes_on_if_the_entry_cannot_be_written(self):
        with mock.patch.object(journal, 'write', side_effect=OSError):
            self.prepare()
        self.assertIn('could not be kept', self.log.output)
        self.nova['_do_pre_live_migration_from_source'] \
            .assert_called_once()

    @ddt.data(('src', None, 0), ('dest', task_states.MIGRATING, 0),
              ('src', task_states.MIGRATING, 1))
    @ddt.unpack
    def test_entry_goes_when_all_is_settled(self, host, state, left):
        self.prepare()
        self.instance.host, self.instance.task_state = host, state
        self.migrate()
        self.assert_left(left)

    def assert_left(self, left):
        self.assertEqual(left, len(journal.instances('src')))
        self.assertEqual(
            [mock.call(mock.ANY, self.instance, self.record)] * left,
            self.settle.mock_calls)

    @ddt.data((RuntimeError, 0), (SystemExit, 1))
    @ddt.unpack
    def test_entry_outlives_the_process(self, error, left):
        self.prepare()
        self.instance.task_state = None
        self.nova['_do_live_migration'].side_effect = error
        self.assertRaises(error, self.migrate)
        self.assertEqual(left, len(journal.instances('src')))

    @ddt.data((oslo_messaging.MessagingTimeout(), 1),
              (exception.InstanceNotFound(instance_id=uuids.guest), 0))
    @ddt.unpack
    def test_entry_stays_while_the_conductor_is_silent(self, error, left):
        self.prepare()
        self.get_instance.side_effect = error
        self.migrate()
        self.assert_left(left)

    def test_failed_rollback_is_left_for_the_next_attempts(self):
        self.prepare()
        self.nova['_do_live_migration'].side_effect = RuntimeError
        self.assertRaises(RuntimeError, self.migrate)
        self.assert_left(1)


@ddt.ddt
class TestUnfinished(RestartTestCase):
    """Nova's rollback has failed, and nova-compute goes on."""

    def end(self, status, **changes):
        self.record.status = status
        journal.write('src', dataclasses.replace(self.entry, **changes))
        restart.Restart().extend_driver(self.driver)
        self.find.return_value = SOURCE
        with mock.patch.object(recovery.threading, 'Thread', Thread):
            self.manager._do_live_migration(
                'context', 'dest', self.instance, True, self.record, 'data')
        self.assertIn('has left live migration 7 without an end',
                      self.log.output)

    @ddt.data('preparing', 'error')
    def test_preparation_that_has_failed_is_not_awaited(self, status):
        self.events.return_value = []
        self.end(status, is_prepared=False)
        self.assert_rolled_back(is_running=False)

    # an operator aborted it in the meantime
    def test_prepared_migration_is_rolled_back_completely(self):
        self.events.return_value = []
        self.end('preparing')
        self.assert_rolled_back(is_running=True)

    def test_rollback_is_tried_until_it_succeeds(self):
        self.sleep.side_effect = None
        self.nova['_rollback_live_migration'].side_effect = [
            oslo_messaging.MessagingTimeout, None]
        self.end('error', is_prepared=False)
        self.assertEqual(
            2, self.nova['_rollback_live_migration'].call_count)
        self.assertEqual([], journal.instances('src'))


@ddt.ddt
class TestDestination(RestartTestCase):
    """Nova rolls back, or an operator aborts, and nothing has restarted."""

    def setUp(self):
        super().setUp()
        self.drop = self.manager.compute_rpcapi.drop_move_claim_at_destination
        restart.Restart().extend_driver(self.driver)

    def roll_back(self, **kwargs):
        self.manager._rollback_live_migration(
            'context', self.instance, 'dest', 'data',
            source_bdms=self.entry.source_bdms, **kwargs)

    def test_arguments_are_nova_s(self):
        self.roll_back(migration_status='cancelled')
        self.nova['_rollback_live_migration'].assert_called_once_with(
            'context', self.instance, 'dest', migrate_data='data',
            migration_status='cancelled', pre_live_migration=False,
            source_bdms=self.entry.source_bdms)

    @ddt.data((True, [uuids.dest]), (False, None))
    @ddt.unpack
    def test_volumes_of_a_dead_destination_are_disconnected(
            self, in_preparation, expected):
        self.roll_back(pre_live_migration=in_preparation)
        if in_preparation:
            self.assertEqual(expected, self.disconnected())
        else:       # Nova does so itself
            self.manager._remove_remote_volume_connections.assert_not_called()

    @ddt.data(None, oslo_messaging.MessagingTimeout('dest'))
    def test_rollback_outlives_a_destination_that_is_silent(self, error):
        self.drop.side_effect = error
        self.nova['_rollback_live_migration'].side_effect = (
            lambda *args, **kwargs: self.manager.compute_rpcapi
            .drop_move_claim_at_destination('context', self.instance, 'dest'))
        self.roll_back()
        self.roll_back()
        self.assertEqual(
            [mock.call('context', self.instance, 'dest')] * 2,
            self.drop.mock_calls)
        self.assertEqual(
            error is not None, 'claims of the live migration remain on dest'
            in self.log.output)

    @ddt.data((True, True, 1), (True, False, 0), (False, True, 0))
    @ddt.unpack
    def test_abort_of_a_queued_migration_drops_its_claims(
            self, is_queued, has_claims, calls):
        def abort(context, instance, migration_id):
            if is_queued:
                instance.task_state = None
        self.nova['live_migration_abort'].side_effect = abort
        if has_claims:
            self.instance.migration_context = objects.MigrationContext()
        self.manager.live_migration_abort('context', self.instance, 7)
        self.assertEqual(
            [mock.call('context', self.instance, 'dest')] * calls,
            self.drop.mock_calls)
        self.assertEqual(
            calls, self.instance.drop_migration_context.call_count)


@ddt.ddt
class TestLateRollback(RestartTestCase):
    """A rollback reaches the destination."""

    def setUp(self):
        super().setUp()
        self.manager.host = 'dest'
        self.name, = set(self.nova).intersection(ROLL_BACK)
        self.nova_rolls_back = self.nova[self.name]
        restart.Restart().extend_driver(self.driver)
        self.guest.get_power_state.return_value = power_state.PAUSED
        self.record.status = 'failed'

    def roll_back(self):
        getattr(self.manager, self.name)(
            'context', instance=self.instance, destroy_disks=True,
            migrate_data=objects.LibvirtLiveMigrateData(
                migration=self.record))

    def assert_refused(self, reason):
        self.roll_back()
        self.nova_rolls_back.assert_not_called()
        self.assertIn(reason, self.log.output)

    def test_rollback_in_time_is_nova_s(self):
        self.roll_back()
        self.nova_rolls_back.assert_called_once()

    def test_rollback_of_a_deleted_instance_is_nova_s(self):
        self.get_instance.side_effect = exception.InstanceNotFound(
            instance_id=uuids.guest)
        self.roll_back()
        self.nova_rolls_back.assert_called_once()

    def test_guest_of_this_host_is_not_destroyed(self):
        self.instance.host = 'dest'
        self.assert_refused('the instance is on this host')

    def test_running_guest_is_not_destroyed(self):
        self.guest.get_power_state.return_value = power_state.RUNNING
        self.assert_refused('the guest is running here')

    @ddt.data((8, 'preparing', 'dest', True), (8, 'running', 'dest', True),
              (8, 'migrating', 'dest', True),
              (8, 'failed', 'dest', False), (8, 'running', 'other', False),
              (6, 'running', 'dest', False))
    @ddt.unpack
    def test_newer_migration_is_not_destroyed(self, number, status, dest,
                                              is_refused):
        self.records.return_value = [self.record, objects.Migration(
            id=number, status=status, dest_compute=dest)]
        if is_refused:
            self.assert_refused('migration 8 to this host')
        else:
            self.roll_back()
            self.nova_rolls_back.assert_called_once()

    def test_nothing_is_destroyed_while_the_conductor_is_silent(self):
        self.get_instance.side_effect = oslo_messaging.MessagingTimeout
        self.assertRaises(oslo_messaging.MessagingTimeout, self.roll_back)
        self.nova_rolls_back.assert_not_called()
