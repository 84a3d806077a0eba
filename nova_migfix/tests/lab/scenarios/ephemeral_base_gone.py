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
"""The base of a running guest's disk is removed, and the guest rebooted.

Nova's image cache knows the size of an instance's first ephemeral disk only:
the bases of others are removed while they are in use. QEMU has them open
still; a guest that is rebooted hard gets one that Nova makes anew.
"""

import contextlib

from nova_migfix.tests.lab import process
from nova_migfix.tests.lab import scenario
from nova_migfix.tests.lab.scenarios import ephemeral
from nova_migfix.tests.lab import topology

_SAVED = tuple(scenario.Said(scenario.SOURCE, 'nova-compute', pattern)
               for pattern in (r'disk\.eph0: the backing file here is lost',
                               r'made complete by a block pull in [\d.]+ s'))


class EphemeralBaseGone(scenario.Scenario):
    name = 'ephemeral-base-gone'
    title = ('The base of a written 1 GB XFS is removed; hard reboot, then '
             'live migration.')
    kind = 'xfs'
    expected = {
        scenario.NEITHER: {
            0: scenario.Arrives(text='hard reboot fails'),
            30: scenario.Arrives(text='hard reboot damages disk')},
        scenario.BOTH: scenario.Arrives(
            said=_SAVED, text='hard reboot refused; arrives, disk kept'),
    }

    def run(self, run):
        run.configure(both={scenario.EPHEMERAL_FORMAT: self.kind})
        run.listen_ssh(topology.MIGRATION)
        ephemeral.forget_bases(run)
        # nothing is written to the second disk
        instance, before = ephemeral.boot_and_write(
            run, self.kind, ephemeral.ONE_GB * 2)
        # nothing is written to the second disk
        never = run.snapshot(instance, 'disk.eph1').identity()
        ephemeral.forget_bases(run)
        run.progress('hard reboot')
        if run.protected:
            self.check_refused(run, instance)
            run.migrate(instance)
        elif ephemeral.unlabelled(run):
            self.check_fails(run, instance)
            return
        else:
            instance.hard_reboot()
        ephemeral.check_disk(run, instance, self.kind, before)
        run.check_kept('never written to: type, label and UUID', run.snapshot(
            instance, 'disk.eph1').identity() == never)
        ephemeral.check_files(run, instance, self.kind)

    @staticmethod
    def check_fails(run, instance):
        """The guest has been stopped, and Nova cannot start it again."""
        def reboot_in_vain():
            with contextlib.suppress(process.LabError):
                instance.hard_reboot()
        run.check_source_says('no base can be made', ephemeral.TOO_LONG,
                              reboot_in_vain)

    @staticmethod
    def check_refused(run, instance):
        """The guest runs on when a hard reboot would destroy its data."""
        run.check_source_says(
            'the hard reboot is refused',
            r'disk\.eph0 of instance \S+ has data, but its '
            r'backing file \S+ is missing', instance.ask_for_hard_reboot)
        boot_id, _ = instance.says(scenario.SOURCE)
        run.check_equal('boot id of the guest', boot_id, instance.boot_id)
        made = [base.name for base in ephemeral.bases(run, scenario.SOURCE)]
        run.check('no base is made anew', not made, made)
