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

"""Decide which fault the logs of a failed migration show."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import NamedTuple

from nova_migfix.status import attempt
from nova_migfix.status import faults
from nova_migfix.status.faults import base
from nova_migfix.status import logs
from nova_migfix.status import terminal

_CRASHED = 'shutting down, reason=crashed'

# A traceback repeats the same line.
MOST_LINES = 5
_LONGEST_THING = 200

_BOTH = (
    'Nova logs an arrival, too: find the guest with "virsh list --all" on '
    'both hosts before any other step.')
_FROM_LIBVIRT = (
    'The evidence is from the log of libvirt, which does not name guests: it '
    'may be about another guest at that time.')


class Match(NamedTuple):
    """A fault, and the lines that show it."""

    fault: faults.Fault
    evidence: list[logs.Line]
    thing: str = ''     # the group of this name in a pattern

    @property
    def meaning(self) -> str:
        return self.fault.meaning.replace('{thing}', self.thing)


def matches(lines: Mapping[str, Sequence[logs.Line]]) -> Iterator[Match]:
    """Yield the faults that logs show, in the order of the table.

    :param lines: the lines that may have a reason, by log: a value of
        faults.base.LOGS
    """
    failed_later = any(
        attempt.DIED in line.text for line in lines.get(base.NOVA, ()))
    for fault in faults.FAULTS:
        if failed_later and fault.phase in base.BEFORE_LIBVIRT:
            continue
        read = [line for log in base.LOGS[fault.said_by]
                for line in lines.get(log, ())]
        if match := _match(fault, read):
            yield match


def _match(fault: faults.Fault, lines: list[logs.Line]) -> Match | None:
    evidence: dict[logs.Line, None] = {}
    thing = ''
    for pattern in fault.patterns:
        found = [(line, match) for line in lines
                 if (match := re.search(pattern, line.text))]
        if not found:
            return None
        thing = thing or found[0][1].groupdict().get('thing') or ''
        evidence.update(dict.fromkeys(line for line, _ in found))
    return Match(fault, [*evidence][:MOST_LINES],
                 terminal.printable(thing)[:_LONGEST_THING])


def decide(found: attempt.Attempt, qemu: Sequence[logs.Line],
           libvirt: Sequence[logs.Line], notes: list[str]) -> Match | None:
    """Return the fault of a failed migration, None if it is unknown.

    :param found: the migration in the log of Nova
    :param qemu, libvirt: the lines of their logs about the migration
    :param notes: receives doubts about the fault
    """
    nova = found.deciding
    match = shown(nova, qemu, libvirt, notes)
    died = [line for line in nova if attempt.DIED in line.text]
    if not (found.has_arrived and died):
        return match
    if match and match.fault.phase == 'any':
        notes.append(_BOTH)
        return match
    return Match(faults.BY_NAME[faults.SOURCE_DIED], [
        *died, *(line for line in qemu if _CRASHED in line.text)][:MOST_LINES])


def shown(nova: Sequence[logs.Line], qemu: Sequence[logs.Line],
          libvirt: Sequence[logs.Line], notes: list[str]) -> Match | None:
    """Return the fault that the lines of logs show, None if it is unknown.

    libvirt's log names no guest. It decides if the other logs show no fault,
    or only a general one of which it has the kind.

    :param notes: receives doubts about the fault
    """
    near = list(matches({base.NOVA: nova, base.QEMU: qemu}))
    every = list(matches(
        {base.NOVA: nova, base.QEMU: qemu, base.LIBVIRT: libvirt}))
    if not every:
        return None
    found = near[0] if near else every[0]
    found = next((match for match in every
                  if found.fault.name in match.fault.kind_of), found)
    if any(line in libvirt for line in found.evidence):
        notes.append(_FROM_LIBVIRT)
    others = [match.fault.name for match in near
              if match.fault.name not in (found.fault.name,
                                          *found.fault.kind_of)]
    if others:
        notes.append('The logs also have lines of: ' + ', '.join(others) + '.')
    return found
