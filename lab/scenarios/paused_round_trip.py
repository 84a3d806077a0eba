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

"""Migrate a paused guest there and back.

QEMU on the destination leaves the disks of a paused guest inactive. The second
migration deactivates them again, and QEMU aborts if the guest has a disk that
is not mirrored, such as a config drive. Unmodified Nova then takes the
migration for completed and deletes the disks that the guest had used.
"""

from __future__ import annotations

from lab import disks
from lab import guest
from lab import remains
from lab import scenario
from lab.scenarios import faulted
from lab import topology

_FIRST = scenario.Leaves(
    text='arrives, paused', vm_state=('PAUSED',), host=scenario.DESTINATION,
    record=('completed',))
# Unmodified Nova empties the config drive in the first migration.
_DISK = 'disk'


class PausedRoundTrip(faulted.Faulted):
    name = 'paused-round-trip'
    title = 'A paused guest with a config drive migrates there and back.'
    expected = {
        scenario.NEITHER: scenario.Leaves(
            text='QEMU aborts, domain on no host', harm=('domain', 'exists'),
            vm_state=('PAUSED', 'ERROR'), host=scenario.SOURCE,
            said=(scenario.Said(scenario.SOURCE, 'qemu',
                                'reason=crashed|Assertion'),)),
        scenario.BOTH: scenario.Leaves(
            text='is refused, stays PAUSED', vm_state=('PAUSED',),
            host=scenario.DESTINATION, record=('failed', 'error'),
            said=(scenario.Said(
                scenario.SOURCE, 'nova-compute',
                'MigrationPreCheckError.*paused.*[Uu]npause.*cold'),)),
    }

    def run(self, run: scenario.Run) -> None:
        run.configure()
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        instance, data = faulted.boot(run, config_drive=True)
        before = remains.references(run.cloud, instance, run)
        instance.pause()
        self.migrate_first(run, instance, before)
        run.migrate(instance, scenario.SOURCE, 'back')
        if not run.protected:
            before = {_DISK: before[_DISK]}
        faulted.judge(run, instance, before, data)

    @staticmethod
    def migrate_first(run: scenario.Run, instance: guest.Guest,
                      before: dict[str, disks.Snapshot]) -> None:
        """Migrate to the destination, which always works."""
        run.migrate(instance, title='there', expected=_FIRST)
        faulted.wait_for_state(run, instance, _FIRST)
        found = remains.look(run.cloud, instance, {_DISK: before[_DISK]})
        faulted.check_records(run, found, _FIRST)
        faulted.check_rules(run, found, _FIRST)
