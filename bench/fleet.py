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

"""Measure the merge of the reports of many hosts, and the merged page.

``python -m bench.fleet`` generates reports of hosts, merges them by the real
command, opens the page in Chromium and uses its filters. The time of a filter
includes its script and the layout afterwards. It fails if the time of a step
grows faster than the number of findings.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import prettytable

import bench
from nova_migfix.tests.fleet import browser
from nova_migfix.tests import hosts


class Case(NamedTuple):
    """A number of hosts, and the share of their guests with each finding."""

    hosts: int
    often: float


# Growth is measured between the last two.
CASES = (Case(100, .25), Case(300, .25), Case(1000, .25), Case(1000, 1))
GUESTS = 50
ROUNDS = 3

# Requirement: each step takes at most so many times as long per finding. The
# rounds alternate between the cases, so that a busy machine delays both.
GROWTH = 1.5

_SET = '''
const field = document.getElementById('{}');
field.value = '{}';
field.dispatchEvent(new Event('input', {{bubbles: true}}))
'''
# Applied one after the other, without a reset.
FILTERS = (('text', 'a'), ('text', ''), ('finding', 'vnic'),
           ('covered', 'no'), ('host', 'compute00'))


class Seconds(NamedTuple):
    """The time of each step.

    :ivar merge: the command, with the start of Python
    :ivar filter: the slowest filter
    """

    merge: float
    open: float
    filter: float


def merge(directory: pathlib.Path) -> float:
    """Return the seconds of the command."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, '-m', 'nova_migfix.cmd.status', 'report',
         str(directory), '--json', str(directory / 'report'),
         '--html', str(directory / 'report.html')],
        capture_output=True, text=True)
    if done.returncode not in (0, 1, 2) or done.stderr:
        raise RuntimeError(done.stderr)
    return time.monotonic() - begin


class Fleet:
    """The reports of the hosts of one case.

    :ivar rounds: the Seconds of each round
    :ivar findings: the number of findings
    :ivar size: of the page, in MB
    """

    def __init__(self, case: Case, directory: pathlib.Path) -> None:
        hosts.write_many(directory, case.hosts, GUESTS, case.often)
        self.case = case
        self._directory = directory
        self._page = directory / 'report.html'
        self.rounds: list[Seconds] = []
        self.findings = 0
        self.size = 0.

    def measure(self) -> None:
        """Add a round, in a new browser."""
        merged = merge(self._directory)
        with browser.Browser() as page:
            opened = page.open(self._page)
            self.findings = page.counts()[2]
            slowest = max(page.seconds(_SET.format(*one)) for one in FILTERS)
        self.size = self._page.stat().st_size / 1e6
        self.rounds.append(Seconds(merged, opened, slowest))

    @property
    def best(self) -> Seconds:
        return Seconds(*map(min, zip(*self.rounds)))


def measure_all() -> list[Fleet]:
    """Measure all cases, one after the other in each round."""
    with contextlib.ExitStack() as stack:
        fleets = [Fleet(case, pathlib.Path(stack.enter_context(
            tempfile.TemporaryDirectory()))) for case in CASES]
        for _round in range(ROUNDS):
            for fleet in fleets:
                fleet.measure()
        return fleets


def problems(fewer: Fleet, more: Fleet) -> Iterator[str]:
    """Yield a line for each step whose time grows too fast."""
    findings = more.findings / fewer.findings
    for step, before, after in zip(
            Seconds._fields, fewer.best, more.best, strict=True):
        if after / before > GROWTH * findings:
            yield (f'{step}: {after / before:.1f} times as long for '
                   f'{findings:.1f} times the findings')


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    table = prettytable.PrettyTable([
        'hosts', 'findings', 'page, MB', 'merge, s', 'open, s', 'filter, s'])
    table.align = 'r'
    fleets = measure_all()
    for fleet in fleets:
        best = fleet.best
        table.add_row([
            fleet.case.hosts, fleet.findings, f'{fleet.size:.1f}',
            f'{best.merge:.2f}', f'{best.open:.2f}', f'{best.filter:.3f}'])
    print(table)
    fewer, more = fleets[-2:]
    print(f'{more.case.hosts} hosts of {GUESTS} guests are merged and opened '
          f'in {more.best.merge + more.best.open:.1f} s (calm machine: less '
          f'than 10 s)')
    print('Growth of time for {:.1f} times the findings: {}'.format(
        more.findings / fewer.findings, ', '.join(
            f'{step} {after / before:.1f}' for step, before, after in zip(
                Seconds._fields, fewer.best, more.best, strict=True))))
    return bench.print_problems(problems(fewer, more))


if __name__ == '__main__':
    sys.exit(main())
