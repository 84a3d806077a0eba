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
"""Migrate a guest cold that has written to an XFS ephemeral disk.

Nova copies the overlay and makes a new base on the destination. Either host
alone can keep the disk: the source completes it when the guest is off, the
destination fetches the source's base.
"""

from __future__ import annotations

from lab import scenario
from lab.scenarios import ephemeral
from lab import topology

_KEEPS = scenario.Arrives(text=ephemeral.KEEPS.text)


class EphemeralCold(ephemeral.OldDisks):
    name = 'ephemeral-cold'
    title = 'Cold migration of a guest with 1 GB XFS that it has written to.'
    kind = 'xfs'
    expected = {scenario.NEITHER: ephemeral.DAMAGES,
                scenario.SOURCE_ONLY: _KEEPS,
                scenario.BOTH: _KEEPS,
                scenario.DESTINATION_ONLY: _KEEPS}

    def run(self, run: scenario.Run) -> None:
        run.configure(both={scenario.EPHEMERAL_FORMAT: self.kind})
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        ephemeral.cache_foreign_base(run)
        instance, before = ephemeral.boot_and_write(run, self.kind)
        run.progress('cold migration')
        instance.cold_migrate()
        run.check_equal('host of the instance', instance.host,
                        scenario.DESTINATION)
        ephemeral.check_disk(run, instance, self.kind, before)
        ephemeral.check_files(run, instance, self.kind)
        if run.protected:
            ephemeral.check_complete(run, instance)
