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

"""nova-compute of the source ends during a live migration, and starts."""

from concurrent import futures
import functools
import itertools
import os
import pathlib
import shutil
import threading
import time
from unittest import mock

import fixtures
from nova.compute import manager
from nova import context
from nova import exception
from nova import objects
from nova.tests import fixtures as nova_fixtures
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import driver as libvirt_driver
from oslo_config import cfg
import oslo_messaging

from nova_migfix.tests.functional import base
from nova_migfix.tests.functional import storage

CRASHED = 3     # of virDomainShutoffReason
HARD_REBOOT = {'reboot': {'type': 'HARD'}}


class Killed(BaseException):
    """Ends a thread as the end of its process does: no handler sees it."""


class RestartedTestCase(storage.StorageTestCase):
    """A guest with one port migrates when nova-compute is killed."""

    overlays = False

    def setUp(self):
        super().setUp()
        for name, seconds in (
                ('place._INTERVAL', 0), ('place._CERTAINTY', 0),
                ('place._PATIENCE', 1),
                ('fixes.restart.recovery._INTERVAL', .1),
                ('fixes.restart.recovery._RETRY_INTERVAL', .1)):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova_migfix.{name}', seconds))
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.abortJob',
            self.abort_job))
        self.is_dead = threading.Event()
        self.aborted = []
        self.port = self.neutron.port_1['id']
        self.boot(1, networks=[{'port': self.port}])
        self.write()
        self.before = self.path().read_bytes()
        self.domain = self.source_domain()
        # a new domain of Nova 29's fake has a job
        self.domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_NONE

    # -- nova-compute ---------------------------------------------------------

    def begin(self):
        """Begin to migrate, and wait until nova-compute is killed."""
        self.api.post_server_action(self.server['id'], {
            'os-migrateLive': {'host': None, 'block_migration': 'auto'}})
        self.assertTrue(self.is_dead.wait(60))
        time.sleep(.5)

    def die(self, *args, **kwargs):
        """End the calling thread of nova-compute."""
        self.is_dead.set()
        raise Killed

    def start_again(self):
        """Kill the rest of nova-compute on the source, and start it."""
        self.src.stop = self.src.rpcserver.stop
        self.restart_compute_service('src')
        self.src = self.computes['src']

    def kill_in_queue(self):
        self.src.manager._do_live_migration = self.die
        self.begin()

    def kill_after_preparation(self):
        call = self.src.manager.compute_rpcapi.pre_live_migration

        def prepare_and_die(*args, **kwargs):
            call(*args, **kwargs)
            self.die()
        self.src.manager.compute_rpcapi.pre_live_migration = prepare_and_die
        self.begin()

    def kill_destination(self):
        """Migrate; the destination is killed as it ends its preparation."""
        prepare = self.dest.driver.pre_live_migration

        def prepare_and_die(*args, **kwargs):
            prepare(*args, **kwargs)
            self.die()
        self.dest.driver.pre_live_migration = prepare_and_die
        call = self.src.manager.compute_rpcapi.pre_live_migration

        def call_in_vain(*args, **kwargs):
            threading.Thread(
                target=functools.partial(call, *args, **kwargs),
                daemon=True).start()
            self.assertTrue(self.is_dead.wait(60))
            raise oslo_messaging.MessagingTimeout
        self.src.manager.compute_rpcapi.pre_live_migration = call_in_vain
        self.begin()

    def kill_in_migration(self, happens):
        """Kill nova-compute after something happens in libvirt's call."""
        self.happens = happens
        self.has_happened = threading.Event()

        def wait_and_die(*args, **kwargs):
            self.assertTrue(self.has_happened.wait(60))
            self.die()
        with fixtures.MonkeyPatch(
                'nova.virt.libvirt.driver.LibvirtDriver.'
                '_live_migration_monitor', wait_and_die):
            self.begin()

    # -- libvirt --------------------------------------------------------------

    def _migrate_stub(self, domain, destination, params, flags):
        self.happens(params['destination_xml'])
        self.has_happened.set()
        raise fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'nobody sees this',
            error_code=fakelibvirt.VIR_ERR_OPERATION_FAILED)

    def abort_job(self, domain):
        self.aborted.append(domain)
        domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_NONE

    def goes_on(self, xml):
        """libvirt still copies memory."""
        self.domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED

    def arrives(self, xml):
        self.domain.destroy()
        self.domain.undefine()
        self.dest.driver._host.get_connection().createXML(xml, 'flags')

    def dies(self, xml):
        self.domain._state = fakelibvirt.VIR_DOMAIN_SHUTOFF
        self.domain.reason = CRASHED

    def is_lost(self, xml):
        self.domain.destroy()
        self.domain.undefine()

    def runs_on(self, compute):
        try:
            return bool(compute.driver._host.get_connection()
                        .lookupByUUIDString(self.server['id']).isActive())
        except fakelibvirt.libvirtError:
            return False

    # -- the outcome ----------------------------------------------------------

    def wait_for(self, record, server='ACTIVE'):
        def settled():
            self.server = self.api.get_server(self.server['id'])
            self.assertEqual(
                ([record], server, None),
                ([one['status'] for one in self.migrations()],
                 self.server['status'],
                 self.server['OS-EXT-STS:task_state']))
        self._wait_for_assert(settled, max_retries=60)

    def assert_on(self, host):
        """Assert that everything belongs to this host only."""
        self.assertEqual(host, self.host())
        other = {'src': 'dest', 'dest': 'src'}[host]
        self._wait_for_assert(lambda: self.assertFalse(
            self.directory(other).exists()), max_retries=60)
        self._wait_for_assert(
            lambda: self.assertEqual([], self.kept()), max_retries=60)
        self.assertEqual(
            [self.compute_rp_uuids[host]], list(self.placement.get(
                f'/allocations/{self.server["id"]}').body['allocations']))
        self.assertEqual({}, self.placement.get(
            f'/allocations/{self.migrations()[0]["uuid"]}'
        ).body['allocations'])
        self._wait_for_assert(lambda: self.assertEqual(
            [host], list(self.neutron._port_bindings[self.port])),
            max_retries=60)

    def assert_kept(self):
        self.assertEqual(self.before, self.path().read_bytes())

    def kept(self):
        """Return the files of the journal."""
        return list((pathlib.Path(cfg.CONF.state_path) / 'migfix').glob('*'))


