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

"""Migrate to a destination that cannot open the guest's number of queues.

There a library (data/tap_queue_limit.c) limits a tap device to two queues, as
Linux before 4.0 limits it to eight.
"""

from __future__ import annotations

from lab import guest
from lab import scenario

HAS, POSSIBLE = 4, 2


class QueuesRefused(scenario.Scenario):
    name = 'queues-refused'
    title = 'The destination can open 2 queues, the guest has 4.'
    expected = {
        # Fails after the destination has been prepared.
        scenario.NEITHER: scenario.Fails(
            said=(scenario.Said(
                scenario.DESTINATION, 'libvirtd',
                r'Unable to create tap device.*Argument list too long'),),
            vm_state=scenario.ERROR_SINCE_32),
        # Is refused before any change.
        scenario.BOTH: scenario.Fails(
            said=(scenario.Said(
                scenario.SOURCE, 'nova-compute',
                r'MigrationPreCheckError.*queues'),),
            text='is refused'),
    }

    def run(self, run: scenario.Run) -> None:
        run.configure(tap_queue_limit=POSSIBLE)
        guest = run.boot()
        run.check_queues(guest, scenario.SOURCE, HAS)
        run.migrate(guest)
        prepared = guest.qemu_log(scenario.DESTINATION).exists()
        if run.fixed:
            self.check_refusal(run, guest)
            run.check('destination never prepared', not (
                prepared or guest.files(scenario.DESTINATION).exists()))

    @staticmethod
    def check_refusal(run: scenario.Run, guest: guest.Guest) -> None:
        """Check that the reason has all that an operator needs to act."""
        line, = run.result.steps[-1].lines or (None,)
        text = line.text if line else ''
        for what, said in (
                ('the instance', guest.id), ('the MAC address', guest.mac),
                ('the queues it has', str(HAS)),
                ('the queues possible', str(POSSIBLE)),
                ('the option', 'max_queues')):
            run.check(f'the reason names {what}: {said}', said in text)
