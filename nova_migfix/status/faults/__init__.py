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
"""Known reasons why live migrations fail, and the log lines that show them.

A fault is recognized by a line that belongs to it: of the command that failed,
of the service that refused, of the host that said it. Words that faults share
(``Connection refused``) are no evidence.

``explain`` takes the first fault of :data:`FAULTS` that matches; a general
fault comes after its kinds. A corpus of logs shows that no other fault
matches: ``nova_migfix/tests/unit/status/corpus``.
"""

from __future__ import annotations

from nova_migfix.status.faults import base
from nova_migfix.status.faults import libvirt
from nova_migfix.status.faults import nova
from nova_migfix.status.faults import prechecks
from nova_migfix.status.faults import qemu

Fault = base.Fault

_ROWS = (*prechecks.FAULTS, *nova.FAULTS, *qemu.FAULTS, *libvirt.FAULTS)
_GENERAL = {name for fault in _ROWS for name in fault.kind_of}

#: all faults, general ones last
FAULTS: tuple[Fault, ...] = tuple(sorted(
    _ROWS, key=lambda fault: fault.name in _GENERAL))

#: fault, by name
BY_NAME = {fault.name: fault for fault in FAULTS}

#: also the fault if Nova logs both a failure and an arrival
SOURCE_DIED = 'source-died'
