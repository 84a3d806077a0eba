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

"""A service that Nova needs is down or restarts during a live migration."""

from __future__ import annotations

from lab import faults
from lab import scenario
from lab.scenarios import faulted

# Seconds, longer than nova-compute waits for answers of the conductor.
_LONG = 3 * faulted.RPC_TIMEOUT
# Seconds, shorter than that.
_SHORT = 10

_THERE = scenario.Leaves(
    text='arrives', host=scenario.DESTINATION, record=('completed',))
_EITHER = scenario.Leaves(text='guest and disks on one host')
_CONDUCTOR = faults.frozen('nova-conductor')

SCENARIOS = (
    faulted.Accidental(
        'outage-conductor',
        'The conductor stands still while memory is copied.',
        faults.Accident(_CONDUCTOR, faults.MEMORY, faults.elapsed(_LONG)),
        # The moment decides whether a call of the monitor times out.
        faulted.RECORDED, _THERE),
    faulted.Accidental(
        'outage-conductor-switch-over',
        'The conductor stands still after the guest has arrived.',
        faults.Accident(_CONDUCTOR, faults.SWITCH_OVER,
                        faults.elapsed(_LONG)),
        faulted.RECORDED, _THERE),
    *(faulted.Accidental(
        f'outage-{name}{suffix}', f'{title} restarts {text}.',
        faults.Accident(fault, moment, until), faulted.RECORDED, outcome)
      for name, title, fault, until in (
          ('rabbitmq', 'RabbitMQ', faults.down('rabbitmq'),
           faults.elapsed(_SHORT)),
          ('mariadb', 'MariaDB', faults.down('mariadb'),
           faults.elapsed(_SHORT)),
          ('libvirtd-source', 'libvirtd of the source',
           faults.libvirtd_restarted(scenario.SOURCE), faults.NOW),
          ('libvirtd-destination', 'libvirtd of the destination',
           faults.libvirtd_restarted(scenario.DESTINATION), faults.NOW))
      for suffix, text, moment, outcome in (
          ('', 'while memory is copied', faults.MEMORY, _EITHER),
          ('-switch-over', 'after the guest has arrived', faults.SWITCH_OVER,
           _THERE))),
)
