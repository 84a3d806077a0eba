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

import itertools
from unittest import mock

import ddt
import fixtures
from nova.compute import power_state
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova import exception
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
import oslo_messaging
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix import action
from nova_migfix.fixes import arrival
from nova_migfix import migration
from nova_migfix import place
from nova_migfix.tests import clock

ERROR = fakelibvirt.make_libvirtError(
    fakelibvirt.libvirtError, 'End of file while reading data',
    error_code=fakelibvirt.VIR_ERR_INTERNAL_ERROR)

NONE = fakelibvirt.VIR_DOMAIN_JOB_NONE
UNBOUNDED = fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED
COMPLETED = fakelibvirt.VIR_DOMAIN_JOB_COMPLETED
FAILED = fakelibvirt.VIR_DOMAIN_JOB_FAILED
CANCELLED = fakelibvirt.VIR_DOMAIN_JOB_CANCELLED

RUNS = None
SILENT = oslo_messaging.MessagingTimeout()
NOT_THERE = exception.InstanceInvalidState(
    attr='power state', instance_uuid=uuids.guest, state='running',
    method='get_diagnostics')


class MonitoredGuestTestCase(testtools.TestCase):
    """Nova's monitor asks for the job of a guest."""

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.guest.libvirt', fakelibvirt))
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.clock = self.useFixture(fixtures.MonkeyPatch(
            'nova_migfix.place.time', clock.Clock())).new_value
        self.event = self.useFixture(fixtures.MockPatchObject(
            action, 'record_failure', autospec=True)).mock
        self.fault = self.useFixture(fixtures.MockPatchObject(
            compute_utils, 'add_instance_fault_from_exc', autospec=True)).mock
        self.guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
        self.guest._domain = mock.Mock(spec=['state'])
        self.on_source(active=True, job=NONE)
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host.get_guest.return_value = self.guest
        self.driver = mock.Mock(
            spec=['_host', 'virtapi', 'emit_event'], _host=self.host,
            virtapi=mock.Mock(spec=['_compute']))
        self.ask = (self.driver.virtapi._compute.compute_rpcapi
                    .get_instance_diagnostics) = mock.Mock(
                        side_effect=AssertionError('asked in vain'))
        self.record = objects.Migration(
            status='running', dest_compute='dest')
        self.recover = mock.Mock()
        self.outgoing = migration.Outgoing(
            'context', objects.Instance(
                uuid=uuids.guest, host='src', vm_state=vm_states.ACTIVE),
            'dest', objects.LibvirtLiveMigrateData(migration=self.record),
            self.guest, mock.Mock(), self.recover, migration.Operation(
                has_started=True), mock.Mock())
        arrival.Arrival().live_migration_monitor(self.driver, self.outgoing)

    def on_source(self, active, reason=1, state=power_state.RUNNING, job=None):
        """Set the state of the guest on the source."""
        if not active:
            state = power_state.SHUTDOWN
        self.guest.is_active.return_value = active
        self.guest._domain.state.return_value = [state, reason]
        self.guest.get_power_state.return_value = state
        if job is None:
            job = NONE if active else COMPLETED
        self.guest.get_job_info.side_effect = lambda: libvirt_guest.JobInfo(
            type=job)

    def undefined_on_source(self):
        self.host.get_guest.side_effect = exception.InstanceNotFound(
            instance_id=uuids.guest)

    def on_destination(self, *answers):
        self.ask.side_effect = itertools.chain(
            answers, itertools.repeat(answers[-1]))


    def end(self, error=ERROR):
        self.outgoing.operation.error = error
        self.outgoing.operation.has_ended = True

    def job(self):
        return self.outgoing.guest.get_job_info().type


@ddt.ddt
class TestBeforeTheEnd(MonitoredGuestTestCase):

    def test_running_job_is_reported_as_it_is(self):
        self.on_source(active=True, job=UNBOUNDED)
        self.assertEqual(UNBOUNDED, self.job())

    @ddt.data(COMPLETED, FAILED, CANCELLED, NONE)
    def test_end_of_the_job_alone_ends_no_migration(self, job):
        self.on_source(active=False, job=job)
        self.assertEqual(NONE, self.job())

    def test_silent_libvirt_ends_no_migration(self):
        self.guest.get_job_info.side_effect = ERROR
        self.assertEqual(NONE, self.job())

    def test_abort_without_a_job_is_no_error(self):
        self.guest.abort_job.side_effect = ERROR
        self.outgoing.guest.abort_job()
        self.assertIn('does not abort', self.log.output)

    def test_other_methods_are_those_of_the_guest(self):
        self.outgoing.guest.pause()
        self.guest.pause.assert_called_once_with()

    def test_guest_without_an_operation_is_nova_s(self):
        self.outgoing.guest, self.outgoing.operation = self.guest, None
        arrival.Arrival().live_migration_monitor(self.driver, self.outgoing)
        self.assertIs(self.guest, self.outgoing.guest)