class RestartTestCase(RestartedTestCase):

    def test_queued_migration_is_cancelled(self):
        self.kill_in_queue()
        self.start_again()
        self.wait_for('cancelled')
        self.assert_on('src')
        self.assert_kept()

    def test_queue_that_nova_has_cancelled_is_cleaned_up(self):
        if hasattr(self.src.manager, '_start_recorded_task'):
            self.src.manager._start_recorded_task = self.enqueue
        else:
            self.src.manager._live_migration_executor.submit = self.enqueue
        self.begin()
        self.src.manager._cleanup_live_migrations_in_pool()
        self.start_again()
        self.wait_for('cancelled')
        self.assert_on('src')

    def enqueue(self, *args, **kwargs):
        self.is_dead.set()
        return futures.Future()

    def test_prepared_migration_is_rolled_back(self):
        self.kill_after_preparation()
        self.assertTrue(self.path(host='dest').exists())
        entry, = self.kept()
        self.assertEqual(0o600, os.stat(entry).st_mode & 0o777)
        self.start_again()
        self.wait_for('failed')
        self.assert_on('src')
        self.assert_kept()

    def test_rollback_waits_for_the_preparation(self):
        begun, end = threading.Event(), threading.Event()
        self.addCleanup(end.set)
        prepare = libvirt_driver.LibvirtDriver.pre_live_migration

        def prepare_slowly(driver, *args, **kwargs):
            begun.set()
            self.assertTrue(end.wait(60))
            return prepare(driver, *args, **kwargs)

        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.driver.LibvirtDriver.pre_live_migration',
            prepare_slowly))
        call = self.src.manager.compute_rpcapi.pre_live_migration

        def call_and_die(*args, **kwargs):
            threading.Thread(
                target=functools.partial(call, *args, **kwargs),
                daemon=True).start()
            self.assertTrue(begun.wait(60))
            self.die()
        self.src.manager.compute_rpcapi.pre_live_migration = call_and_die
        self.begin()
        self.start_again()
        self._wait_for_assert(lambda: self.assertIn(
            'dest has not finished its preparation', self.log()),
            max_retries=60)
        self.server = self.api.get_server(self.server['id'])
        self.assertEqual('MIGRATING', self.server['status'])
        end.set()
        self.wait_for('failed')
        self.assert_on('src')

    def test_destination_that_dies_in_its_preparation_is_cleaned_up(self):
        self.kill_destination()
        self.wait_for('failed')
        self.assert_on('src')
        self.assert_kept()

    def test_rollback_that_fails_in_the_preparation_is_tried_again(self):
        self.useFixture(fixtures.MockPatch(
            'nova.virt.libvirt.driver.LibvirtDriver.pre_live_migration',
            autospec=True, side_effect=OSError))
        revert = manager.ComputeManager._revert_allocation
        attempts = itertools.count(1)

        def fail_and_revert(*args):
            if next(attempts) == 1:
                raise exception.PlacementAPIConnectFailure
            return revert(*args)
        self.useFixture(fixtures.MonkeyPatch(
            'nova.compute.manager.ComputeManager._revert_allocation',
            fail_and_revert))
        self.live_migrate('failed')
        self.assert_on('src')

    def test_running_migration_is_aborted_and_rolled_back(self):
        self.kill_in_migration(self.goes_on)
        self.start_again()
        self.wait_for('failed')
        self.assertEqual([self.domain], self.aborted)
        self.assert_on('src')
        self.assertTrue(self.runs_on(self.src))
        self.assert_kept()

    def test_guest_that_has_arrived_is_on_the_destination(self):
        self.kill_in_migration(self.arrives)
        self.start_again()
        self.wait_for('completed')
        self.assertEqual([], self.aborted)
        self.assert_on('dest')
        self.act(**HARD_REBOOT)
        self.assertFalse(self.runs_on(self.src))
        self.assertTrue(self.runs_on(self.dest))

    def test_guest_that_has_died_is_off_on_its_source(self):
        self.kill_in_migration(self.dies)
        self.start_again()
        self.wait_for('failed', 'SHUTOFF')
        self.assert_on('src')
        self.assert_kept()

    def test_guest_that_has_died_starts_with_its_host(self):
        self.flags(resume_guests_state_on_host_boot=True)
        self.kill_in_migration(self.dies)
        self.start_again()
        self.wait_for('failed')
        self._wait_for_assert(
            lambda: self.assertTrue(self.runs_on(self.src)), max_retries=60)

    def test_guest_that_has_arrived_does_not_start_on_its_source(self):
        self.flags(resume_guests_state_on_host_boot=True)
        self.kill_in_migration(self.arrives)
        self.start_again()
        self.wait_for('completed')
        self.assertFalse(self.runs_on(self.src))

    def test_guest_that_is_on_no_host_is_kept(self):
        self.kill_in_migration(self.is_lost)
        self.start_again()
        self.wait_for('error', 'ERROR')
        self.assertEqual('src', self.host())
        self.assert_kept()
        self.assertTrue(self.path(host='dest').exists())

    def test_migration_of_a_former_plugin_is_aborted(self):
        self.kill_in_migration(self.goes_on)
        for path in self.kept():
            path.unlink()
        self.start_again()
        self.wait_for('error')
        self.assertEqual('src', self.host())
        self.assert_kept()
        self.assertTrue(self.path(host='dest').exists())
        self.assertTrue(self.runs_on(self.src))

    def test_files_of_a_guest_that_arrived_without_journal_stay(self):
        self.kill_in_migration(self.arrives)
        for path in self.kept():
            path.unlink()
        self.start_again()
        self.wait_for('completed')
        self.assertEqual('dest', self.host())
        self.assert_kept()
        self.assertIn('files of the guest', self.log())

    def test_record_is_completed_if_only_the_end_is_missing(self):
        self.kill_in_migration(self.arrives)
        with context.target_cell(
                context.get_admin_context(),
                self.cell_mappings['cell1']) as cell:
            instance = objects.Instance.get_by_uuid(cell, self.server['id'])
            instance.host = 'dest'
            instance.task_state = None
            instance.save()
        self.start_again()
        self.wait_for('completed')
        self.assertEqual([], self.kept())

    def test_journal_is_empty_after_a_migration(self):
        self.happens = self.arrives
        self.has_happened = threading.Event()
        self.live_migrate('completed')
        self._wait_for_assert(
            lambda: self.assertEqual([], self.kept()), max_retries=60)


