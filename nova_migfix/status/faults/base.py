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
"""A row of the tables of faults."""

from __future__ import annotations

from typing import NamedTuple

# Who says the pattern. Its words then reach these logs: libvirt quotes QEMU,
# and Nova quotes both.
NOVA, LIBVIRT, QEMU = 'nova', 'libvirt', 'qemu'
LOGS = {
    NOVA: (NOVA,),
    LIBVIRT: (NOVA, LIBVIRT),
    QEMU: (NOVA, QEMU, LIBVIRT),
}

#: phase: the guest meanwhile
PHASES = {
    'precheck': 'runs on the source; nothing was created',
    'preparation': 'runs on the source; the destination creates its files, '
                   'volumes and ports',
    'start': 'runs on the source; the destination starts its QEMU',
    'copy': 'runs on the source; disks and memory are copied',
    'switch-over': 'is paused on the source; the destination loads the state '
                   'of its devices',
    'arrival': 'runs on the destination, or its place has to be checked',
    'any': 'runs on the source, unless the fault says otherwise',
}

#: phases before Nova calls libvirt
BEFORE_LIBVIRT = ('precheck', 'preparation')

ON_SOURCE = 'Install the plugin on this host and run "upgrade check"; or '
ON_DESTINATION = 'Install the plugin on the destination; or '


class Fault(NamedTuple):
    """A known reason.

    :ivar patterns: regular expressions; each is found in a line of the logs
    :ivar said_by: a key of :data:`LOGS`
    :ivar phase: a key of :data:`PHASES`
    :ivar meaning: the cause; ``{thing}`` is the group of that name
    :ivar releases: those that have the fault
    :ivar page: of the documentation, without suffix
    :ivar fix: name of the fix that prevents the fault, '' for none
    :ivar kind_of: names of general faults whose patterns may match, too
    """

    name: str
    patterns: tuple[str, ...]
    said_by: str
    phase: str
    meaning: str
    remedy: str
    releases: str
    page: str
    fix: str = ''
    kind_of: tuple[str, ...] = ()


ALL = 'all'
_UUID = r'[0-9a-f]{8}-[0-9a-f-]{27}'
#: of an instance that a message of the plugin names
INSTANCE = rf'[Ii]nstance {_UUID}'