@ddt.ddt
class TestAfterTheEnd(MonitoredGuestTestCase):

    def assert_unknown(self, reason):
        error = self.assertRaises(place.PlaceUnknown, self.job)
        for part in (uuids.guest, 'dest', reason, 'virsh list --all'):
            self.assertIn(part, str(error))
        self.event.assert_called_once_with(
            'context', self.outgoing.instance, error)
        self.fault.assert_called_once_with(
            'context', self.outgoing.instance, error)

    def test_successful_call_is_proof(self):
        # even if QEMU on the source has crashed at the end
        self.on_source(active=False, reason=3)
        self.end(error=None)
        self.assertEqual(COMPLETED, self.job())

    def test_running_guest_has_stayed(self):
        self.end()
        self.assertEqual(FAILED, self.job())
        self.assertTrue(self.outgoing.guest.is_active())

    def test_aborted_call_is_cancelled(self):
        error = fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'canceled by client', error_code=78)
        self.end(error)
        self.assertEqual(CANCELLED, self.job())

    def test_cancelled_job_is_cancelled(self):
        self.on_source(active=True, job=CANCELLED)
        self.job()
        self.end()
        self.assertEqual(CANCELLED, self.job())

    def test_job_that_outlives_the_call_is_awaited(self):
        jobs = iter([UNBOUNDED, UNBOUNDED, NONE])
        self.guest.get_job_info.side_effect = (
            lambda: libvirt_guest.JobInfo(type=next(jobs)))
        self.end()
        self.assertEqual(FAILED, self.job())
        self.assertEqual(10, self.clock.now)

    def test_job_that_has_failed_in_post_copy_is_not_awaited(self):
        self.on_source(active=True, reason=13, state=power_state.PAUSED,
                       job=UNBOUNDED)
        self.end()
        self.assert_unknown('post-copy failed')
        self.assertEqual(0, self.clock.now)

    @ddt.data(exception.HypervisorUnavailable(), ERROR)
    def test_silent_libvirt_is_asked_again(self, error):
        self.host.get_guest.side_effect = [error, error, self.guest]
        self.end()
        self.assertEqual(FAILED, self.job())

    def test_libvirt_that_stays_silent_leaves_the_guest_unknown(self):
        self.host.get_guest.side_effect = exception.HypervisorUnavailable()
        self.end()
        self.assert_unknown('Connection to the hypervisor is broken')

    def test_error_before_the_call_moves_nothing(self):
        self.outgoing.operation.has_started = False
        self.end(RuntimeError('no XML'))
        self.assertEqual(FAILED, self.job())

    @ddt.data(1, 2, 3)
    def test_guest_that_was_off_before_the_call_has_stayed(self, reason):
        self.outgoing.operation.has_started = False
        self.on_source(active=False, reason=reason)
        self.end()
        self.assertEqual(FAILED, self.job())

    def test_guest_that_libvirt_calls_migrated_has_arrived(self):
        self.on_source(active=False, reason=4)
        self.end()
        self.assertEqual(COMPLETED, self.job())
        self.assertFalse(self.outgoing.guest.is_active())

    @ddt.data(1, 2, 3, 6)
    def test_dead_guest_has_stayed_if_the_destination_lacks_it(self, reason):
        self.on_source(active=False, reason=reason)
        self.on_destination(NOT_THERE)
        self.end()
        self.assertEqual(FAILED, self.job())
        # the keepalive of libvirt has closed the connection by then
        self.assertGreaterEqual(self.clock.now, 40)

    def test_dead_guest_has_arrived_if_it_runs_on_the_destination(self):
        self.on_source(active=False, reason=3)
        self.on_destination(NOT_THERE, SILENT, RUNS)
        self.end()
        self.assertEqual(COMPLETED, self.job())

    def test_destination_is_asked_for_the_instance_by_its_own_host(self):
        self.on_source(active=False, reason=3)
        self.on_destination(RUNS)
        self.end()
        self.job()
        (_context, there), _kwargs = self.ask.call_args
        self.assertEqual((uuids.guest, 'dest'), (there.uuid, there.host))
        self.assertEqual('src', self.outgoing.instance.host)

    def test_silence_interrupts_the_certainty(self):
        self.on_source(active=False, reason=3)
        self.on_destination(*[NOT_THERE] * 8, SILENT, NOT_THERE)
        self.end()
        self.assertEqual(FAILED, self.job())
        self.assertGreaterEqual(self.clock.now, 80)

    def test_silent_destination_leaves_a_dead_guest_unknown(self):
        self.on_source(active=False, reason=3)
        self.on_destination(SILENT)
        self.end()
        self.assert_unknown('dest does not answer')

    # libvirt undefines a guest on its source only after a success
    @ddt.data('running', 'running (post-copy)')
    def test_undefined_guest_that_runs_on_the_destination_has_arrived(
            self, status):
        self.record.status = status
        self.undefined_on_source()
        self.on_destination(RUNS)
        self.end()
        self.assertEqual(COMPLETED, self.job())

    @ddt.data('running', 'running (post-copy)')
    def test_undefined_guest_is_unknown_if_the_destination_lacks_it(
            self, status):
        self.record.status = status
        self.undefined_on_source()
        self.on_destination(NOT_THERE)
        self.end()
        self.assert_unknown('not defined on src')

    def test_undefined_guest_that_never_left_has_stayed(self):
        self.outgoing.operation.has_started = False
        self.undefined_on_source()
        self.end()
        self.assertEqual(FAILED, self.job())

    def test_dead_guest_that_was_paused_is_unknown(self):
        self.outgoing.instance.vm_state = vm_states.PAUSED
        self.on_source(active=False, reason=3)
        self.on_destination(NOT_THERE)
        self.end()
        self.assert_unknown('was paused')

    def test_dead_guest_in_post_copy_is_unknown(self):
        self.record.status = 'running (post-copy)'
        self.on_source(active=False, reason=3)
        self.end()
        self.assert_unknown('post-copy failed')


