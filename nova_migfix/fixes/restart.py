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

"""Finish or roll back the live migrations that a restart interrupts.

When nova-compute starts, Nova aborts a migration whose record is ``running``,
and makes each instance that migrates from this host available to its owner
again. It does not wait for the end of the migration, and rolls nothing back on
the destination. libvirt goes on without nova-compute. If the guest has arrived
meanwhile, the database has it on the source, where a hard reboot starts it a
second time. A migration that is queued, prepared or in post-copy is forgotten:
its record, its allocation, its port bindings and its volume attachments stay.

The fix keeps the instance MIGRATING, so that Nova refuses actions of its
owner. After nova-compute has started, a thread settles each migration:

==================  ===========================================================
record              action
==================  ===========================================================
``accepted``        wait for the conductor, which still selects the destination
``queued``          cancel the migration
``cancelled``       the same: Nova cancels its queue when it is stopped
``preparing``       wait until the destination has finished its preparation,
                    and roll back
others              abort the migration, except in post-copy, wait for its end,
                    and find the guest with :mod:`nova_migfix.place`: roll
                    back, or finish the migration as Nova does
==================  ===========================================================

:mod:`nova_migfix.journal` has the data that both need. Without it, as for a
migration that began before the plugin was installed, nothing is deleted on
either host, and a log message names the files that remain.

An error, such as from a service that does not respond, is logged and the work
tried again each minute. As long as the destination is silent and only its
answer can decide, the instance stays MIGRATING: a guest in ERROR could be
rebooted hard. If no host can say where the guest is, the instance goes to
ERROR and all files are kept, as with the fix ``arrival``.

The destination refuses a rollback that comes too late: after the guest has
arrived, or after another migration of the same guest to this host has begun.

SIGHUP is a restart too if Nova 34 uses threads: oslo.service ends the process.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import threading
import time
from typing import Any

from nova.compute import power_state
from nova.compute import task_states
from nova import context as nova_context
from nova import exception
from nova.i18n import _
from nova import objects
from nova.objects import fields
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import utils as libvirt_utils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_migfix import action
from nova_migfix.fixes import base
from nova_migfix.fixes import post_copy
from nova_migfix import journal
from nova_migfix import place

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

# Seconds between two attempts to settle a migration.
_RETRY_INTERVAL = 60
# The same while the conductor or the destination works on it.
_INTERVAL = 5

_POST_COPY = 'running (post-copy)'
#: statuses of a live migration that has not ended
IN_PROGRESS = frozenset(
    ('accepted', 'queued', 'preparing', 'running', _POST_COPY))
#: statuses of a migration of any type that has ended
ENDED = frozenset(('cancelled', 'completed', 'confirmed', 'done', 'error',
                   'failed', 'reverted'))

# Attributes of an instance that Nova uses in a rollback or an arrival.
_ATTRIBUTES = ['info_cache', 'security_groups', 'metadata', 'system_metadata',
               'flavor', 'numa_topology', 'migration_context']

_ACTION = 'live-migration'
_PREPARATION = 'compute_pre_live_migration'


class Restart(base.Fix):
    name = 'restart'
    bug = 'LP 1753676: a restart of nova-compute loses its live migrations'

    def init_host(self, driver: Any) -> None:
        manager = getattr(driver.virtapi, '_compute', None)
        if manager is not None:     # None in tests only
            _keep_journal(manager)
            _Recovery(driver, manager).wrap()
            _refuse_late_rollbacks(manager)


# -- source: while a migration runs ------------------------------------------

def _keep_journal(manager: Any) -> None:
    """Keep an entry of the journal from the preparation to the end."""
    prepare = manager._do_pre_live_migration_from_source
    migrate = manager._do_live_migration

    @functools.wraps(prepare)
    def prepare_with_journal(
        context: Any, dest: Any, instance: Any, block_migration: Any,
        migration: Any, migrate_data: Any, source_bdms: Any,
    ) -> Any:
        entry = journal.Entry(
            instance.uuid, migration.id, dest, False, migrate_data,
            source_bdms)
        _write(manager, instance, entry)
        data = prepare(context, dest, instance, block_migration, migration,
                       migrate_data, source_bdms)
        _write(manager, instance, dataclasses.replace(
            entry, is_prepared=True, migrate_data=data))
        return data

    @functools.wraps(migrate)
    def migrate_with_journal(
        context: Any, dest: Any, instance: Any, *args: Any, **kwargs: Any,
    ) -> Any:
        try:
            result = migrate(context, dest, instance, *args, **kwargs)
        except Exception:
            _remove_if_settled(manager, instance)
            raise
        # The end of the process, which is no Exception, leaves the entry.
        _remove_if_settled(manager, instance)
        return result

    manager._do_pre_live_migration_from_source = prepare_with_journal
    manager._do_live_migration = migrate_with_journal


def _write(manager: Any, instance: Any, entry: journal.Entry) -> None:
    try:
        journal.write(manager.host, entry)
    except Exception as error:
        LOG.warning('The data of the live migration could not be kept, so '
                    'that a restart of nova-compute cannot finish it or roll '
                    'it back completely: %s', error, instance=instance)


def _remove_if_settled(manager: Any, instance: Any) -> None:
    """Remove the entry unless a restart has to settle the migration."""
    try:
        now = objects.Instance.get_by_uuid(
            nova_context.get_admin_context(), instance.uuid)
        is_settled = not _migrates_from(manager, now)
    except exception.InstanceNotFound:
        is_settled = True
    except Exception as error:
        LOG.debug('The data of the live migration is kept, as the state of '
                  'the instance is unknown: %s', error, instance=instance)
        return
    if is_settled:
        journal.remove(manager.host, instance.uuid)


def _migrates_from(manager: Any, instance: Any) -> bool:
    return bool(instance.host == manager.host
                and instance.task_state == task_states.MIGRATING)


# -- source: nova-compute starts ---------------------------------------------

@dataclasses.dataclass(frozen=True)
class Interrupted:
    """A live migration that an end of nova-compute has interrupted."""

    #: UUID of the instance
    instance: str
    #: id of the migration's record
    migration: int
    #: status of the record when nova-compute started
    status: str


class _NotSettled(Exception):
    """The migration cannot be settled yet, and nothing has failed."""


class _Recovery:
    """Settles the live migrations from this host when nova-compute starts."""

    def __init__(self, driver: Any, manager: Any) -> None:
        self._driver = driver
        self._manager = manager
        self._interrupted: list[Interrupted] = []
        self._reset_live_migration = manager._reset_live_migration
        self._resume_guests_state = manager._resume_guests_state

    def wrap(self) -> None:
        """Replace the methods that nova-compute calls when it starts."""
        start = self._manager.pre_start_hook

        @functools.wraps(start)
        def start_and_settle(service_ref: Any) -> None:
            start(service_ref)
            self._add_from_journal()
            self._settle_in_background()

        @functools.wraps(self._resume_guests_state)
        def resume_unless_migrating(
            context: Any, instance: Any, net_info: Any,
        ) -> None:
            # The guest may run on the destination.
            if instance.task_state != task_states.MIGRATING:
                self._resume_guests_state(context, instance, net_info)

        self._manager._reset_live_migration = self.note
        self._manager._resume_guests_state = resume_unless_migrating
        # The resource tracker is filled in pre_start_hook.
        self._manager.pre_start_hook = start_and_settle

    # Nova calls it before its RPC server starts, so that the record cannot
    # belong to a migration that this process has begun.
    def note(self, context: Any, instance: Any) -> None:
        """Note an instance that is MIGRATING, and leave it so.

        Replaces ``ComputeManager._reset_live_migration``.
        """
        records = objects.MigrationList.get_by_filters(context, {
            'instance_uuid': instance.uuid, 'migration_type':
                fields.MigrationType.LIVE_MIGRATION,
            'source_compute': self._manager.host})
        record = max(records, key=lambda one: one.id, default=None)
        if record is None:
            self._reset_live_migration(context, instance)
            return
        LOG.info('nova-compute was stopped while live migration %(id)s was '
                 '%(status)s (%(bug)s). The instance is MIGRATING until the '
                 'migration is finished or rolled back.', {
                     'id': record.id, 'status': record.status,
                     'bug': Restart.bug}, instance=instance)
        self._interrupted.append(Interrupted(
            instance.uuid, record.id, record.status))

    def _add_from_journal(self) -> None:
        """Add migrations whose instance is no longer MIGRATING here."""
        known = {one.instance for one in self._interrupted}
        context = nova_context.get_admin_context()
        for uuid in journal.instances(self._manager.host):
            if uuid not in known:
                entry = journal.read(self._manager.host, uuid, context)
                if entry:
                    self._interrupted.append(Interrupted(
                        uuid, entry.migration, ''))
                else:
                    journal.remove(self._manager.host, uuid)

    def _settle_in_background(self) -> None:
        # A queue may be long, and its migrations are settled quickly.
        queued = [one for one in self._interrupted
                  if one.status in ('queued', 'cancelled', '')]
        others = [[one] for one in self._interrupted if one not in queued]
        for group in filter(None, (queued, *others)):
            threading.Thread(
                target=self._settle_all, args=(group,), daemon=True).start()
        self._interrupted = []

    def _settle_all(self, group: list[Interrupted]) -> None:
        for one in group:
            self.settle(one)

    # -- in a thread ---------------------------------------------------------

    def settle(self, interrupted: Interrupted) -> None:
        """Finish the migration or roll it back, as soon as that is possible.

        :param interrupted: see Interrupted
        """
        begin = time.monotonic()
        logged_at = None
        while True:
            try:
                self._attempt(interrupted, begin)
                return
            except Exception as error:
                now = time.monotonic()
                if logged_at is None or now - logged_at >= _RETRY_INTERVAL:
                    logged_at = now
                    LOG.warning(
                        'The interrupted live migration is not settled yet: '
                        '%s', error, instance_uuid=interrupted.instance)
                LOG.debug('The attempt has failed', exc_info=True)
                time.sleep(_INTERVAL if isinstance(error, _NotSettled)
                           else _RETRY_INTERVAL)

    def _attempt(self, interrupted: Interrupted, begin: float) -> None:
        context = nova_context.get_admin_context()
        uuid = interrupted.instance
        try:
            instance = objects.Instance.get_by_uuid(
                context, uuid, expected_attrs=_ATTRIBUTES)
        except exception.InstanceNotFound:
            LOG.info('The instance was deleted while nova-compute was '
                     'stopped in its live migration', instance_uuid=uuid)
            journal.remove(self._manager.host, uuid)
            return
        record = objects.Migration.get_by_id(context, interrupted.migration)
        migration = _Migration(
            self._driver, self._manager, self._resume_guests_state, context,
            instance, record)
        if not _migrates_from(self._manager, instance):
            migration.settle_record()
        elif interrupted.status != 'accepted':
            migration.settle(interrupted.status)
        elif record.status != 'accepted':
            return      # this process carries it out
        elif time.monotonic() - begin < CONF.long_rpc_timeout:
            raise _NotSettled(_('the conductor has not begun it'))
        else:
            migration.cancel('error')
        journal.remove(self._manager.host, uuid)


class _Migration:
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
        :raises _NotSettled: try again after some seconds
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
            if self._entry:
                post_copy.go_on(self._driver, self._context, self._instance,
                                self._entry.migrate_data)
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

        :raises _NotSettled: it may still prepare
        """
        if self._preparations and all(
                event.finish_time for event in self._preparations):
            return
        begin = self._record.updated_at or self._record.created_at
        age = timeutils.utcnow(with_timezone=True) - begin
        # After that time the message broker drops the call.
        if age < datetime.timedelta(seconds=CONF.long_rpc_timeout):
            raise _NotSettled(
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


# -- destination -------------------------------------------------------------

def _refuse_late_rollbacks(manager: Any) -> None:
    """Refuse a rollback that would destroy a guest or a newer migration.

    The source casts it, so that it may arrive at any time.
    """
    name = ('_do_rollback_live_migration_at_destination'
            if hasattr(manager, '_do_rollback_live_migration_at_destination')
            else 'rollback_live_migration_at_destination')
    roll_back = getattr(manager, name)

    @functools.wraps(roll_back)
    def roll_back_unless_late(
        context: Any, instance: Any, destroy_disks: Any, migrate_data: Any,
    ) -> None:
        reason = _reason_against_rollback(manager, instance, migrate_data)
        if reason:
            LOG.error('The rollback of a live migration to this host is '
                      'refused, and nothing is deleted: %s', reason,
                      instance=instance)
        else:
            roll_back(context, instance, destroy_disks, migrate_data)

    setattr(manager, name, roll_back_unless_late)


def _reason_against_rollback(
    manager: Any, instance: Any, migrate_data: Any,
) -> str | None:
    """Return why a rollback would do harm, None if it would not.

    :raises Exception: that is unknown; nothing must be deleted
    """
    context = nova_context.get_admin_context()
    try:
        host = objects.Instance.get_by_uuid(context, instance.uuid).host
    except exception.InstanceNotFound:
        return None
    if host == manager.host:
        return _('the instance is on this host')
    own = (migrate_data.migration.id if migrate_data
           and 'migration' in migrate_data else None)
    newer = [
        record.id for record in objects.MigrationList.get_by_filters(
            context, {'instance_uuid': instance.uuid})
        if own is not None and record.id > own
        and record.dest_compute == manager.host
        and record.status not in ENDED]
    if newer:
        return _('migration %s to this host is in progress') % max(newer)
    if _is_running(manager.driver._host, instance):
        return _('the guest is running here')
    return None


def _is_running(host: Any, instance: Any) -> bool:
    try:
        guest = host.get_guest(instance)
    except exception.InstanceNotFound:
        return False
    return bool(guest.get_power_state(host) == power_state.RUNNING)
