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

"""Migrate while one of the hosts has a fixed Nova, as in a rolling upgrade.

The source keeps the queues. A fixed destination must not make anything worse,
and migrations that work with unmodified Nova must work in each mix.
"""

from __future__ import annotations

from lab import scenario
from lab.scenarios import plain
from lab.scenarios import queues_grow

_AS_STOCK = queues_grow.QueuesGrow.expected[scenario.NEITHER]


class Mixed(queues_grow.QueuesGrow):
    name = 'mixed'
    title = 'One host has a fixed Nova; max_queues raised from 2 to 4.'
    expected = {
        scenario.NEITHER: _AS_STOCK,
        scenario.SOURCE_ONLY: queues_grow.QueuesGrow.expected[scenario.BOTH],
        scenario.DESTINATION_ONLY: _AS_STOCK,
    }

    def run(self, run: scenario.Run) -> None:
        run.configure(both={scenario.MAX_QUEUES: self.booted_with})
        guest = run.boot()
        plain.there_and_back(run, guest)
        run.configure(
            source={scenario.MAX_QUEUES: self.configured},
            destination={scenario.MAX_QUEUES: self.booted_with})
        if run.migrate(guest, title='queues differ'):
            run.check_queues(guest, scenario.DESTINATION, self.booted_with)
