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
"""The base of a suspended guest's disk is made anew for another guest.

Nova's image cache knows the size of an instance's first ephemeral disk only:
the bases of others are removed while guests need them, and made when the next
guest of that size is booted.
"""

from nova_migfix.tests.lab import evidence
from nova_migfix.tests.lab import scenario
from nova_migfix.tests.lab.scenarios import ephemeral


class EphemeralResume(scenario.Scenario):
    name = 'ephemeral-resume'
    title = 'A guest with a written 1 GB XFS is resumed upon another base.'
    kind = 'xfs'
    expected = {
        scenario.NEITHER: scenario.Arrives(text='resumed, disk damaged'),
        scenario.BOTH: scenario.Arrives(
            text='resume refused; disk kept for its own base'),
    }

    def run(self, run):
        run.configure(both={scenario.EPHEMERAL_FORMAT: self.kind})
        ephemeral.forget_bases(run)
        instance = run.boot(ephemerals=ephemeral.ONE_GB)
        before = run.snapshot(instance, 'disk.eph0').identity()
        ephemeral.write(instance, self.kind)
        ephemeral.stop_writing(instance)
        run.progress('suspend')
        instance.suspend()
        base, = ephemeral.bases(run, scenario.SOURCE)
        kept = base.rename(run.instances(scenario.SOURCE) / 'kept')
        run.boot(ephemerals=ephemeral.ONE_GB)
        run.check('another base in its place', base.exists())
        run.progress('resume')
        if run.protected:
            self.check_refused(run, instance)
            kept.rename(base)
        instance.resume()
        boot_id, _ = instance.says(scenario.SOURCE)
        run.check_equal('boot id of the guest', boot_id, instance.boot_id)
        after = run.snapshot(instance, 'disk.eph0')
        # The guest has written them itself when it mounted the disk.
        run.check_equal('type, label and UUID', after.identity(), before)
        faults = after.faults()
        run.check_kept(f'the check of {self.kind} finds nothing', not faults,
                       faults)
        instance.hard_reboot()
        failure = ephemeral.verify(instance, self.kind)
        run.check_kept('guest can use the disk', not failure, failure)

    @staticmethod
    def check_refused(run, instance):
        log = evidence.Marked(scenario.SOURCE,
                              run.cloud.compute[scenario.SOURCE].log)
        instance.ask_in_vain_for_resume()
        line = log.find(r'disk\.eph0 of instance \S+ is needed as the guest '
                        r'knows it, but its backing file \S+ is another one')
        run.check('the resume is refused', line, line and line.short)
