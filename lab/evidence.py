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

"""The evidence of a run: log lines, XML, addresses and checks."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import difflib
import pathlib
import re
from typing import TYPE_CHECKING

from lxml import etree

from lab import fabric
from lab import guest
from lab import topology

if TYPE_CHECKING:
    import lab.scenario


@dataclasses.dataclass(frozen=True)
class LogLine:
    """A line of a log that decides a check, and its file and number."""

    host: str
    path: str
    number: int
    text: str

    _LONGEST = 600

    @property
    def short(self) -> str:
        if len(self.text) <= self._LONGEST:
            return self.text
        return self.text[:self._LONGEST] + ' ...'


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement about a run, whether it holds, and the finding."""

    statement: str
    holds: bool
    found: str


@dataclasses.dataclass
class Step:
    """The evidence of one migration."""

    title: str
    migration: guest.Migration | None = None
    before: str = ''                    # the instance's state before
    lines: list[LogLine] = dataclasses.field(default_factory=list)
    # (title, diff)
    xml: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    wire: list[str] = dataclasses.field(default_factory=list)
    networks: set[str] = dataclasses.field(default_factory=set)
    pings: guest.Pings | None = None


@dataclasses.dataclass
class Result:
    """The outcome of one scenario in one arrangement."""

    scenario: lab.scenario.Scenario
    arrangement: lab.scenario.Arrangement
    expected: lab.scenario.Outcome
    seconds: float = 0
    error: str = ''
    crashed: str = ''                   # why the guest itself failed
    repeated: str = ''                  # `crashed` of an earlier attempt
    checks: list[Check] = dataclasses.field(default_factory=list)
    steps: list[Step] = dataclasses.field(default_factory=list)

    @property
    def as_expected(self) -> bool:
        return bool(self.checks) and not self.problems

    @property
    def problems(self) -> list[str]:
        """The error and the failed checks, as texts."""
        wrong = [f'{check.statement}; found: {check.found}'
                 for check in self.checks if not check.holds]
        return [self.error, *wrong] if self.error else wrong

    @property
    def expectation(self) -> str:
        """The expected outcome in a few words."""
        return self.expected.text

    @property
    def anchor(self) -> str:
        return f'{self.scenario.name}-{self.arrangement.name}'.replace(
            ' ', '-')


class Marked:
    """The part of a log that is written after the object is created."""

    def __init__(self, host: str, path: pathlib.Path) -> None:
        self.host = host
        self.path = path
        text = self._read()
        self._size = len(text)
        self._lines = text.count(b'\n')

    def _read(self, offset: int = 0) -> bytes:
        try:
            with open(self.path, 'rb') as log:
                log.seek(offset)
                return log.read()
        except OSError:
            return b''

    def find(self, pattern: str) -> LogLine | None:
        """Return the first such line that matches *pattern*, or None."""
        lines = self.text().splitlines()
        for number, text in enumerate(lines, self._lines + 1):
            if re.search(pattern, text):
                return LogLine(self.host, str(self.path), number, text)
        return None

    def text(self) -> str:
        return self._read(self._size).decode(errors='replace')


def interfaces(xml: str) -> list[str]:
    """Return the interfaces of a domain's XML, one line for each element.

    Elements without effect on the guest are left out, and so is the address
    on the bus, which Nova fills in elsewhere.
    """
    lines = []
    for interface in etree.fromstring(xml).iter('interface'):
        for child in interface.xpath('alias | target | address'):
            interface.remove(child)
        etree.indent(interface)
        lines += etree.tostring(interface, encoding='unicode').split('\n')
    return [line.rstrip() for line in lines if line.strip()]


_VIF_CONFIGURATION = re.compile(
    r'vif config: (<interface.*?</interface>)', re.DOTALL)


def generated_interfaces(log_text: str) -> list[str]:
    """Return the interfaces that Nova last logged for the destination."""
    found = _VIF_CONFIGURATION.findall(log_text)
    return interfaces(f'<domain>{found[-1]}</domain>') if found else []


def difference(was: Sequence[str], becomes: Sequence[str]) -> str:
    """Return a unified diff of two lists of lines; '' if they are equal."""
    return '\n'.join(list(difflib.unified_diff(
        was, becomes, lineterm='', n=20))[3:])


def wire(captures: Iterable[fabric.Capture]) -> list[str]:
    """Return a readable line for each pair of addresses in the captures."""
    seen = []
    for capture in captures:
        for (source, destination), count in capture.connections.items():
            seen.append(f'{capture.network.name} network: '
                        f'{_named(source)} -> {_named(destination)} port 22, '
                        f'{count} packets')
    return seen


def _named(address: str) -> str:
    where = topology.owner(address)
    return f'{address} ({where[0]})' if where else address


def queues(xml: str) -> int:
    """Return the number of queue pairs of a domain's first interface."""
    driver = etree.fromstring(xml).find('.//interface/driver')
    return int(driver.get('queues', 1)) if driver is not None else 1
