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
"""Resume a guest after Nova has made a new base for another guest.

Nova's image cache knows the size of an instance's first ephemeral disk only:
it removes the bases of others while guests need them, and Nova makes new ones
when the next guest with a disk of that size boots.
"""

from __future__ import annotations

import hashlib

from lab import guest
from lab import scenario
from lab.scenarios import ephemeral


class EphemeralResume(ephemeral.OldDisks):
    name = 'ephemeral-resume'
    title = 'A guest with a written 1 GB XFS is resumed; its base is lost.'
    kind = 'xfs'
    expected = {
        scenario.NEITHER: scenario.Arrives(text='resumed, disk damaged'),
        scenario.BOTH: scenario.Arrives(
            text='resume fails; disk kept for its own base'),
    }

    def run(self, run: scenario.Run) -> None:
        run.configure(both={scenario.EPHEMERAL_FORMAT: self.kind})
        ephemeral.forget_bases(run)
        instance, before = ephemeral.boot_and_write(run, self.kind)
        run.progress('suspend')
        instance.suspend()
        base, = ephemeral.bases(run, scenario.SOURCE)
        kept = base.rename(run.instances(scenario.SOURCE) / 'kept')
        other = run.boot(ephemerals=ephemeral.ONE_GB)
        run.check_kept('no other base in its place', not base.exists())
        run.progress('resume')
        if run.protected:
            ephemeral.check_complete(run, other)
            self.resume_in_vain(run, instance)
            kept.rename(base)
        else:
            instance.resume()
            boot_id, _ = instance.says(scenario.SOURCE)
            run.check_equal('boot id of the guest', boot_id,
                            instance.boot_id)
        ephemeral.check_disk(run, instance, self.kind, before)
        instance.hard_reboot()
        ephemeral.check_files(run, instance, self.kind)

    @staticmethod
    def resume_in_vain(run: scenario.Run, instance: guest.Guest) -> None:
        """Check that the resume fails without the base and keeps the disk."""
        disk = instance.files(scenario.SOURCE) / 'disk.eph0'
        before = hashlib.sha256(disk.read_bytes()).hexdigest()
        states = []
        run.check_source_says(
            'QEMU finds no base', 'ephemeral_.*No such file or directory',
            lambda: states.append(instance.ask_in_vain_for_resume()))
        # Nova's own state after the failure; a hard reboot resets it.
        run.check_equal('state of the instance', states, ['ERROR'])
        after = hashlib.sha256(disk.read_bytes()).hexdigest()
        run.check_equal('disk.eph0, sha256', after, before)
