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

"""Let a rollback clean up the destination, and outlive its silence.

A destination whose nova-compute ends while it prepares leaves its volumes
connected: Nova expects it to have disconnected them. Nova also fails in a
rollback if the destination does not drop its claims of CPUs, memory and PCI
devices: the instance goes to ERROR although its guest is unharmed. An abort of
a queued migration does not drop them at all (LP 1949808).
"""

from __future__ import annotations

import functools
from typing import Any

from nova import objects
from oslo_log import log as logging

LOG = logging.getLogger(__name__)


def wrap(manager: Any) -> None:
    """Replace Nova's rollback and its abort."""
    roll_back = manager._rollback_live_migration
    abort = manager.live_migration_abort

    @functools.wraps(roll_back)
    def roll_back_and_clean_up(
        context: Any, instance: Any, dest: Any, migrate_data: Any = None,
        migration_status: Any = 'failed', source_bdms: Any = None,
        pre_live_migration: Any = False,
    ) -> None:
        if pre_live_migration:
            _disconnect_volumes(manager, context, instance, dest, source_bdms)
        _outlive_silence(manager.compute_rpcapi)
        roll_back(context, instance, dest, migrate_data=migrate_data,
                  migration_status=migration_status, source_bdms=source_bdms,
                  pre_live_migration=pre_live_migration)

    @functools.wraps(abort)
    def abort_and_drop_claims(
        context: Any, instance: Any, migration_id: Any,
    ) -> None:
        abort(context, instance, migration_id)
        # It ends the task only if the migration was queued.
        if instance.task_state is None:
            record = objects.Migration.get_by_id(context, migration_id)
            drop_claims(manager, context, instance, record.dest_compute)

    manager._rollback_live_migration = roll_back_and_clean_up
    manager.live_migration_abort = abort_and_drop_claims


def drop_claims(manager: Any, context: Any, instance: Any, dest: Any) -> None:
    """Drop the claims of a migration that has not begun, if it has any."""
    if instance.migration_context is not None:
        _outlive_silence(manager.compute_rpcapi)
        manager.compute_rpcapi.drop_move_claim_at_destination(
            context, instance, dest)
        instance.drop_migration_context()


def _disconnect_volumes(manager: Any, context: Any, instance: Any, dest: Any,
                        source_bdms: Any) -> None:
    """Disconnect the volumes that the destination has attached.

    It disconnects them itself if its preparation fails. A call for such a
    volume would delete its attachment to the source.
    """
    attached = {bdm.volume_id: bdm.attachment_id for bdm in source_bdms
                if bdm.is_volume}
    changed = [
        bdm for bdm in objects.BlockDeviceMappingList.get_by_instance_uuid(
            context, instance.uuid)
        if bdm.is_volume and bdm.attachment_id != attached.get(bdm.volume_id)]
    manager._remove_remote_volume_connections(
        context, dest, changed, instance)


def _outlive_silence(rpcapi: Any) -> None:
    """Let *rpcapi* ignore a destination that does not drop its claims."""
    call = rpcapi.drop_move_claim_at_destination
    if hasattr(call, 'outlives_silence'):
        return

    @functools.wraps(call)
    def drop(ctxt: Any, instance: Any, host: Any) -> None:
        try:
            call(ctxt, instance, host)
        except Exception as error:
            # It computes its usage from the migrations that have not ended.
            LOG.warning(
                'The claims of the live migration remain on %(host)s until '
                'its next periodic update of resources: %(error)s',
                {'host': host, 'error': error}, instance=instance)

    drop.outlives_silence = True    # type: ignore[attr-defined]
    rpcapi.drop_move_claim_at_destination = drop
