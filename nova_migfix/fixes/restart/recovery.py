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

"""Settle the live migrations from this host when nova-compute starts."""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from typing import Any

from nova.compute import task_states
from nova import context as nova_context
from nova import exception
from nova.i18n import _
from nova import objects
from nova.objects import fields
from oslo_config import cfg
from oslo_log import log as logging

from nova_migfix.fixes.restart import interrupted
from nova_migfix.fixes.restart import journaling
from nova_migfix.fixes.restart import rollback
from nova_migfix.fixes.restart import settlement
from nova_migfix import journal

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

# Seconds between two attempts to settle a migration.
_RETRY_INTERVAL = 60
# The same while the conductor or the destination works on it.
_INTERVAL = 5

# Attributes of an instance that Nova uses in a rollback or an arrival.
_ATTRIBUTES = ['info_cache', 'security_groups', 'metadata', 'system_metadata',
               'flavor', 'numa_topology', 'migration_context']


@dataclasses.dataclass(frozen=True)
class Noted:
    """A live migration that an end of nova-compute has interrupted."""

    #: UUID of the instance
    instance: str
    #: id of the migration's record
    migration: int
    #: status of the record when nova-compute started
    status: str


class Recovery:
    """Settles the live migrations from this host when nova-compute starts."""

    def __init__(self, driver: Any, manager: Any, bug: str) -> None:
        self._driver = driver
        self._manager = manager
        self._bug = bug
        self._noted: list[Noted] = []
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
                     'bug': self._bug}, instance=instance)
        self._noted.append(Noted(instance.uuid, record.id, record.status))

    def _add_from_journal(self) -> None:
        """Add migrations whose instance is no longer MIGRATING here."""
        known = {one.instance for one in self._noted}
        context = nova_context.get_admin_context()
        for uuid in journal.instances(self._manager.host):
            if uuid not in known:
                entry = journal.read(self._manager.host, uuid, context)
                if entry:
                    self._noted.append(Noted(uuid, entry.migration, ''))
                else:
                    journal.remove(self._manager.host, uuid)

    def _settle_in_background(self) -> None:
        # A queue may be long, and its migrations are settled quickly.
        queued = [one for one in self._noted
                  if one.status in ('queued', 'cancelled', '')]
        others = [[one] for one in self._noted if one not in queued]
        for group in filter(None, (queued, *others)):
            self._start(group)
        self._noted = []

    def settle_unfinished(self, instance: Any, record: Any) -> None:
        """Settle a migration that Nova has left without an end.

        Its rollback has failed in the preparation, or the conductor is silent.
        Nova would leave the instance MIGRATING for ever.
        """
        LOG.warning('Nova has left live migration %(id)s without an end. The '
                    'instance is MIGRATING until the migration to %(dest)s is '
                    'finished or rolled back.', {
                        'id': record.id, 'dest': record.dest_compute},
                    instance=instance)
        # The destination does not prepare any more.
        status = 'error' if record.status == 'preparing' else record.status
        self._start([Noted(instance.uuid, record.id, status)])

    def _start(self, group: list[Noted]) -> None:
        threading.Thread(
            target=self._settle_all, args=(group,), daemon=True).start()

    def _settle_all(self, group: list[Noted]) -> None:
        for one in group:
            self.settle(one)

    # -- in a thread ---------------------------------------------------------

    def settle(self, noted: Noted) -> None:
        """Finish the migration or roll it back, as soon as that is possible.

        :param noted: the migration
        """
        begin = time.monotonic()
        logged_at = None
        while True:
            try:
                self._attempt(noted, begin)
                return
            except Exception as error:
                now = time.monotonic()
                if logged_at is None or now - logged_at >= _RETRY_INTERVAL:
                    logged_at = now
                    LOG.warning(
                        'The interrupted live migration is not settled yet: '
                        '%s', error, instance_uuid=noted.instance)
                LOG.debug('The attempt has failed', exc_info=True)
                time.sleep(
                    _INTERVAL if isinstance(error, settlement.NotSettled)
                    else _RETRY_INTERVAL)

    def _attempt(self, noted: Noted, begin: float) -> None:
        context = nova_context.get_admin_context()
        uuid = noted.instance
        try:
            instance = objects.Instance.get_by_uuid(
                context, uuid, expected_attrs=_ATTRIBUTES)
        except exception.InstanceNotFound:
            LOG.info('The instance was deleted during its interrupted '
                     'live migration', instance_uuid=uuid)
            journal.remove(self._manager.host, uuid)
            return
        record = objects.Migration.get_by_id(context, noted.migration)
        migration = interrupted.Migration(
            self._driver, self._manager, self._resume_guests_state, context,
            instance, record)
        if not journaling.migrates_from(self._manager, instance):
            settlement.settle_record(migration)
        elif noted.status != 'accepted':
            settlement.settle(migration, noted.status)
        elif record.status != 'accepted':
            return      # this process carries it out
        elif time.monotonic() - begin < CONF.long_rpc_timeout:
            raise settlement.NotSettled(_('the conductor has not begun it'))
        else:
            rollback.cancel(migration, 'error')
        journal.remove(self._manager.host, uuid)
