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
"""Read the logs of one live migration: nova-compute's, QEMU's and libvirt's.

Logs contain texts of guests and of other hosts, and may be large: lines are
cut, and only the lines of the migration are kept.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import datetime
import itertools
import os
import pathlib
import re
import sys
from typing import IO
from typing import NamedTuple

from nova_migfix import status

#: means standard input
STDIN = '-'

#: characters of a line that are read, and that are shown
_READ = 4096
_SHOWN = 500
# Lines of a QEMU log that are kept; a migration writes fewer.
_KEPT = 5000

# The beginning of a record of oslo.log: time, and process, level and logger
_TIME = r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d'
_BEGIN = re.compile(_TIME)
_HEADER = re.compile(rf'{_TIME}\S* (\d+ [A-Z]+ \S+)(?: |$)')
# The context of a record. The lines of a traceback repeat its header only.
_CONTEXT = re.compile(r'\[(?!instance: )')
_REQUEST = re.compile(r'\breq-[0-9a-f-]{36}\b')
_ABOUT = re.compile('[Ll]ive.?[Mm]igrat')
# Records that may have the reason. Other levels quote guests' and users' data.
_DECIDING = re.compile(
    rf'{_TIME}\S* \d+ (?:(?:WARNING|ERROR|CRITICAL) |INFO nova_migfix\.)')
# The conductor says at DEBUG why it skips a host; a reason if none is left.
_SKIPS = re.compile(
    rf'{_TIME}\S* \d+ DEBUG nova\.conductor\.tasks\.live_migrate ')
_NO_HOST = 'No valid host was found'

_QEMU_STARTS = re.compile(r'\d{4}-\d\d-\d\d \S+ starting up')
_QEMU_TIME = re.compile(r'(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)')
# A warning or error of libvirt in its own log, or any message in the journal
# (journalctl --output short-iso): both name no guest.
_LIBVIRT = re.compile(
    r'(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)[.,\d]*([+-]\d\d:?\d\d)'
    r'(?:: \d+: (?:error|warning) :| \S+ (?:libvirtd|virt\w+d)\[\d+\]: )')
# Seconds by which the clocks of two logs may differ.
_UNCERTAINTY = 2


def printable(text: str) -> str:
    """Return a text without line breaks and terminal control characters."""
    return ''.join(char if char.isprintable() else ' ' for char in text)


class Line(NamedTuple):
    file: str
    number: int
    text: str

    def __str__(self) -> str:
        text = printable(self.text.strip())
        return f'{self.file}:{self.number}: ' + (
            text if len(text) <= _SHOWN else f'{text[:_SHOWN]} ...')


class Record(NamedTuple):
    """The lines that one call of a logger wrote, with its traceback."""

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

    @property
    def decides(self) -> bool:
        """Whether the record may have the reason of a failure."""
        return bool(_DECIDING.match(self.lines[0].text))

    @property
    def skips(self) -> bool:
        """Whether the conductor skips a host."""
        return bool(_SKIPS.match(self.lines[0].text))


class Attempt(NamedTuple):
    """A live migration in nova-compute's log.

    :ivar begin, end: seconds since the epoch; None without records
    :ivar until: the begin of the guest's next migration, None for the last
    """

    records: list[Record]
    begin: float | None = None
    end: float | None = None
    until: float | None = None

    @property
    def deciding(self) -> list[Line]:
        """The lines that may have the reason of a failure."""
        no_host = any(_NO_HOST in record.text for record in self.records)
        return [line for record in self.records
                if record.decides or (no_host and record.skips)
                for line in record.lines]


def lines(path: str | pathlib.Path) -> Iterator[Line]:
    """Yield the lines of a file, or of standard input for ``-``.

    :raises Error: the file cannot be read
    """
    try:
        with _open(path) as log:
            for number in itertools.count(1):
                text = log.readline(_READ)
                if not text:
                    return
                yield Line(str(path), number, text)
                while text and not text.endswith('\n'):
                    text = log.readline(_READ)
    except OSError as error:
        raise status.Error(
            f'{path} cannot be read: {error.strerror}. Run this command as a '
            'user with permission to read it.') from error


def _open(path: str | pathlib.Path
          ) -> contextlib.AbstractContextManager[IO[str]]:
    if str(path) == STDIN:
        return contextlib.nullcontext(sys.stdin)
    return open(path, errors='replace')


def _records(log: Iterable[Line]) -> Iterator[Record]:
    record: list[Line] = []
    for line in log:
        if record and _BEGIN.match(line.text) and not _continues(
                record[0], line):
            yield Record(record)
            record = []
        record.append(line)
    if record:
        yield Record(record)


def _continues(first: Line, line: Line) -> bool:
    """Return whether a line belongs to the traceback of a record."""
    header, found = _HEADER.match(first.text), _HEADER.match(line.text)
    return bool(header and found and header[1] == found[1]
                and not _CONTEXT.match(line.text, found.end()))


# -- nova-compute ------------------------------------------------------------

def attempt(path: pathlib.Path, uuid: str, request: str = '') -> Attempt:
    """Return a live migration of a guest, without records if there is none.

    :param path: log of nova-compute, or of nova-conductor
    :param uuid: of the guest
    :param request: ID of the migration's request; '': of the last migration
    :raises Error: the log cannot be read, or the request is another guest's
    """
    begins = _begins(path, uuid)
    request = request or next(reversed(begins), '')
    if not request:
        return Attempt([])
    records = [record for record in _records(lines(path))
               if request in record.lines[0].text
               and record.request == request]
    if records and request not in begins and any(
            '[instance: ' in record.text for record in records) and not any(
                uuid in record.text for record in records):
        raise status.Error(
            f'{request} is not a request of instance {uuid}.')
    later = list(begins)[list(begins).index(request) + 1:] if (
        request in begins) else []
    return Attempt(records, *(
        _local(time) for time in (
            records[0].time if records else '',
            records[-1].time if records else '',
            begins[later[0]] if later else '')))


def _begins(path: pathlib.Path, uuid: str) -> dict[str, str]:
    """Return the begins of a guest's live migrations, by their requests."""
    of_guest: set[str] = set()
    begins: dict[str, str] = {}
    for record in _records(lines(path)):
        text = record.text
        mine, about = uuid in text, _ABOUT.search(text)
        request = record.request if mine or about else ''
        if request and mine:
            of_guest.add(request)
        if request and about:
            begins[request] = begins.pop(request, record.time)
    return {request: begin for request, begin in begins.items()
            if request in of_guest}


