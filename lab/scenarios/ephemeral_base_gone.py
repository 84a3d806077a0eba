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
"""Remove the base of a running guest's disk, and reboot the guest hard.

Nova's image cache knows the size of an instance's first ephemeral disk only:
it removes the bases of others while they are in use. QEMU still has them open;
at a hard reboot Nova makes a new base for the guest.
"""

from __future__ import annotations

from lab import guest
from lab import scenario
from lab.scenarios import ephemeral
from lab import topology

_SAVED = r'disk\.eph0: made complete by (QEMU|a block pull) in [\d.]+ s'


class EphemeralBaseGone(ephemeral.OldDisks):
    name = 'ephemeral-base-gone'
    title = ('The base of a written 1 GB XFS is removed; hard reboot, then '
             'live migration.')
    kind = 'xfs'
    expected = {
        scenario.NEITHER: {
            0: scenario.Arrives(text='hard reboot fails'),
            30: scenario.Arrives(text='hard reboot damages disk')},
        scenario.BOTH: scenario.Arrives(
            text='hard reboot and migration keep the disk'),
    }

    def run(self, run: scenario.Run) -> None:
        run.configure(both={scenario.EPHEMERAL_FORMAT: self.kind})
        run.listen_ssh(topology.MIGRATION)
        ephemeral.forget_bases(run)
        instance, before = ephemeral.boot_and_write(
            run, self.kind, ephemeral.ONE_GB * 2)
        # The guest never writes to the second disk.
        never = run.snapshot(instance, 'disk.eph1').identity()
        ephemeral.forget_bases(run)
        run.progress('hard reboot')
        if run.protected:
            run.check_source_says(
                'the disk is completed before the guest is stopped', _SAVED,
                instance.hard_reboot)
            self.check_saved(run, instance)
            run.migrate(instance)
        elif ephemeral.unlabelled(run):
            ephemeral.check_hard_reboot_fails(run, instance)
            return
        else:
            instance.hard_reboot()
        ephemeral.check_disk(run, instance, self.kind, before)
        run.check_kept('never written to: type, label and UUID', run.snapshot(
            instance, 'disk.eph1').identity() == never)
        ephemeral.check_files(run, instance, self.kind)

    @staticmethod
    def check_saved(run: scenario.Run, instance: guest.Guest) -> None:
        """Check that the guest has its data and needs no base."""
        made = [base.name for base in ephemeral.bases(run, scenario.SOURCE)]
        run.check('no new base is made', not made, made)
        ephemeral.check_complete(run, instance)
        failure = ephemeral.verify(instance, EphemeralBaseGone.kind)
        run.check('guest can use the disk after the hard reboot',
                  not failure, failure)