class VolumeTestCase(RestartedTestCase):
    """The guest has a volume."""

    def setUp(self):
        super().setUp()
        self.cinder = self.useFixture(nova_fixtures.CinderFixture(self))
        self.volume = self.cinder.IMAGE_BACKED_VOL
        self.api.post_server_volume(self.server['id'], {
            'volumeAttachment': {'volumeId': self.volume}})
        self._wait_for_volume_attach(self.server['id'], self.volume)
        self.attachment, = self.attachments()

    def attachments(self):
        return list(self.cinder.volume_to_attachment[self.volume])

    def bdm_attachment(self):
        with context.target_cell(
                context.get_admin_context(),
                self.cell_mappings['cell1']) as cell:
            return objects.BlockDeviceMapping.get_by_volume_and_instance(
                cell, self.volume, self.server['id']).attachment_id

    def assert_attached_to_source(self):
        self.wait_for('failed')
        self.assertEqual([self.attachment], self.attachments())
        self.assertEqual(self.attachment, self.bdm_attachment())

    def test_prepared_volume_is_attached_to_the_source_only(self):
        self.kill_after_preparation()
        self.assertEqual(2, len(self.attachments()))
        self.start_again()
        self.assert_attached_to_source()

    def test_volume_of_a_dead_destination_is_disconnected(self):
        disconnect = self.dest.driver._disconnect_volume = (
            mock.create_autospec(self.dest.driver._disconnect_volume))
        self.kill_destination()
        self.assert_attached_to_source()
        disconnect.assert_called_once()

    def test_volume_of_a_running_guest_stays_on_the_source(self):
        self.kill_in_migration(self.goes_on)
        self.start_again()
        self.assert_attached_to_source()

    def test_volume_of_an_arrived_guest_is_on_the_destination(self):
        self.kill_in_migration(self.arrives)
        self.start_again()
        self.wait_for('completed')
        attachment, = self.attachments()
        self.assertNotEqual(self.attachment, attachment)
        self.assertEqual(attachment, self.bdm_attachment())


