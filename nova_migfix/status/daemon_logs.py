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

"""Find the lines about a migration in the logs of QEMU and libvirt."""

from __future__ import annotations

import collections
from collections.abc import Iterable
import datetime
import os
import pathlib
import re

from nova_migfix import status
from nova_migfix.status import attempt
from nova_migfix.status import logs

_STARTS = re.compile(r'\d{4}-\d\d-\d\d \S+ starting up')
_TIME = re.compile(r'(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)')
_UUID = re.compile(r'-uuid ([0-9a-f-]{36})')
# Escaped and quoted words of a shell command.
_QUOTED = re.compile(r'\\.|\'[^\']*\'')
# A warning or error of libvirt in its own log, or any message in the journal
# (journalctl --output short-iso): both name no guest.
_LIBVIRT = re.compile(
    r'(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)[.,\d]*([+-]\d\d:?\d\d)'
    r'(?:: \d+: (?:error|warning) :| \S+ (?:libvirtd|virt\w+d)\[\d+\]: )')
# Seconds by which the clocks of two logs may differ.
_UNCERTAINTY = 2


def qemu(directory: pathlib.Path, uuid: str, found: attempt.Attempt
         ) -> list[logs.Line]:
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
        log = _Qemu(path, found)
        if uuid in log.uuids:
            return [*log.lines]
    return []


def qemu_file(path: str, uuid: str, found: attempt.Attempt) -> list[logs.Line]:
    """Return the lines of one QEMU log about a migration.

    :param path: of the log, ``-`` for standard input
    :raises Error: the log cannot be read, or it is another guest's
    """
    log = _Qemu(path, found)
    if log.uuids and uuid not in log.uuids:
        raise status.Error(f'{path} is the QEMU log of another guest.')
    return [*log.lines]


class _Qemu:
    """The log of the QEMU that started last.

    It begins with the command, which has texts of users, such as kernel
    arguments.

    :ivar uuids: of the guest; empty if the log does not say it
    :ivar lines: the last ones since the begin of a migration, before the next
        one: QEMU on the source runs since long ago, and its log has earlier
        failures, too. A line without time belongs to the line before it.
    """

    def __init__(self, path: str | pathlib.Path,
                 found: attempt.Attempt) -> None:
        """:raises Error: the log cannot be read"""
        self.uuids: set[str] = set()
        self.lines: collections.deque[logs.Line] = collections.deque(
            maxlen=logs.KEPT)
        self._begin, self._until = found.begin, found.until
        self._in_command = self._in_quotes = False
        is_during = True
        for line in logs.lines(path):
            if self._is_of_command(line.text):
                is_during = True
            elif is_during := self._is_during(line.text, is_during):
                self.lines.append(line)

    def _is_during(self, text: str, otherwise: bool) -> bool:
        stamp = _TIME.match(text)
        time = _utc(stamp[1], stamp[2], '+0000') if stamp else None
        if time is None:
            return otherwise
        return (self._begin is None or time >= self._begin - _UNCERTAINTY
                ) and (self._until is None or time < self._until)

    def _is_of_command(self, text: str) -> bool:
        if not self._in_quotes and _STARTS.match(text):
            self.uuids.clear()
            self.lines.clear()
            self._in_command = True
            return True
        if self._in_quotes:
            _, closed, text = text.partition('\'')
            if not closed:
                return True
        elif _TIME.match(text) or not (
                self._in_command or text.endswith('\\\n')):
            self._in_command = False
            return False
        plain = _QUOTED.sub('', text.rstrip('\n'))
        plain, quote, _ = plain.partition('\'')
        self.uuids.update(_UUID.findall(plain))
        self._in_quotes = bool(quote)
        self._in_command = self._in_quotes or text.endswith('\\\n')
        return True


def libvirt(paths: Iterable[str | pathlib.Path], found: attempt.Attempt
            ) -> list[logs.Line]:
    """Return libvirt's last lines during a migration, of all guests.

    :param paths: of logs, ``-`` for standard input
    :raises Error: a log cannot be read
    """
    if found.begin is None or found.end is None:
        return []
    begin, end = found.begin - _UNCERTAINTY, found.end + _UNCERTAINTY
    return [*collections.deque((
        line for path in paths for line in logs.lines(path)
        if (stamp := _LIBVIRT.match(line.text))
        and (time := _utc(*stamp.groups())) is not None
        and begin <= time <= end), maxlen=logs.KEPT)]


def _utc(date: str, time: str, zone: str) -> float | None:
    """Return seconds since the epoch; None for no such time."""
    try:
        return datetime.datetime.strptime(
            f'{date} {time}{zone}', '%Y-%m-%d %H:%M:%S%z').timestamp()
    except ValueError:
        return None
