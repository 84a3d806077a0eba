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

"""The guest dies or is switched off before its migration ends.

libvirt has no job of such a guest. Unmodified Nova then takes the migration
for completed and deletes the guest's disks on the source.
"""

from __future__ import annotations

import dataclasses

from lab import faults
from lab import scenario
from lab.scenarios import faulted

# The destination has no domain, so its part of Nova fails. Only that host has
# files.
LOST = scenario.Leaves(
    text='disks deleted, domain on no host',
    harm=('disks', 'domain', 'exists'), holds=('copies',),
    vm_state=('ERROR',), host=scenario.DESTINATION)
# The guest is idle, so the destination already has all bytes of its disk when
# memory is copied.
_ALMOST_LOST = dataclasses.replace(
    LOST, text='domain on no host, disks of the source deleted',
    harm=('domain', 'exists'))
KEPT = scenario.Leaves(
    text='SHUTOFF with its disks', vm_state=('SHUTOFF',),
    host=scenario.SOURCE, record=('failed', 'cancelled'),
    reason='the guest stopped before it had arrived')


def _accident(fault: faults.Fault, moment: faults.Moment,
              until: faults.Moment = faults.OFF) -> faults.Accident:
    return faults.Accident(fault, moment, until)


SCENARIOS = (
    faulted.Accidental(
        'lost-killed', 'QEMU on the source is killed while memory is copied.',
        _accident(faults.KILLED, faults.MEMORY), _ALMOST_LOST,
        KEPT),
    faulted.Accidental(
        'lost-killed-disk',
        'QEMU on the source is killed while the disk is copied.',
        _accident(faults.KILLED, faults.DISK), LOST, KEPT),
    faulted.Accidental(
        'lost-off', 'The guest switches itself off while memory is copied.',
        _accident(faults.OFF_INSIDE, faults.MEMORY), _ALMOST_LOST,
        KEPT),
    faulted.Accidental(
        'lost-destroyed', 'virsh destroys the guest while memory is copied.',
        _accident(faults.DESTROYED, faults.MEMORY), _ALMOST_LOST,
        KEPT),
    faulted.Accidental(
        'lost-queued',
        'The guest switches itself off while its migration is queued.',
        _accident(faults.OFF_INSIDE, faults.QUEUED, faults.OFF_IN_QUEUE),
        LOST, KEPT, queued=True),
)
