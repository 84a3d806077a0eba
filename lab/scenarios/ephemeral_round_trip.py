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
"""Take a guest with two ephemeral disks through all operations.

The image cache repeatedly removes all unused files: it must keep the files
that the disks need.
"""

from __future__ import annotations

from lab import cloud
from lab import guest
from lab import scenario
from lab.scenarios import ephemeral
from lab import topology

# Seconds for which the image cache keeps unused files, among them those that a
# migration needs while Nova prepares it.
_SPARED = 60


class EphemeralRoundTrip(ephemeral.OldDisks):
    name = 'ephemeral-round-trip'
    title = ('There, back and there again, cold migration, resize and hard '
             'reboot.')
    expected = {scenario.NEITHER: ephemeral.DAMAGES,
                scenario.BOTH: ephemeral.KEEPS}
    ephemerals = (guest.Ephemeral(1), guest.Ephemeral(2))
    # GB of the flavor for the resize, more than the disks have together
    grown = 4
    kind = 'ext4'

    def run(self, run: scenario.Run) -> None:
        options = {scenario.EPHEMERAL_FORMAT: self.kind}
        run.configure(both=options)
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        ephemeral.forget_bases(run)
        instance = run.boot(ephemerals=self.ephemerals)
        self.before = self.identities(run, instance)
        ephemeral.write(instance, self.kind)
        run.migrate(instance)
        failure = ephemeral.use(instance, self.kind)
        run.check('written disk can be used', not failure, failure)
        self.check(run, instance, 'live migration')
        if not run.protected:
            return
        run.configure(both={**options, **ephemeral.eager_cache(_SPARED)})
        ephemeral.wait_for_cache_passes(run, _SPARED)
        for destination, expected in (
                (scenario.SOURCE, scenario.Arrives()),
                (scenario.DESTINATION, scenario.Arrives())):
            run.migrate(instance, destination, expected=expected)
            self.check(run, instance, f'live migration to {destination}')
        for title, action in (
                ('cold migration', instance.cold_migrate),
                ('resize', lambda: instance.resize(
                    **cloud.LARGER, ephemeral=self.grown)),
                ('image cache', lambda: ephemeral.wait_for_cache_passes(
                    run, _SPARED)),
                ('hard reboot', instance.hard_reboot)):
            run.progress(title)
            action()
            self.check(run, instance, title)
            self.check_files(run, instance, title)

    @staticmethod
    def identities(run: scenario.Run,
                   instance: guest.Guest) -> list[dict[str, str]]:
        return [run.snapshot(instance, name).identity()
                for name in ephemeral.names(instance)]

    def check(self, run: scenario.Run, instance: guest.Guest,
              title: str) -> None:
        found = self.identities(run, instance)
        run.check_kept(f'{title}: types, labels and UUIDs',
                       found == self.before, found)

    def check_files(self, run: scenario.Run, instance: guest.Guest,
                    title: str) -> None:
        """Check the files and the disks, in the guest and from the host."""
        failure = ephemeral.verify(instance, self.kind)
        run.check(f'{title}: files in the guest', not failure, failure)
        for name in ephemeral.names(instance):
            faults = run.snapshot(instance, name).faults()
            run.check(f'{title}: {name} has no faults', not faults, faults)
        ephemeral.check_complete(run, instance)