def _local(time: str) -> float | None:
    found = _BEGIN.match(time)
    return datetime.datetime.strptime(
        found[0], '%Y-%m-%d %H:%M:%S').timestamp() if found else None


# -- QEMU --------------------------------------------------------------------

def qemu(directory: pathlib.Path, uuid: str, found: Attempt) -> list[Line]:
    """Return the lines of a guest's QEMU log about a migration.

    :param directory: of the logs of all guests
    :raises Error: a log cannot be read
    """
    try:
        paths = sorted(directory / name for name in os.listdir(directory)
                       if name.endswith('.log'))
    except OSError as error:
        raise status.Error(
            f'{directory} cannot be read: {error.strerror}. With Kolla this '
            'directory is in the container nova_libvirt: see --qemu-log.'
        ) from error
    for path in paths:
        uuids, kept = _since_start(path)
        if uuid in uuids:
            return _during(kept, found)
    return []


def qemu_file(path: str, uuid: str, found: Attempt) -> list[Line]:
    """Return the lines of one QEMU log about a migration.

    :param path: of the log, ``-`` for standard input
    :raises Error: the log cannot be read, or it is another guest's
    """
    uuids, kept = _since_start(path)
    if uuids and uuid not in uuids:
        raise status.Error(f'{path} is the QEMU log of another guest.')
    return _during(kept, found)


def _since_start(path: str | pathlib.Path) -> tuple[set[str], list[Line]]:
    """Return the UUIDs and the lines of the QEMU that started last."""
    uuids: set[str] = set()
    kept: collections.deque[Line] = collections.deque(maxlen=_KEPT)
    for line in lines(path):
        if _QEMU_STARTS.match(line.text):
            uuids.clear()
            kept.clear()
        if '-uuid ' in line.text:
            uuids.update(re.findall(r'-uuid ([0-9a-f-]{36})', line.text))
        kept.append(line)
    return uuids, list(kept)


def _during(kept: list[Line], found: Attempt) -> list[Line]:
    """Return the lines since the begin of a migration, before the next one.

    QEMU on the source runs since long ago: its log has earlier failures, too.
    A line without time belongs to the line before it.
    """
    during = []
    time: float | None = None
    for line in kept:
        if stamp := _QEMU_TIME.match(line.text):
            time = _utc(stamp[1], stamp[2], '+0000')
        if time is None or (
                (found.begin is None or time >= found.begin - _UNCERTAINTY)
                and (found.until is None or time < found.until)):
            during.append(line)
    return during


# -- libvirt -----------------------------------------------------------------

def libvirt(paths: Iterable[str | pathlib.Path], found: Attempt
            ) -> list[Line]:
    """Return libvirt's lines during a migration, of all guests.

    :param paths: of logs, ``-`` for standard input
    :raises Error: a log cannot be read
    """
    if found.begin is None or found.end is None:
        return []
    return [
        line for path in paths for line in lines(path)
        if (stamp := _LIBVIRT.match(line.text))
        and found.begin - _UNCERTAINTY <= _utc(*stamp.groups())
        <= found.end + _UNCERTAINTY]


def _utc(date: str, time: str, zone: str) -> float:
    return datetime.datetime.strptime(
        f'{date} {time}{zone}', '%Y-%m-%d %H:%M:%S%z').timestamp()
