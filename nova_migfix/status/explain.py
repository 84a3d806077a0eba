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
"""``explain``: why the last live migration of an instance failed.

Reads the logs of nova-compute, of the guest's QEMU and of libvirt on this
host, and the state of the guest from libvirt. The logs of the source have most
of the information; QEMU's log on the destination says why that QEMU rejected
the guest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import datetime
import json
import os
import pathlib
import re
from typing import NamedTuple

import nova.conf
import prettytable

from nova_migfix import status
from nova_migfix.status import faults
from nova_migfix.status import hypervisor

CONF = nova.conf.CONF

QEMU_LOGS = pathlib.Path('/var/log/libvirt/qemu')

# Present only if libvirt logs to a file; the second path is Kolla's.
LIBVIRT_LOGS = (pathlib.Path('/var/log/libvirt/libvirtd.log'),
                pathlib.Path('/var/log/kolla/libvirt/libvirtd.log'))

# The beginning of a record of oslo.log; lines without it continue the record.
_BEGIN = re.compile(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d')
_REQUEST = re.compile(r'\breq-[0-9a-f-]{36}\b')
_ABOUT = re.compile('live.?migrat', re.IGNORECASE)
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

# A warning or error of libvirt: its time is UTC, and it names no guest.
_LIBVIRT = re.compile(r'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\.\d+\+0000: \d+: '
                      r'(?:error|warning) :')
_TIME = '%Y-%m-%d %H:%M:%S'
# Seconds by which the two logs may differ: libvirt's and nova-compute's.
_UNCERTAINTY = 2

# A traceback repeats the same line.
_MOST_LINES = 5
_LONGEST = 300

COLLECT = (
    'Run this command on the other host, too. If it finds nothing there, '
    'collect from both hosts: the log of nova-compute from begin to end, the '
    'log of the guest\'s QEMU (/var/log/libvirt/qemu), the log of libvirt; '
    'virsh dumpxml of the guest, and both nova.conf.')


class Line(NamedTuple):
    file: str
    number: int
    text: str

    def __str__(self) -> str:
        text = self.text.strip()
        return f'{self.file}:{self.number}: ' + (
            text if len(text) <= _LONGEST else f'{text[:_LONGEST]} ...')


class Record(NamedTuple):
    """The lines that one call of a logger wrote."""

    lines: list[Line]

    @property
    def text(self) -> str:
        return ''.join(line.text for line in self.lines)

    @property
    def request(self) -> str:
        """The ID of the record's request, '' if it has none."""
        found = _REQUEST.search(self.lines[0].text)
        return found[0] if found else ''

    @property
    def time(self) -> str:
        return self.lines[0].text[:23]


class Explanation(NamedTuple):
    """The outcome of a migration; field names are the keys of the JSON."""

    instance: str
    outcome: str        # failed, arrived, or unknown
    request: str
    begin: str          # local time, as in the log
    end: str
    fault: str          # the name in faults.FAULTS, or unknown
    meaning: str
    fix: str
    remedy: str
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


def _lines(path: pathlib.Path) -> Iterator[Line]:
    try:
        with open(path, errors='replace') as log:
            for number, text in enumerate(log, 1):
                yield Line(str(path), number, text)
    except OSError as error:
        raise status.Error(
            f'{path} cannot be read: {error.strerror}. Run this command as a '
            'user with permission to read it.') from error


def _records(lines: Iterable[Line]) -> Iterator[Record]:
    record: list[Line] = []
    for line in lines:
        if record and _BEGIN.match(line.text):
            yield Record(record)
            record = []
        record.append(line)
    if record:
        yield Record(record)


def _attempt(uuid: str) -> list[Record]:
    """Return the records of the last live migration; none if there is none."""
    found: list[Record] = []
    requests: set[str] = set()
    for record in _records(_lines(_nova_log())):
        if any(uuid in line.text for line in record.lines):
            requests.add(record.request)
            found.append(record)
        elif record.request and record.request in requests:
            found.append(record)
    about = [record.request for record in found if record.request
             and _ABOUT.search(record.text)]
    if not about:
        return []
    # records of a traceback have no request ID
    places = [place for place, record in enumerate(found)
              if record.request == about[-1]]
    return [record for record in found[places[0]:places[-1] + 1]
            if record.request in ('', about[-1])]