class ClaimsTestCase(base.MigrationTestCase):
    """The migration has claimed CPUs and memory of the destination."""

    def setUp(self):
        super().setUp()
        self.boot(hw_numa_nodes='1')
        self.is_queued = threading.Event()
        self.is_silent = threading.Event()

    def _migrate_stub(self, domain, destination, params, flags):
        self.source_domain()._job_type = fakelibvirt.VIR_DOMAIN_JOB_NONE
        raise fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'unable to connect',
            error_code=fakelibvirt.VIR_ERR_OPERATION_FAILED)

    def silence_destination(self):
        def time_out(*args):
            self.is_silent.set()
            raise oslo_messaging.MessagingTimeout
        self.useFixture(fixtures.MonkeyPatch(
            'nova.compute.rpcapi.ComputeAPI.drop_move_claim_at_destination',
            time_out))

    def enqueue(self, *args, **kwargs):
        self.is_queued.set()
        return futures.Future()

    def claimed(self):
        """Return how many CPUs of the destination are claimed."""
        node, = self.dest.manager.rt.compute_nodes.values()
        return sum(cell.cpu_usage for cell in objects.NUMATopology
                   .obj_from_db_obj(node.numa_topology).cells)

    def test_rollback_outlives_a_destination_that_keeps_its_claims(self):
        self.silence_destination()
        self.live_migrate('failed')
        self.assertTrue(self.is_silent.is_set())
        self.assertEqual('src', self.host())
        self.assertEqual(4, self.claimed())
        self._run_periodics()
        self.assertEqual(0, self.claimed())

    def abort_queued(self):
        """Abort a migration that waits in the queue."""
        if hasattr(self.src.manager, '_start_recorded_task'):
            self.src.manager._start_recorded_task = self.enqueue
        else:
            self.src.manager._live_migration_executor.submit = self.enqueue
        self.api.post_server_action(self.server['id'], {
            'os-migrateLive': {'host': None, 'block_migration': 'auto'}})
        self.assertTrue(self.is_queued.wait(60))
        self.assertEqual(4, self.claimed())
        record, = self.migrations()
        self.api.api_delete(
            f'/servers/{self.server["id"]}/migrations/{record["id"]}')
        self._wait_for_assert(lambda: self.assertEqual(
            'cancelled', self.migrations()[0]['status']), max_retries=60)

    def test_abort_of_a_queued_migration_drops_its_claims(self):
        self.abort_queued()
        self._wait_for_assert(
            lambda: self.assertEqual(0, self.claimed()), max_retries=60)


