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
"""Migrate a guest that writes to an XFS ephemeral disk.

Nova copies the overlay, and the destination makes its own base for it:
another filesystem, with another UUID.
"""

from __future__ import annotations

from lab import guest
from lab import scenario
from lab.scenarios import ephemeral
from lab import topology


class EphemeralXfs(ephemeral.OldDisks):
    name = 'ephemeral-xfs'
    title = ('1 GB XFS under writing, a base of the same name on the '
             'destination or none.')
    kind = 'xfs'
    ephemerals = ephemeral.ONE_GB
    cases = {'no base there': ephemeral.forget_bases,
             'foreign base there': ephemeral.cache_foreign_base}
    networks: tuple[topology.Network, ...] = (topology.MIGRATION,)
    expected = {scenario.NEITHER: ephemeral.DAMAGES,
                scenario.BOTH: ephemeral.KEEPS}

    def run(self, run: scenario.Run) -> None:
        run.configure(both={scenario.EPHEMERAL_FORMAT: self.kind})
        run.listen_ssh(*self.networks)
        for case, prepare in self.cases.items():
            prepare(run)
            expected = (ephemeral.unlabelled(run) if self.kind == 'xfs'
                        and prepare is ephemeral.forget_bases else None)
            with run.guest(ephemerals=self.ephemerals) as instance:
                self.migrate(run, instance, case, expected)

    def migrate(self, run: scenario.Run, instance: guest.Guest, case: str,
                expected: scenario.Outcome | None) -> None:
        """Migrate a guest that writes to its disk, and check the disk."""
        before = run.snapshot(instance, 'disk.eph0').identity()
        ephemeral.write(instance, self.kind)
        if not run.migrate(instance, title=f'{case}, guest writes',
                           expected=expected):
            return
        failure = ephemeral.use(instance, self.kind)
        run.check_kept(f'{case}: guest can use the disk', not failure,
                       failure)
        run.progress('hard reboot')
        instance.hard_reboot()
        after = run.snapshot(instance, 'disk.eph0')
        faults = after.faults()
        run.check_kept(f'{case}: the check of {self.kind} finds nothing',
                       not faults, faults)
        if run.protected:
            failure = ephemeral.verify(instance, self.kind)
            run.check(f'{case}: guest can use it after a hard reboot',
                      not failure, failure)
            run.check_equal(f'{case}: type, label and UUID',
                            after.identity(), before)
            ephemeral.check_complete(run, instance)
