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

"""Refuse rollbacks that reach the destination too late."""

from __future__ import annotations

import functools
from typing import Any

from nova.compute import power_state
from nova import context as nova_context
from nova import exception
from nova.i18n import _
from nova import objects
from oslo_log import log as logging

LOG = logging.getLogger(__name__)

#: statuses of a migration of any type that has ended
ENDED = frozenset(('cancelled', 'completed', 'confirmed', 'done', 'error',
                   'failed', 'reverted'))


def refuse(manager: Any) -> None:
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
