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

"""Raise max_queues on the source while a guest runs.

For the destination Nova recomputes the number of queues from the source's
present configuration; the running guest still has its number from the boot.
"""

from __future__ import annotations

from collections.abc import Mapping

from lab import guest
from lab import scenario

# The error of the destination's QEMU when it receives the state of a device
# with another number of queues.
QEMU_REFUSES = scenario.Said(
    scenario.DESTINATION, 'qemu',
    r'get_pci_config_device: Bad config data|'
    r'Failed to load virtio-net:virtio')

# The log line of a fixed Nova.
KEPT = scenario.Said(scenario.SOURCE, 'nova-compute',
                     r'vNIC \S+: kept .*queues')


class QueuesGrow(scenario.Scenario):
    name = 'queues-grow'
    title = 'max_queues raised from 2 to 4 on the source while a guest runs.'
    booted_with = 2
    configured = 4
    expected: Mapping[scenario.Arrangement, scenario.Outcome] = {
        scenario.NEITHER: scenario.Fails(
            said=(QEMU_REFUSES,), vm_state=scenario.ERROR_SINCE_32),
        scenario.BOTH: scenario.Arrives(said=(KEPT,)),
    }

    def run(self, run: scenario.Run) -> None:
        guest = self.drift(run)
        if run.migrate(guest):
            run.check_queues(guest, scenario.DESTINATION, self.booted_with)
            run.migrate(guest, scenario.SOURCE, 'and back',
                        expected=scenario.Arrives())
            run.check_queues(guest, scenario.SOURCE, self.booted_with)

    def drift(self, run: scenario.Run) -> guest.Guest:
        """Boot a guest and change its host's number of queues afterwards."""
        run.configure(source={scenario.MAX_QUEUES: self.booted_with})
        guest = run.boot()
        run.check_queues(guest, scenario.SOURCE, self.booted_with)
        run.configure(source={scenario.MAX_QUEUES: self.configured})
        return guest
