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
"""``explain``: why a live migration of an instance failed.

Reads the logs of nova-compute, of the guest's QEMU and of libvirt on this
host, and the state of the guest from libvirt. The logs of the source have most
of the information; QEMU's log on the destination says why that QEMU rejected
the guest. "unknown" is a correct answer, a wrong fault is not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import os
import pathlib
import re
from typing import NamedTuple
import uuid as uuids

import nova.conf
import prettytable

from nova_migfix import status
from nova_migfix.status import faults
from nova_migfix.status.faults import base
from nova_migfix.status import hypervisor
from nova_migfix.status import logs

CONF = nova.conf.CONF

QEMU_LOGS = pathlib.Path('/var/log/libvirt/qemu')

# Present only if libvirt logs to a file; the second path is Kolla's.
LIBVIRT_LOGS = (pathlib.Path('/var/log/libvirt/libvirtd.log'),
                pathlib.Path('/var/log/kolla/libvirt/libvirtd.log'))

# on the source, and on the destination
_ARRIVED = re.compile(r'Migration operation has completed'
                      r'|_post_live_migration\(\) is started'
                      r'|Post operation of migration started')
_FAILED = re.compile(r' ERROR |[Ll]ive [Mm]igration (?:failure|refused)')
# Nova may treat a migration as complete after the domain disappeared. Then the
# source logs the first message. The second one is the destination's, and may
# have another cause.
_DIED = 'Live Migration failure'
_NOT_ARRIVED = re.compile(
    f'{_DIED}|Unexpected error during post live migration at destination')
_CRASHED = 'shutting down, reason=crashed'

# A traceback repeats the same line.
_MOST_LINES = 5
_LONGEST_THING = 200

COLLECT = (
    'Run this command on the other host, too. If it finds nothing there, '
    'collect from both hosts: the log of nova-compute from begin to end, the '
    'log of the guest\'s QEMU (/var/log/libvirt/qemu), the log of libvirt; '
    'virsh dumpxml of the guest, and both nova.conf.')

UNREACHABLE = (
    'If the guest does not answer although it runs: no log has that fault. '
    'See whether the switches learned its new place (RARP lost), the VLAN tag '
    'and the MTU of its tap device on the destination, and the binding of its '
    'port in Neutron.')
_UNREACHABLE_PAGE = 'faults/state'

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


class Explanation(NamedTuple):
    """The outcome of a migration; field names are the keys of the JSON."""

    instance: str
    outcome: str        # failed, arrived, or unknown
    request: str
    begin: str          # local time, as in the log
    end: str
    fault: str          # the name in faults.FAULTS, or unknown
    phase: str          # a key of faults.base.PHASES
    meaning: str
    fix: str
    remedy: str
    releases: str
    page: str
    domain_state: str   # in libvirt on this host; absent; '' if not known
    evidence: list[str]
    notes: list[str]    # which logs or services could not be read, and why


# -- logs --------------------------------------------------------------------

def _nova_log() -> pathlib.Path:
    """Return the path of nova-compute's log.

    :raises Error: nova-compute does not log to a file
    """
    name = CONF.log_file or (CONF.log_dir and 'nova-compute.log')
    if not name:
        raise status.Error(
            'nova-compute does not log to a file: neither log_file nor '
            'log_dir is set. Write its journal to a file, and name that file '
            'with --log-file.')
    return pathlib.Path(os.path.join(CONF.log_dir or '', name))


def _qemu_lines(path: str, uuid: str, found: logs.Attempt) -> list[logs.Line]:
    if path:
        return logs.qemu_file(path, uuid, found)
    return logs.qemu(QEMU_LOGS, uuid, found)


def _libvirt_lines(path: str, found: logs.Attempt) -> list[logs.Line]:
    return logs.libvirt(
        [path] if path else filter(os.path.exists, LIBVIRT_LOGS), found)


# -- verdict -----------------------------------------------------------------

def matches(lines: Mapping[str, Sequence[logs.Line]]) -> Iterator[Match]:
    """Yield the faults that logs show, in the order of the table.

    :param lines: the lines that may have a reason, by log: a value of
        faults.base.LOGS
    """
    failed_later = any(_DIED in line.text for line in lines.get(base.NOVA, ()))
    for fault in faults.FAULTS:
        if failed_later and fault.phase in base.BEFORE_LIBVIRT:
            continue
        read = [line for log in base.LOGS[fault.said_by]
                for line in lines.get(log, ())]
        if match := _match(fault, read):
            yield match


def _match(fault: faults.Fault, lines: list[logs.Line]) -> Match | None:
    evidence: list[logs.Line] = []
    thing = ''
    for pattern in fault.patterns:
        found = [(line, match) for line in lines
                 if (match := re.search(pattern, line.text))]
        if not found:
            return None
        thing = thing or found[0][1].groupdict().get('thing') or ''
        evidence += [line for line, _ in found if line not in evidence]
    return Match(fault, evidence[:_MOST_LINES],
                 logs.printable(thing)[:_LONGEST_THING])


def verdict(nova: Sequence[logs.Line], qemu: Sequence[logs.Line],
            libvirt: Sequence[logs.Line], notes: list[str]) -> Match | None:
    """Return the fault of a failed migration, None if it is unknown.

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


