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

"""Migrate a guest there and back without any change in between."""

from __future__ import annotations

from lab import guest
from lab import scenario

# Echo requests, five a second. The guest is emulated on a machine that may
# be busy, and the network agent polls every two seconds.
TOLERATED_LOSS = 25


class Plain(scenario.Scenario):
    name = 'plain'
    title = 'A migration there and back; lost pings are counted.'
    expected = {scenario.NEITHER: scenario.Arrives(),
                scenario.BOTH: scenario.Arrives()}

    def run(self, run: scenario.Run) -> None:
        run.configure()
        guest = run.boot()
        there_and_back(run, guest)


def there_and_back(run: scenario.Run, guest: guest.Guest) -> None:
    """Migrate a guest to the other host and back, which must always work."""
    for destination in (scenario.DESTINATION, scenario.SOURCE):
        run.migrate(guest, destination, expected=scenario.Arrives())
        pings = run.result.steps[-1].pings
        assert pings
        run.check(f'at most {TOLERATED_LOSS} pings lost',
                  0 < pings.sent and pings.lost <= TOLERATED_LOSS,
                  f'{pings.lost} of {pings.sent}')
