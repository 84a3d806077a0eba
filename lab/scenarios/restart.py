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

"""nova-compute is killed during a live migration, and started again.

libvirt goes on with the migration meanwhile. Unmodified Nova resets the task
of the instance when it starts, and forgets the migration.
"""

from __future__ import annotations

import signal

from lab import faults
from lab import scenario
from lab.scenarios import faulted

_SOURCE_DIES = faults.compute_killed(scenario.SOURCE)
_SOURCE_STOPS = faults.compute_killed(scenario.SOURCE, signal.SIGTERM)
_DESTINATION_DIES = faults.compute_killed(scenario.DESTINATION)

# MiB/s: the copy takes longer than the start of nova-compute.
_SLOW = 1

_FORGOTTEN = scenario.Leaves(
    text='Nova says source, guest is on the destination',
    harm=('domain', 'twin', 'copies'), host=scenario.SOURCE)
# Nova 29 takes the failed call for a success, and forgets its own host.
_UNFINISHED = {
    0: scenario.Leaves(
        text='MIGRATING, Nova says source, guest is on the destination',
        harm=('domain', 'twin', 'task'), vm_state=('MIGRATING',),
        host=scenario.SOURCE),
    30: scenario.Leaves(
        text='ERROR, guest is on the destination', harm=('allocation',),
        holds=('domain', 'twin'), vm_state=('ERROR',),
        host=scenario.DESTINATION),
}
_HERE = scenario.Leaves(
    text='guest goes on on the source', host=scenario.SOURCE,
    record=('failed', 'cancelled', 'error'))
_THERE = scenario.Leaves(
    text='arrives', host=scenario.DESTINATION, record=('completed',))


def _while_image_waits(inner: faults.Accident) -> faults.Accident:
    """Return an accident while the destination waits for an image."""
    return faults.Accident(faults.frozen('glance'), faults.NOW, inner=inner)


SCENARIOS = (
    faulted.Accidental(
        'restart-source-arrived',
        'nova-compute of the source is down when the guest arrives.',
        faults.Accident(_SOURCE_DIES, faults.MEMORY, faults.ARRIVED),
        _FORGOTTEN, _THERE),
    faulted.Accidental(
        'restart-source-copy',
        'nova-compute of the source restarts while memory is copied.',
        faults.Accident(faults.slowed(_SLOW), faults.MEMORY,
                        inner=faults.Accident(_SOURCE_DIES, faults.MEMORY)),
        scenario.Leaves(
            text='files, tap device, binding and allocation left on the '
                 'destination',
            harm=('copies', 'tap', 'binding', 'allocation'),
            host=scenario.SOURCE),
        _HERE),
    faulted.Accidental(
        'restart-source-term',
        'nova-compute of the source is stopped while memory is copied.',
        faults.Accident(faults.slowed(_SLOW), faults.MEMORY,
                        inner=faults.Accident(_SOURCE_STOPS, faults.MEMORY)),
        faulted.RECORDED, _HERE),
    faulted.Accidental(
        'restart-source-queued',
        'nova-compute of the source restarts while a migration is queued.',
        faults.Accident(_SOURCE_DIES, faults.QUEUED, faults.elapsed(30)),
        scenario.Leaves(
            text='record queued for ever, binding and allocation left',
            harm=('record', 'binding', 'allocation'), host=scenario.SOURCE,
            record=('queued',)),
        _HERE, queued=True),
    faulted.Accidental(
        'restart-source-preparing',
        'nova-compute of the source restarts while the destination prepares.',
        _while_image_waits(faults.Accident(
            _SOURCE_DIES, faults.PREPARING, faults.elapsed(30))),
        scenario.Leaves(
            text='record preparing for ever, files left on the destination',
            harm=('record', 'copies', 'binding', 'allocation'),
            host=scenario.SOURCE, record=('preparing',)),
        _HERE, fresh=True),
    faulted.Accidental(
        'restart-source-switch-over',
        'nova-compute of the source is killed after the guest has arrived.',
        faults.Accident(_SOURCE_DIES, faults.SWITCH_OVER),
        _FORGOTTEN, _THERE),
    faulted.Accidental(
        'restart-destination-preparing',
        'nova-compute of the destination is killed while it prepares.',
        _while_image_waits(faults.Accident(
            _DESTINATION_DIES, faults.PREPARING, faults.elapsed(30))),
        faulted.RECORDED, _HERE, fresh=True),
    faulted.Accidental(
        'restart-destination-finishing',
        'nova-compute of the destination is killed after the arrival.',
        faults.Accident(_DESTINATION_DIES, faults.FINISHING,
                        faults.elapsed(30)),
        _UNFINISHED, _THERE),
)
