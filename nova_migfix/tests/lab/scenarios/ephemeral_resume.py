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
        instance, before = ephemeral.boot_and_write(run, self.kind)
        run.progress('suspend')
        instance.suspend()
        base, = ephemeral.bases(run, scenario.SOURCE)
        kept = base.rename(run.instances(scenario.SOURCE) / 'kept')
        run.boot(ephemerals=ephemeral.ONE_GB)
        run.check('another base in its place', base.exists())
        run.progress('resume')
        if run.protected:
            run.check_source_says(
                'the resume is refused',
                r'disk\.eph0 of instance \S+ is needed as the guest knows it, '
                r'but its backing file \S+ is another one',
                instance.ask_in_vain_for_resume)
            kept.rename(base)
        instance.resume()
        boot_id, _ = instance.says(scenario.SOURCE)
        run.check_equal('boot id of the guest', boot_id, instance.boot_id)
        ephemeral.check_disk(run, instance, self.kind, before)
        instance.hard_reboot()
        ephemeral.check_files(run, instance, self.kind)
