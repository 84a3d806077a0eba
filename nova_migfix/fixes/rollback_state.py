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

"""Keep the state of the instance after a rolled back live migration.

Two threads see a live migration fail: the one that calls libvirt, and the
monitor. The monitor asks libvirt for the state of the guest. If the guest
still runs on the source, the monitor rolls the migration back: the instance is
ACTIVE, the migration record ``failed``, and Nova cleans up the destination.
From Nova 32 on ``LibvirtDriver._live_migration`` then collects the result of
the first thread, which raises the same error again. The compute manager takes
it for an error that came too late for a rollback: the record becomes ``error``
and the instance goes to ERROR, although the guest is unharmed.

The fix drops that second error on two conditions. The rollback is complete:
Nova sets the record's status as the last step of the rollback. And the guest
is on the source as before: running if the instance is ACTIVE, paused if it is
PAUSED. In all other cases Nova sets ERROR: the guest is paused because it is
unknown on which host it may run, the guest is gone, libvirt cannot return its
state, the rollback failed, or the monitor itself raises.

A guest that is off on its source is settled too, if the fix ``arrival`` has
rolled its migration back: Nova then sets SHUTOFF.

The fix records the error as an event: see :mod:`nova_migfix.action`.
"""

from __future__ import annotations

from typing import Any

from nova.compute import power_state
from nova.compute import vm_states
from oslo_log import log as logging

from nova_migfix import action
from nova_migfix.fixes import base
from nova_migfix import migration
from nova_migfix import nova_release

LOG = logging.getLogger(__name__)

#: statuses of the migration record that a complete rollback sets
ROLLED_BACK = frozenset(('cancelled', 'failed'))

# A rollback says that the disks are on the source. Nova rolls back a guest
# that is off only with the fix 'arrival'.
_OFF = (power_state.SHUTDOWN, power_state.CRASHED)

#: vm_state of the instance: the power states in which Nova needs no ERROR
SETTLED = {
    vm_states.ACTIVE: (power_state.RUNNING, *_OFF),
    vm_states.PAUSED: (power_state.PAUSED, *_OFF),
}


class RollbackState(base.Fix):
    name = 'rollback_state'
    bug = 'a rolled back live migration leaves a running guest in ERROR'
    fixed_upstream_marker = (
        'nova.virt.libvirt.driver.LibvirtDriver.'
        '_is_live_migration_rolled_back')

    @classmethod
    def not_needed(cls) -> str | None:
        if nova_release.major() < 32:
            return 'it does not raise the error again after the rollback'
        return super().not_needed()

    def live_migration_failed(
        self, context: Any, instance: Any, host: Any, migrate_data: Any,
        error: Exception, operation: migration.Operation,
    ) -> bool:
        try:
            record = migrate_data.migration.status
            state = host.get_guest(instance).get_power_state(host)
        except Exception as unknown:
            # Nova has to get the error of the migration, not this one.
            LOG.info('The state of the guest after the failed live migration '
                     'is unknown (%s); Nova handles the failure', unknown,
                     instance=instance)
            return False
        if (record not in ROLLED_BACK
                or state not in SETTLED.get(instance.vm_state, ())):
            LOG.info('After the failed live migration the record is '
                     '%(record)s, the guest is %(state)s on the source and '
                     'the instance is %(vm_state)s; Nova handles the failure',
                     {'record': record, 'vm_state': instance.vm_state,
                      'state': power_state.STATE_MAP.get(state, state)},
                     instance=instance)
            return False
        if state not in _OFF:       # 'arrival' has recorded its reason
            action.record_failure(context, instance, error)
        LOG.info('Live migration %(record)s and rolled back, the guest is '
                 '%(state)s on its source; kept %(vm_state)s where Nova would '
                 'have set error (%(bug)s). Reason: %(error)s',
                 {'record': record, 'vm_state': instance.vm_state,
                  'state': power_state.STATE_MAP[state],
                  'bug': self.bug, 'error': error}, instance=instance)
        return True