def _died(nova: Sequence[logs.Line], qemu: Sequence[logs.Line],
          found: Match | None, notes: list[str]) -> Match:
    """Return the fault if Nova logs both a failure and an arrival.

    :param found: the fault that the failure shows
    """
    if found and found.fault.phase == 'any':
        notes.append(_BOTH)
        return found
    return Match(faults.BY_NAME[faults.SOURCE_DIED], [
        *(line for line in nova if _DIED in line.text),
        *(line for line in qemu if _CRASHED in line.text)][:_MOST_LINES])


def _has(found: logs.Attempt, pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(record.text) for record in found.records)


def explain(uuid: str, request_id: str = '', qemu_log: str = '',
            libvirt_log: str = '') -> Explanation:
    """Return the reason that the logs and libvirt have for a live migration.

    :param uuid: of the instance
    :param request_id: of the migration's request; '': of the last migration
    :param qemu_log: log of the guest's QEMU, ``-`` for standard input; '':
        that in the directory of libvirt
    :param libvirt_log: log or journal of libvirt, in the same way
    :raises Error: the log of nova-compute cannot be read
    """
    found = logs.attempt(_nova_log(), uuid, request_id)
    notes: list[str] = []
    # on the destination only QEMU's log may have the reason
    qemu: list[logs.Line] = []
    libvirt: list[logs.Line] = []
    state = ''
    with _noted(notes):
        qemu = _qemu_lines(qemu_log, uuid, found)
    with _noted(notes):
        libvirt = _libvirt_lines(libvirt_log, found)
    with _noted(notes):
        state = hypervisor.state(uuid)
    records = found.records
    begin, end, request = (
        (records[0].time, records[-1].time, records[0].request)
        if records else ('', '', ''))
    arrived = _has(found, _ARRIVED)
    if request_id and not records:
        notes.append(f'The log has no record of {request_id}.')
    if arrived and not _has(found, _NOT_ARRIVED):
        return Explanation(
            uuid, 'arrived', request, begin, end, '', '', '', '', UNREACHABLE,
            '', _UNREACHABLE_PAGE, state, [], notes)
    deciding = found.deciding
    match = verdict(deciding, qemu, libvirt, notes)
    if arrived and any(_DIED in line.text for line in deciding):
        match = _died(deciding, qemu, match, notes)
    evidence = match.evidence if match else _errors(found)
    return Explanation(
        uuid, 'failed' if match or _has(found, _FAILED) else 'unknown',
        request, begin, end, *_described(match), state,
        [str(line) for line in evidence], notes)


def _described(match: Match | None
               ) -> tuple[str, str, str, str, str, str, str]:
    """Return the fields of an Explanation from fault to page."""
    if not match:
        return 'unknown', '', '', '', COLLECT, '', ''
    fault = match.fault
    return (fault.name, fault.phase, match.meaning, fault.fix, fault.remedy,
            fault.releases, fault.page)


@contextlib.contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Turn an error into a note."""
    try:
        yield
    except status.Error as error:
        notes.append(str(error))


def _errors(found: logs.Attempt) -> list[logs.Line]:
    """Return the last errors, as evidence for an unknown fault."""
    return [record.lines[0] for record in found.records
            if ' ERROR ' in record.lines[0].text][-_MOST_LINES:]


def _checked(args: argparse.Namespace) -> tuple[str, str, str, str]:
    """Return the arguments of :func:`explain`.

    :raises Error: one of them is malformed
    """
    try:
        uuid = str(uuids.UUID(args.uuid))
    except ValueError as error:
        raise status.Error(
            f'{logs.printable(args.uuid)!r} is not the UUID of an instance.'
        ) from error
    if args.request and not re.fullmatch('req-[0-9a-f-]{36}', args.request):
        raise status.Error(
            'The ID of a request begins with "req-" and ends with a UUID: see '
            '"openstack server event list".')
    if args.qemu_log == args.libvirt_log == logs.STDIN:
        raise status.Error('Only one log can be on standard input.')
    return uuid, args.request, args.qemu_log, args.libvirt_log


def run(args: argparse.Namespace) -> int:
    """Print the explanation.

    :returns: 0: the migration succeeded; 1: the fault is unknown; 2: the
        migration failed with a known fault
    :raises Error: an argument is malformed, or nova-compute's log unreadable
    """
    found = explain(*_checked(args))
    if args.json:
        print(json.dumps(found._asdict(), indent=2))
    else:
        table = prettytable.PrettyTable(['Field', 'Value'])
        table.align = 'l'
        table.max_width['Value'] = 100
        for name, value in found._asdict().items():
            table.add_row([name, '\n'.join(value) if isinstance(value, list)
                           else value])
        print(table)
    if found.outcome == 'arrived':
        return 0
    return 1 if found.fault == 'unknown' else 2
