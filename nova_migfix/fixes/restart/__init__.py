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

A migration that Nova leaves without an end, as its rollback has failed, is
settled in the same way without a restart. A rollback cleans up a destination
that has died, and outlives its silence:
:mod:`nova_migfix.fixes.restart.destination`.

The destination refuses a rollback that comes too late: after the guest has
arrived, or after another migration of the same guest to this host has begun.

SIGHUP is a restart too if Nova 34 uses threads: oslo.service ends the process.
"""

from __future__ import annotations

from typing import Any

from nova_migfix.fixes import base
from nova_migfix.fixes.restart import destination
from nova_migfix.fixes.restart import journaling
from nova_migfix.fixes.restart import late_rollback
from nova_migfix.fixes.restart import recovery


class Restart(base.Fix):
    name = 'restart'
    bug = 'LP 1753676: a restart of nova-compute loses its live migrations'

    def extend_driver(self, driver: Any) -> None:
        manager = getattr(driver.virtapi, '_compute', None)
        if manager is not None:     # None in tests only
            recoveries = recovery.Recovery(driver, manager, self.bug)
            recoveries.wrap()
            journaling.wrap(manager, recoveries.settle_unfinished)
            destination.wrap(manager)
            late_rollback.refuse(manager)
