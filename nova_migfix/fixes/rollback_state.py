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

"""A guest that runs on after a failed live migration is not in ERROR.

The thread that calls libvirt and the monitor beside it both see a live
migration fail. The monitor asks libvirt for the state of the guest and, where
it goes on running on the source, rolls the migration back: the instance is
ACTIVE, the record ``failed``, the destination is cleaned up. From Nova 32 on
``LibvirtDriver._live_migration`` then collects the thread's result, which
raises the same error once more, and the compute manager takes it for one that
came too late to roll back: the record becomes ``error`` and the instance goes
to ERROR, although nothing is wrong with the guest.

With the fix that second error ends there when two things are known: that the
rollback is complete, which Nova says by setting the record's status as the
last act of it; and that the guest is on the source as it was before, running
where the instance is ACTIVE and paused where it is PAUSED. Everything else is
left to Nova, which says ERROR: a guest that is paused because nobody knows on
which host it may run, one that is gone, one that libvirt cannot tell the state
of, a rollback that failed, and whatever the monitor itself raises.

As the record has no field for a reason, the error is kept as a failed event
of the instance's action, with its message and traceback.
"""

from __future__ import annotations

from typing import Any

from nova.compute import power_state
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova import exception
from oslo_log import log as logging

from nova_migfix.fixes import base
from nova_migfix import nova_release

LOG = logging.getLogger(__name__)

EVENT = 'compute__live_migration_operation'

#: what the rollback sets the record to when it is through
ROLLED_BACK = frozenset(('cancelled', 'failed'))

#: vm_state of the instance: the guest's power state that it implies
UNCHANGED = {
    vm_states.ACTIVE: power_state.RUNNING,
    vm_states.PAUSED: power_state.PAUSED,
}


class RollbackState(base.Fix):
    name = 'rollback_state'
    bug = 'a rolled back live migration leaves a running guest in ERROR'
    mended_by = (
        'nova.virt.libvirt.driver.LibvirtDriver.'
        '_is_live_migration_rolled_back')

    @classmethod
    def not_needed(cls) -> str | None:
        if nova_release.major() < 32:
            return 'it does not raise again what the monitor rolled back'
        return super().not_needed()

    def live_migration_failed(
        self, context: Any, instance: Any, host: Any, migrate_data: Any,
        error: Exception,
    ) -> bool:
        try:
            record = migrate_data.migration.status
            state = host.get_guest(instance).get_power_state(host)
        except Exception as unknown:
            # Nova has to hear of the migration's error, not of this one.
            LOG.info('The state of the guest after the failed live migration '
                     'is unknown (%s); it is left to Nova', unknown,
                     instance=instance)
            return False
        if (record not in ROLLED_BACK
                or state != UNCHANGED.get(instance.vm_state)):
            LOG.info('After the failed live migration the record is '
                     '%(record)s and the guest %(state)s on its source, '
                     'where the instance is %(vm_state)s; it is left to Nova',
                     {'record': record, 'vm_state': instance.vm_state,
                      'state': power_state.STATE_MAP.get(state, state)},
                     instance=instance)
            return False
        self._record(context, instance, error)
        LOG.info('Live migration %(record)s and rolled back, the guest is as '
                 'before on its source; kept %(vm_state)s where Nova would '
                 'have set error (%(bug)s). Reason: %(error)s',
                 {'record': record, 'vm_state': instance.vm_state,
                  'bug': self.bug, 'error': error}, instance=instance)
        return True

    def _record(self, context: Any, instance: Any, error: Exception) -> None:
        reason = exception.MigrationError(reason=str(error))
        try:
            with compute_utils.EventReporter(
                    context, EVENT, instance.host, instance.uuid):
                # of any other exception the event keeps the class only
                raise reason from error
        except Exception as raised:
            if raised is not reason:
                LOG.warning('The reason of the failed live migration could '
                            'not be recorded: %s', raised, instance=instance)
