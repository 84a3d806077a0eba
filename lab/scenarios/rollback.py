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

"""Let a migration fail while memory is copied.

The scenario kills the QEMU that receives the guest. The source rolls back and
the guest keeps running; the scenario checks the instance's state afterwards.
"""

from __future__ import annotations

from lab import guest
from lab import process
from lab import scenario

# MiB/s: slow enough to kill QEMU during the copy, fast enough for the next
# migration.
LIMIT = 8


class Rollback(scenario.Scenario):
    name = 'rollback'
    title = 'The destination is lost while memory is being copied.'
    _lost = scenario.Said(scenario.SOURCE, 'nova-compute',
                          r'Live Migration failure: .*')
    _kept = scenario.Said(scenario.SOURCE, 'nova-compute',
                          r'rolled back, the guest is as before',
                          since=32)
    expected = {
        scenario.NEITHER: scenario.Fails(
            said=(_lost,), vm_state=scenario.ERROR_SINCE_32),
        scenario.BOTH: scenario.Fails(
            said=(_lost, _kept), text='fails, stays ACTIVE'),
    }

    def run(self, run: scenario.Run) -> None:
        run.configure(source={scenario.BANDWIDTH: LIMIT})
        guest = run.boot()
        run.migrate(guest, during=lambda: self.lose_destination(run, guest))
        destination = scenario.DESTINATION
        run.check_equal('port bound on', guest.bindings(), [scenario.SOURCE])
        run.check('no files left on the destination',
                  not guest.files(destination).exists())
        if guest.vm_state == 'ACTIVE':
            run.migrate(guest, title='the next migration',
                        expected=scenario.Arrives())

    @staticmethod
    def lose_destination(run: scenario.Run, guest: guest.Guest) -> None:
        process.wait_for('memory to be copied', lambda: guest.copied_memory(
            scenario.SOURCE), poll=0.1,
            log=run.cloud.compute[scenario.SOURCE].log)
        guest.kill_qemu(scenario.DESTINATION)