class ClaimsWithoutFixTestCase(ClaimsTestCase):
    """The faults of Nova that the fix prevents."""

    enabled_fixes = ['arrival', 'rollback_state']

    def test_rollback_outlives_a_destination_that_keeps_its_claims(self):
        self.silence_destination()
        self.live_migrate('error', 'ERROR')

    def test_abort_of_a_queued_migration_drops_its_claims(self):
        self.abort_queued()
        time.sleep(1)
        self.assertEqual(4, self.claimed())


class LateRollbackTestCase(RestartedTestCase):
    """A rollback reaches the destination after the guest has arrived."""

    def setUp(self):
        super().setUp()
        self.has_happened = threading.Event()
        self.casts = []
        rpcapi = self.src.manager.compute_rpcapi
        self.cast = rpcapi.rollback_live_migration_at_destination
        rpcapi.rollback_live_migration_at_destination = (
            lambda *args, **kwargs: self.casts.append((args, kwargs)))

    def cast_late(self):
        """Migrate the guest, and cast the rollback of the first attempt."""
        self.happens = self.fails
        self.live_migrate('failed')
        shutil.rmtree(self.directory('dest'))   # as Nova insists
        self.happens = self.arrives
        self.live_migrate('completed')
        (args, kwargs), = self.casts
        self.cast(*args, **kwargs)

    def fails(self, xml):
        """libvirt cannot reach the destination."""

    def test_late_rollback_does_not_destroy_the_guest(self):
        self.cast_late()
        self._wait_for_assert(lambda: self.assertIn(
            'is refused, and nothing is deleted', self.log()),
            max_retries=60)
        self.assertTrue(self.runs_on(self.dest))
        self.assertTrue(self.path(host='dest').exists())
        self.assertEqual(
            ['dest'], list(self.neutron._port_bindings[self.port]))


class LateRollbackWithoutFixTestCase(LateRollbackTestCase):

    enabled_fixes = ['arrival', 'rollback_state']

    def test_late_rollback_does_not_destroy_the_guest(self):
        self.cast_late()
        self._wait_for_assert(lambda: self.assertFalse(
            self.directory('dest').exists()), max_retries=60)
        self.assertFalse(self.runs_on(self.dest))


class WithoutFixTestCase(RestartedTestCase):
    """The faults of Nova that the fix prevents."""

    enabled_fixes = ['arrival', 'config_drive', 'source_address', 'vnic']

    def test_unmodified_nova_starts_an_arrived_guest_again(self):
        self.kill_in_migration(self.arrives)
        self.start_again()
        self.wait_for('error')
        self.assertEqual('src', self.host())
        self.act(**HARD_REBOOT)
        self.assertTrue(self.runs_on(self.src))
        self.assertTrue(self.runs_on(self.dest))

    def test_unmodified_nova_leaves_a_prepared_destination(self):
        self.kill_after_preparation()
        self.start_again()
        self.wait_for('preparing')
        self.assertTrue(self.path(host='dest').exists())
        self.assertIn('dest', self.neutron._port_bindings[self.port])

    def test_unmodified_nova_forgets_a_queued_migration(self):
        self.kill_in_queue()
        self.start_again()
        self.wait_for('queued')
        self.assertNotEqual({}, self.placement.get(
            f'/allocations/{self.migrations()[0]["uuid"]}'
        ).body['allocations'])
