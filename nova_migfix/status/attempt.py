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
"""Find a live migration in the log of nova-compute or nova-conductor."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from collections.abc import Iterator
import datetime
import pathlib
import re
from typing import NamedTuple

from nova_migfix import status
from nova_migfix.status import logs

# The beginning of a record of oslo.log: time, and process, level and logger
_TIME = r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d'
_BEGIN = re.compile(_TIME)
_HEADER = re.compile(rf'{_TIME}\S* (\d+ [A-Z]+ \S+)(?: |$)')
# The context of a record. The lines of a traceback repeat its header only.
_CONTEXT = re.compile(r'\[(?!instance: )')
_REQUEST = re.compile(r'\breq-[0-9a-f-]{36}\b')
_ABOUT = re.compile('[Ll]ive.?[Mm]igrat')
_ANY_INSTANCE = '[instance: '
# Of a DEBUG record: its level, context and instance. The rest quotes guests'
# and users' data.
_DEBUG = re.compile(
    rf'{_TIME}\S* \d+ (?:DEBUG|TRACE) \S+ (?:\[[^][]*\] ){{0,2}}')
# Records that may have the reason.
_DECIDING = re.compile(
    rf'{_TIME}\S* \d+ (?:(?:WARNING|ERROR|CRITICAL) |INFO nova_migfix\.)')
# The conductor says at DEBUG why it skips a host; a reason if none is left.
_SKIPS = re.compile(
    rf'{_TIME}\S* \d+ DEBUG nova\.conductor\.tasks\.live_migrate ')
_NO_HOST = re.compile('No valid host was found')

# on the source, and on the destination
_ARRIVED = re.compile(r'Migration operation has completed'
                      r'|_post_live_migration\(\) is started'
                      r'|Post operation of migration started')
_FAILED = re.compile(r' ERROR |[Ll]ive [Mm]igration (?:failure|refused)')
#: Nova may treat a migration as complete after the domain disappeared. Then
#: the source logs this message.
DIED = 'Live Migration failure'
# The second message is the destination's, and may have another cause.
_NOT_ARRIVED = re.compile(
    f'{DIED}|Unexpected error during post live migration at destination')

# Nova logs the XML of a domain in its errors, which has texts of a user: the
# name of the server, kernel arguments.
_USER_DATA = re.compile(r'^\s*<|<domain\b|\b(?:display_name|user_data)=')

# Lines of a record that are kept after the first one: the end of a traceback.
_LONGEST_RECORD = 200

# Requests of which records are kept before the log shows that they are live
# migrations of the guest.
_CANDIDATES = 100


class Record(NamedTuple):
    """The lines that one call of a logger wrote, with its traceback."""

    lines: list[logs.Line]

    @property
    def said(self) -> list[logs.Line]:
        """The lines without texts of users."""
        debug = None if self.skips else _DEBUG.match(self.lines[0].text)
        if debug:
            return [self.lines[0]._replace(text=debug[0])]
        return [line._replace(text=_USER_DATA.split(line.text, maxsplit=1)[0])
                for line in self.lines]

    @property
    def text(self) -> str:
        """The text without texts of users."""
        return ''.join(line.text for line in self.said)

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

    :ivar request: its ID; '' if the log has no such migration
    :ivar first, last: the times of its records, as in the log
    :ivar until: the begin of the guest's next migration, in seconds since the
        epoch; None for the last
    :ivar records: the last ones that may have the outcome or the reason
    """

    request: str = ''
    first: str = ''
    last: str = ''
    until: float | None = None
    records: tuple[Record, ...] = ()

    @property
    def begin(self) -> float | None:
        """Seconds since the epoch; None without a migration."""
        return _seconds(self.first)

    @property
    def end(self) -> float | None:
        """Seconds since the epoch; None without a migration."""
        return _seconds(self.last)

    @property
    def deciding(self) -> list[logs.Line]:
        """The lines that may have the reason, without texts of users."""
        no_host = self._has(_NO_HOST)
        return [line for record in self.records
                if record.decides or (no_host and record.skips)
                for line in record.said]

    @property
    def has_arrived(self) -> bool:
        """Whether Nova treats the migration as complete."""
        return self._has(_ARRIVED)

    @property
    def is_success(self) -> bool:
        return self.has_arrived and not self._has(_NOT_ARRIVED)

    @property
    def has_failed(self) -> bool:
        return self._has(_FAILED)

    @property
    def errors(self) -> list[logs.Line]:
        """The first line of each error."""
        return [record.lines[0] for record in self.records
                if ' ERROR ' in record.lines[0].text]

    def _has(self, pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(record.text) for record in self.records)