def _qemu_lines(uuid: str) -> list[Line]:
    """Return the lines of the guest's QEMU log since QEMU started last.

    :raises Error: the log cannot be read
    """
    try:
        paths = sorted(QEMU_LOGS / name for name in os.listdir(QEMU_LOGS)
                       if name.endswith('.log'))
    except OSError as error:
        raise status.Error(
            f'{QEMU_LOGS} cannot be read: {error.strerror}. With Kolla this '
            'directory is in the container nova_libvirt.') from error
    for path in paths:
        lines: list[Line] = []
        for line in _lines(path):
            if 'starting up' in line.text:
                lines = []
            lines.append(line)
        if any(f'-uuid {uuid}' in line.text for line in lines):
            return lines
    return []


def _libvirt_lines(attempt: list[Record]) -> list[Line]:
    """Return libvirt's warnings and errors during a migration, of all guests.

    :raises Error: the log cannot be read
    """
    times = [_BEGIN.match(record.time) for record in attempt]
    if not attempt or not times[0] or not times[-1]:
        return []
    begin, end = (datetime.datetime.strptime(time[0], _TIME).timestamp()
                  for time in (times[0], times[-1]))
    return [
        line for path in LIBVIRT_LOGS if os.path.exists(path)
        for line in _lines(path) if (found := _LIBVIRT.match(line.text))
        and begin - _UNCERTAINTY <= datetime.datetime.strptime(
            f'{found[1]}+0000', f'{_TIME}%z').timestamp()
        <= end + _UNCERTAINTY]


# -- verdict -----------------------------------------------------------------

def _match(lines: Iterable[Line]) -> tuple[faults.Fault | None, list[Line]]:
    """Return the first fault of the table that matches, and its lines."""
    texts = list(lines)
    for fault in faults.FAULTS:
        if matched := [line for line in texts
                       if re.search(fault.pattern, line.text)]:
            return fault, matched[:_MOST_LINES]
    return None, []


def _fault(attempt: list[Record], qemu: list[Line], libvirt: list[Line]
           ) -> tuple[faults.Fault | None, list[Line]]:
    """Return the fault of a failed migration, and the lines that show it."""
    fault: faults.Fault | None
    nova = [line for record in attempt for line in record.lines]
    if _has(attempt, _ARRIVED) and (evidence := [
            line for line in nova if _DIED in line.text]):
        fault = next(fault for fault in faults.FAULTS
                     if fault.name == faults.SOURCE_DIED)
        evidence += [line for line in qemu
                     if re.search(fault.pattern, line.text)]
        return fault, evidence[:_MOST_LINES]
    fault, evidence = _match(nova + qemu)
    # last, as libvirt's lines may be about another guest
    return (fault, evidence) if fault else _match(libvirt)


def _has(attempt: list[Record], pattern: re.Pattern[str]) -> bool:
    return any(pattern.search(record.text) for record in attempt)


def explain(uuid: str) -> Explanation:
    """Return what the logs and libvirt say about the last live migration.

    :raises Error: the log of nova-compute cannot be read
    """
    attempt = _attempt(uuid)
    notes: list[str] = []
    # on the destination only QEMU's log may have the reason
    qemu: list[Line] = []
    libvirt: list[Line] = []
    state = ''
    with _noted(notes):
        qemu = _qemu_lines(uuid)
    with _noted(notes):
        libvirt = _libvirt_lines(attempt)
    with _noted(notes):
        state = hypervisor.state(uuid)
    begin, end, request = (
        (attempt[0].time, attempt[-1].time, attempt[0].request)
        if attempt else ('', '', ''))
    if _has(attempt, _ARRIVED) and not _has(attempt, _NOT_ARRIVED):
        return Explanation(uuid, 'arrived', request, begin, end,
                           '', '', '', '', '', state, [], notes)
    fault, evidence = _fault(attempt, qemu, libvirt)
    failed = fault or _has(attempt, _FAILED)
    return Explanation(
        uuid, 'failed' if failed else 'unknown', request, begin, end,
        *((fault.name, fault.meaning, fault.fix, fault.remedy, fault.page)
          if fault else ('unknown', '', '', COLLECT, '')),
        state, [str(line) for line in evidence or _errors(attempt)], notes)


@contextlib.contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Turn an error into a note."""
    try:
        yield
    except status.Error as error:
        notes.append(str(error))


def _errors(attempt: list[Record]) -> list[Line]:
    """Return the last errors, as evidence for an unknown fault."""
    return [record.lines[0] for record in attempt
            if ' ERROR ' in record.lines[0].text][-_MOST_LINES:]


def run(args: argparse.Namespace) -> int:
    """Print the explanation.

    :returns: 0: the migration succeeded; 1: the fault is unknown; 2: the
        migration failed with a known fault
    """
    found = explain(args.uuid)
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
