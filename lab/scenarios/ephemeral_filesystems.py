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
"""Migrate ephemeral disks of several sizes and filesystems, never written to.

Nova makes the destination's base without regard to the requested filesystem
and to the disk's number. On the source all disks of a size share one base, so
each guest gets a 1 GB disk of another filesystem in turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from lab import disks
from lab import guest
from lab import scenario
from lab.scenarios import ephemeral
from lab import topology

# The disks of each guest. vfat is the default without a guest_format: Nova
# accepts no guest_format but ext2, ext3, ext4 and xfs.
GUESTS = (
    (guest.Ephemeral(200, 'ext4'), guest.Ephemeral(1, 'ext4'),
     guest.Ephemeral(3), guest.Ephemeral(3)),
    (guest.Ephemeral(1, 'ext3'),),
    (guest.Ephemeral(1),),
)


class EphemeralFilesystems(ephemeral.OldDisks):
    name = 'ephemeral-filesystems'
    title = ('ext4 of 1 and 200 GB and two vfat of one size; ext3; vfat; '
             'all unwritten.')
    expected = {
        # The destination makes vfat, the default, for each disk.
        scenario.NEITHER: {0: ephemeral.LABEL_TOO_LONG,
                           30: ephemeral.DAMAGES},
        scenario.BOTH: ephemeral.KEEPS,
    }

    def run(self, run: scenario.Run) -> None:
        run.configure()
        run.listen_ssh(topology.MIGRATION)
        for wanted in GUESTS:
            ephemeral.forget_bases(run)
            with run.guest(ephemerals=wanted) as instance:
                self.migrate(run, instance, wanted)

    def migrate(self, run: scenario.Run, instance: guest.Guest,
                wanted: Sequence[guest.Ephemeral]) -> None:
        before = self.look(run, instance)
        kinds = [disk.identity()['TYPE'] for disk in before.values()]
        run.check_equal('filesystems as requested', kinds, [
            disk.guest_format or 'vfat' for disk in wanted])
        if not run.migrate(instance, title=' '.join(kinds)):
            return
        for name, disk in self.look(run, instance).items():
            identity = before[name].identity()
            difference = disk.difference(before[name])
            run.check_kept(f'{name}, {identity}, has the same bytes',
                           not difference, difference)
            run.check_kept(f'{name} is still {identity}',
                           disk.identity() == identity, disk.identity())
        if run.protected:
            ephemeral.check_complete(run, instance)
            made = ephemeral.bases(run, scenario.DESTINATION)
            run.check('no base made on the destination', not made, made)

    @staticmethod
    def look(run: scenario.Run,
             instance: guest.Guest) -> dict[str, disks.Snapshot]:
        """Return a Snapshot of each disk, by the name of its file."""
        return {name: run.snapshot(instance, name)
                for name in ephemeral.names(instance)}
