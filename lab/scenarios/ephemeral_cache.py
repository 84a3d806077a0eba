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

"""Let the image cache remove the base of a second ephemeral disk.

Nova counts the size of an instance's first one only. The guest boots on
unmodified Nova in each arrangement; then nova-compute restarts, with the
arrangement's Nova and with an image cache that runs often.
"""

from __future__ import annotations

from lab import guest
from lab import scenario
from lab.scenarios import ephemeral
from lab import topology

# Seconds for which the image cache keeps unused files.
_SPARED = 8

_SECOND, _DEVICE = 'disk.eph1', 'vdc'


class EphemeralCache(scenario.Scenario):
    name = 'ephemeral-cache'
    title = ('XFS of 1 and 2 GB made by unmodified Nova; the image cache is '
             'cleaned; stop, start and hard reboot.')
    kind = 'xfs'
    ephemerals = (guest.Ephemeral(1), guest.Ephemeral(2))
    expected = {
        scenario.NEITHER: {
            0: scenario.Arrives(text='base removed, hard reboot fails'),
            30: scenario.Arrives(
                text='base removed, hard reboot damages disk')},
        scenario.BOTH: scenario.Arrives(text='base and disk kept'),
    }

    def run(self, run: scenario.Run) -> None:
        options = {scenario.EPHEMERAL_FORMAT: self.kind}
        run.configure(both=options, arrangement=scenario.NEITHER)
        run.listen_ssh(topology.MIGRATION)
        ephemeral.forget_bases(run)
        instance = run.boot(ephemerals=self.ephemerals)
        before = run.snapshot(instance, _SECOND).identity()
        ephemeral.write(instance, self.kind, _DEVICE)
        ephemeral.stop_writing(instance)
        bases = {base.name for base in ephemeral.bases(run, scenario.SOURCE)}
        run.check_equal('bases', len(bases), len(self.ephemerals))
        run.configure(both={**options, **ephemeral.eager_cache(_SPARED)})
        self.clean(run, bases, 'the guest runs')
        if run.protected:
            run.progress('stop')
            instance.stop()
            self.clean(run, bases, 'the guest is stopped')
            instance.start()
            self.check(run, instance, 'start', before)
        else:
            # Otherwise the cache removes the hard reboot's new base, too.
            run.configure(both=options)
            if ephemeral.unlabelled(run):
                ephemeral.check_hard_reboot_fails(run, instance)
                return
        run.progress('hard reboot')
        instance.hard_reboot()
        self.check(run, instance, 'hard reboot', before)

    @staticmethod
    def clean(run: scenario.Run, bases: set[str], title: str) -> None:
        ephemeral.wait_for_cache_passes(run, _SPARED)
        left = {base.name for base in ephemeral.bases(run, scenario.SOURCE)}
        run.check_kept(f'{title}: no base is removed', left == bases,
                       f'{left} of {bases}')

    def check(self, run: scenario.Run, instance: guest.Guest, title: str,
              before: dict[str, str]) -> None:
        """Check the second disk, in the guest and from the host."""
        failure = ephemeral.verify(instance, self.kind, _DEVICE)
        run.check_kept(f'{title}: guest can use the disk', not failure,
                       failure)
        after = run.snapshot(instance, _SECOND)
        run.check_equal(f'{title}: type, label and UUID', after.identity(),
                        before)
        faults = after.faults()
        run.check_kept(f'{title}: the check of {self.kind} finds nothing',
                       not faults, faults)
