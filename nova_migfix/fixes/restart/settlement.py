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

"""Settle an interrupted live migration."""

from __future__ import annotations

import datetime
from typing import Any

from nova.compute import power_state
from nova.compute import task_states
from nova import exception
from nova.i18n import _
from nova import objects
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import utils as libvirt_utils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_migfix import action
from nova_migfix import journal
from nova_migfix import place

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

_POST_COPY = 'running (post-copy)'
#: statuses of a live migration that has not ended
IN_PROGRESS = frozenset(
    ('accepted', 'queued', 'preparing', 'running', _POST_COPY))

_ACTION = 'live-migration'
_PREPARATION = 'compute_pre_live_migration'


class NotSettled(Exception):
    """The migration cannot be settled yet, and nothing has failed."""


class Migration:
    """An interrupted live migration, in one attempt to settle it."""

    def __init__(self, driver: Any, manager: Any, resume_guests_state: Any,
                 context: Any, instance: Any, record: Any) -> None:
        self._driver = driver
        self._manager = manager
        self._resume_guests_state = resume_guests_state
        self._context = context
        self._instance = instance
        self._record = record
        self._dest = record.dest_compute
        self._preparations: list[Any] = []
        self._find_action()
        self._entry = self._read_entry()

    def _find_action(self) -> None:
        """Let events belong to the action that began the migration."""
        found = max(
            (one for one in objects.InstanceActionList.get_by_instance_uuid(
                self._context, self._instance.uuid) if one.action == _ACTION),
            key=lambda one: one.id, default=None)
        if found:
            self._context.request_id = found.request_id
            self._preparations = [
                event for event in objects.InstanceActionEventList
                .get_by_action(self._context, found.id)
                if event.event == _PREPARATION]

    def _read_entry(self) -> journal.Entry | None:
        entry = journal.read(
            self._manager.host, self._instance.uuid, self._context)
        if entry and (entry.migration, entry.dest) == (
                self._record.id, self._dest):
            entry.migrate_data.migration = self._record
            return entry
        return None

    # -- by the status of the record -----------------------------------------

    def settle(self, status: str) -> None:
        """Finish the migration or roll it back.

        :param status: of the record when nova-compute started
        :raises NotSettled: try again after some seconds
        :raises Exception: try again later
        """
        if status in ('queued', 'cancelled'):
            self.cancel('cancelled')
        elif status == 'preparing' or (
                status == 'error' and self._entry
                and not self._entry.is_prepared):
            self._wait_for_preparation()
            self._roll_back(
                place.find(self._driver, self._context, self._instance,
                           self._record, has_started=False), is_running=False)
        else:
            if status != _POST_COPY:
                self._abort_job()
            try:
                self._settle_at(self._find())
            except place.DestinationSilent:
                raise
            except place.PlaceUnknown as unknown:
                self._give_up(unknown)

    def settle_record(self) -> None:
        """Complete the record of an instance that is not MIGRATING here."""
        has_arrived = self._instance.host == self._dest
        if self._record.status not in IN_PROGRESS:
            return
        if has_arrived:
            self._complete()
        else:
            self._set_status('error')
        LOG.info('The instance is on %(host)s after live migration %(id)s to '
                 '%(dest)s; its record is now %(status)s', {
                     'host': self._instance.host, 'id': self._record.id,
                     'dest': self._dest, 'status': self._record.status},
                 instance=self._instance)

    def cancel(self, status: str) -> None:
        """Roll back the changes that precede the preparation.

        As ``ComputeManager.live_migration_abort`` does for a queued
        migration; drops the claims on the destination too.

        :param status: new status of the record
        """
        self._manager._revert_allocation(
            self._context, self._instance, self._record)
        if self._dest:
            self._drop_claims()
            try:
                self._manager.network_api.setup_networks_on_host(
                    self._context, self._instance, host=self._dest,
                    teardown=True)
            except exception.PortBindingDeletionFailed as error:
                LOG.error('Inactive port bindings remain on %(dest)s: '
                          '%(error)s', {'dest': self._dest, 'error': error},
                          instance=self._instance)
        self._instance.task_state = None
        self._instance.progress = 0
        self._instance.drop_migration_context()
        self._instance.save(expected_task_state=[task_states.MIGRATING])
        self._set_status(status)
        LOG.info('The interrupted live migration to %(dest)s is %(status)s, '
                 'and the instance stays on %(host)s', {
                     'dest': self._dest, 'status': status,
                     'host': self._instance.host}, instance=self._instance)

    def _drop_claims(self) -> None:
        if self._instance.migration_context is None:
            return
        try:
            self._manager.compute_rpcapi.drop_move_claim_at_destination(
                self._context, self._instance, self._dest)
        except Exception as error:
            # Its periodic task drops the claims of a migration that has ended.
            LOG.warning('%(dest)s did not drop the claims of the live '
                        'migration: %(error)s',
                        {'dest': self._dest, 'error': error},
                        instance=self._instance)

    def _wait_for_preparation(self) -> None:
        """Let no rollback overtake the preparation of the destination.

        :raises NotSettled: it may still prepare
        """
        if self._preparations and all(
                event.finish_time for event in self._preparations):
            return
        begin = self._record.updated_at or self._record.created_at
        age = timeutils.utcnow(with_timezone=True) - begin
        # After that time the message broker drops the call.
        if age < datetime.timedelta(seconds=CONF.long_rpc_timeout):
            raise NotSettled(
                _('%s has not finished its preparation') % self._dest)

    # -- by the place of the guest -------------------------------------------

    def _abort_job(self) -> None:
        libvirt = libvirt_guest.libvirt
        try:
            guest = self._driver._host.get_guest(self._instance)
            if guest.get_job_info().type == libvirt.VIR_DOMAIN_JOB_UNBOUNDED:
                guest.abort_job()
        except (libvirt.libvirtError, exception.NovaException) as error:
            LOG.info('The interrupted live migration is not aborted: %s',
                     error, instance=self._instance)

    def _find(self) -> place.Place:
        try:
            return self._find_by(self._record)
        except place.DestinationSilent:
            raise
        except place.PlaceUnknown:
            if (self._record.status != _POST_COPY
                    or self._driver.instance_exists(self._instance)):
                raise
        # libvirt undefines the domain on the source after a successful
        # post-copy only.
        record = self._record.obj_clone()
        record.status = 'running'
        return self._find_by(record)

    def _find_by(self, record: Any) -> place.Place:
        return place.find(
            self._driver, self._context, self._instance, record)

    def _settle_at(self, found: place.Place) -> None:
        if found is not place.Place.DESTINATION:
            self._roll_back(found, is_running=True)
        elif self._entry:
            self._finish(self._entry)
        else:
            self._finish_without_entry()

    def _roll_back(self, found: place.Place, is_running: bool) -> None:
        if self._entry:
            if is_running:
                self._driver.rollback_live_migration_at_source(
                    self._context, self._instance, self._entry.migrate_data)
            self._disconnect_volumes_on_destination(self._entry.source_bdms)
            # The rest of a rollback is the same before libvirt was called.
            self._manager._rollback_live_migration(
                self._context, self._instance, self._dest,
                migrate_data=self._entry.migrate_data,
                source_bdms=self._entry.source_bdms, pre_live_migration=True)
            LOG.info('The interrupted live migration to %(dest)s is rolled '
                     'back, and the guest is %(place)s',
                     {'dest': self._dest, 'place': found.value},
                     instance=self._instance)
        else:
            self.cancel('error')
            LOG.warning(
                'The data for a complete rollback of the interrupted live '
                'migration is missing. If %(dest)s has prepared for it, the '
                'directory %(path)s and connections of volumes remain there.',
                {'dest': self._dest, 'path': libvirt_utils.get_instance_path(
                    self._instance)}, instance=self._instance)
        if found is place.Place.OFF:
            self._settle_off()

    def _disconnect_volumes_on_destination(self, source_bdms: Any) -> None:
        """Disconnect the volumes that the destination has attached.

        It disconnects them itself if its preparation fails. A call for such a
        volume would delete its attachment to the source.
        """
        attached = {bdm.volume_id: bdm.attachment_id for bdm in source_bdms
                    if bdm.is_volume}
        changed = [
            bdm for bdm in objects.BlockDeviceMappingList.get_by_instance_uuid(
                self._context, self._instance.uuid)
            if bdm.is_volume
            and bdm.attachment_id != attached.get(bdm.volume_id)]
        self._manager._remove_remote_volume_connections(
            self._context, self._dest, changed, self._instance)

    def _settle_off(self) -> None:
        """Start the guest if its host has booted; otherwise it is SHUTOFF."""
        action.record_failure(
            self._context, self._instance, exception.MigrationError(reason=_(
                'the guest stopped before it had arrived on %(dest)s. It is '
                'off, with its disks, on %(host)s.') % {
                    'dest': self._dest, 'host': self._instance.host}))
        if (CONF.resume_guests_state_on_host_boot
                and self._instance.power_state == power_state.RUNNING):
            self._resume_guests_state(
                self._context, self._instance,
                self._instance.get_network_info())
        else:
            place.report_off(self._driver, self._instance)

    def _finish(self, entry: journal.Entry) -> None:
        data = entry.migrate_data
        try:
            self._manager._post_live_migration_update_host(
                self._context, self._instance, self._dest,
                'block_migration' in data and data.block_migration,
                migrate_data=data, source_bdms=entry.source_bdms)
        except Exception as error:
            self._instance.refresh()
            if self._instance.host != self._dest:
                raise
            # As Nova does after an arrival whose end has failed.
            action.record_failure(self._context, self._instance, error)
            self._set_error_state()
            return
        self._require_new_host()
        self._log_arrival()

    def _finish_without_entry(self) -> None:
        self._manager.network_api.migrate_instance_start(
            self._context, self._instance, objects.Migration(
                source_compute=self._manager.host, dest_compute=self._dest))
        self._manager.compute_rpcapi.post_live_migration_at_destination(
            self._context, self._instance, False, self._dest)
        self._require_new_host()
        self._complete()
        self._log_arrival()
        LOG.warning(
            'The data to clean up after the interrupted live migration is '
            'missing. The files of the guest, as far as its hosts do not '
            'share them, remain in %s, and connections of its volumes remain '
            'on this host.', libvirt_utils.get_instance_path(self._instance),
            instance=self._instance)

    def _require_new_host(self) -> None:
        # Nova 29 ignores an error of the destination.
        self._instance.refresh()
        if self._instance.host != self._dest:
            raise exception.MigrationError(reason=_(
                '%s has not completed the migration') % self._dest)

    def _log_arrival(self) -> None:
        LOG.info('The interrupted live migration is completed: the guest had '
                 'arrived on %s', self._dest, instance=self._instance)

    def _give_up(self, unknown: place.PlaceUnknown) -> None:
        action.record_fault(self._context, self._instance, unknown)
        self._set_error_state()
        LOG.error('The interrupted live migration is not settled: %s',
                  unknown, instance=self._instance)

    # -- the database --------------------------------------------------------

    def _set_error_state(self) -> None:
        self._set_status('error')
        self._manager._set_instance_obj_error_state(
            self._instance, clean_task_state=True)

    def _complete(self) -> None:
        self._manager._delete_allocation_after_move(
            self._context, self._instance, self._record)
        self._set_status('completed')

    def _set_status(self, status: str) -> None:
        self._record.status = status
        self._record.save()