class _Request:
    """The records of a request up to a place in the log."""

    def __init__(self) -> None:
        self.records: collections.deque[Record] = collections.deque(
            maxlen=logs.KEPT)
        self.first = self.last = ''
        self.migrates = ''      # time of the first record that says so
        self.is_of_guest = False
        self.is_of_any_guest = False

    def add(self, record: Record, uuid: str) -> bool:
        """Add a record; return whether it is about a live migration."""
        text = record.text
        self.first, self.last = self.first or record.time, record.time
        self.is_of_guest |= uuid in text
        self.is_of_any_guest |= _ANY_INSTANCE in text
        if record.decides or record.skips or _ARRIVED.search(text):
            self.records.append(record)
        is_about = bool(_ABOUT.search(text))
        if is_about:
            self.migrates = self.migrates or record.time
        return is_about

    def attempt(self, name: str, until: str) -> Attempt:
        return Attempt(name, self.first, self.last, _seconds(until),
                       tuple(self.records))


def find(path: str | pathlib.Path, uuid: str, request: str = '') -> Attempt:
    """Return a live migration of a guest; it is empty if there is none.

    Reads the log once: it may be a pipe.

    :param path: log of nova-compute, or of nova-conductor
    :param uuid: of the guest
    :param request: ID of the migration's request; '': of the last migration
    :raises Error: the log cannot be read, or the request is another guest's
    """
    asked = _Request()
    candidates: dict[str, _Request] = {}
    migrations: dict[str, _Request] = {}    # of the guest, the last one last
    for record in _records(logs.lines(path)):
        name = record.request
        if not name:
            continue
        known = asked if name == request else (
            migrations.get(name) or candidates.setdefault(name, _Request()))
        is_about = known.add(record, uuid)
        if known.migrates and known.is_of_guest:
            candidates.pop(name, None)
            if is_about:
                migrations.pop(name, None)
            migrations.setdefault(name, known)
        elif len(candidates) > _CANDIDATES:
            del candidates[next(iter(candidates))]
    if not request:
        name, known = next(reversed(migrations.items()), ('', _Request()))
        return known.attempt(name, '')
    if asked.is_of_any_guest and not asked.is_of_guest:
        raise status.Error(
            f'{request} is not a request of instance {uuid}.')
    names = list(migrations)
    later = names[names.index(request) + 1:] if request in names else []
    return asked.attempt(request if asked.first else '', (
        migrations[later[0]].migrates if later else ''))


def _records(log: Iterable[logs.Line]) -> Iterator[Record]:
    first: logs.Line | None = None
    rest: collections.deque[logs.Line] = collections.deque(
        maxlen=_LONGEST_RECORD)
    for line in log:
        if first and not (_BEGIN.match(line.text)
                          and not _continues(first, line)):
            rest.append(line)
            continue
        if first:
            yield Record([first, *rest])
        first = line
        rest.clear()
    if first:
        yield Record([first, *rest])


def _continues(first: logs.Line, line: logs.Line) -> bool:
    """Return whether a line belongs to the traceback of a record."""
    header, found = _HEADER.match(first.text), _HEADER.match(line.text)
    return bool(header and found and header[1] == found[1]
                and not _CONTEXT.match(line.text, found.end()))


def _seconds(time: str) -> float | None:
    """Convert local time, as in the log; None for no such time."""
    found = _BEGIN.match(time)
    try:
        return datetime.datetime.strptime(
            found[0], '%Y-%m-%d %H:%M:%S').timestamp() if found else None
    except (ValueError, OverflowError):
        return None