@ddt.ddt
class TestPaused(MonitoredGuestTestCase):
    """The guest is paused on the source after libvirt's call has failed."""

    def paused(self, reason):
        self.on_source(active=True, reason=reason, state=power_state.PAUSED)
        self.end()

    # by its owner or by Nova, for an I/O error, by its watchdog
    @ddt.data(1, 5, 6)
    def test_guest_paused_for_another_reason_has_stayed(self, reason):
        self.paused(reason)
        self.assertEqual(FAILED, self.job())

    @ddt.data(0, 2)
    def test_guest_that_runs_on_the_destination_is_stopped_here(self, reason):
        self.paused(reason)
        self.on_destination(RUNS)
        self.assertEqual(COMPLETED, self.job())
        self.guest.poweroff.assert_called_once_with()

    @ddt.data(0, 2)
    def test_guest_that_the_destination_lacks_is_resumed(self, reason):
        self.paused(reason)
        self.on_destination(NOT_THERE)
        self.assertEqual(FAILED, self.job())
        self.guest.resume.assert_called_once_with()
        self.guest.poweroff.assert_not_called()

    @ddt.data(0, 2)
    def test_guest_with_a_silent_destination_stays_paused(self, reason):
        self.paused(reason)
        self.on_destination(SILENT)
        self.assertRaises(place.PlaceUnknown, self.job)
        self.guest.resume.assert_not_called()
        self.guest.poweroff.assert_not_called()

    @ddt.data(12, 13)
    def test_guest_in_failed_post_copy_is_unknown(self, reason):
        self.paused(reason)
        self.assertRaises(place.PlaceUnknown, self.job)

    @ddt.data(0, 1, 2)
    def test_guest_paused_by_its_owner_stays_paused(self, reason):
        self.outgoing.instance.vm_state = vm_states.PAUSED
        self.paused(reason)
        self.assertEqual(FAILED, self.job())
        self.guest.resume.assert_not_called()


class TestRollback(MonitoredGuestTestCase):

    def roll_back(self, error=ERROR):
        self.end(error)
        self.job()
        self.outgoing.recover_method(
            'context', self.outgoing.instance, 'dest', 'data',
            migration_status='cancelled')

    def test_nova_rolls_back(self):
        self.roll_back()
        self.recover.assert_called_once_with(
            'context', self.outgoing.instance, 'dest', 'data',
            migration_status='cancelled')

    def test_running_guest_needs_no_event(self):
        self.roll_back()
        self.driver.emit_event.assert_not_called()
        self.event.assert_not_called()

    def test_nova_learns_that_the_guest_is_off(self):
        self.on_source(active=False, reason=3)
        self.on_destination(NOT_THERE)
        self.roll_back()
        event, = self.driver.emit_event.call_args.args
        self.assertEqual((uuids.guest, 'Stopped'),
                         (event.get_instance_uuid(), event.get_name()))
        (_context, _instance, reason), _kwargs = self.event.call_args
        self.assertIn('stopped before it had arrived on dest', str(reason))

    def test_failed_rollback_is_nova_s(self):
        self.on_source(active=False, reason=3)
        self.on_destination(NOT_THERE)
        self.recover.side_effect = ConnectionError
        self.assertRaises(ConnectionError, self.roll_back)
        self.driver.emit_event.assert_not_called()


@ddt.ddt
class TestErrorAfterArrival(testtools.TestCase):
    """From Nova 32 on it raises the error of the call once more."""

    def is_settled(self, record, error):
        return arrival.Arrival().live_migration_failed(
            'context', 'instance', 'host', mock.Mock(
                migration=mock.Mock(status=record)), error,
            migration.Operation(error=ERROR))

    def test_error_of_the_call_is_settled_after_the_arrival(self):
        self.assertTrue(self.is_settled('completed', ERROR))

    def test_failed_abort_after_the_error_is_settled_too(self):
        error = exception.InstanceNotFound(instance_id=uuids.guest)
        error.__context__ = OSError()
        error.__context__.__context__ = ERROR
        self.assertTrue(self.is_settled('completed', error))

    def test_other_error_after_the_arrival_is_nova_s(self):
        self.assertFalse(self.is_settled('completed', OSError()))

    @ddt.data('failed', 'running', 'error')
    def test_error_of_the_call_is_nova_s_without_an_arrival(self, record):
        self.assertFalse(self.is_settled(record, ERROR))
