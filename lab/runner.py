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

"""Run scenarios, show the progress, and make the table at the end."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import time

from rich import box
from rich import console
from rich import table

from lab import cloud
from lab import environments
from lab import evidence
from lab import scenario
from lab import scenarios

_MARK = {True: ('green', 'as expected'),
         False: ('bold red', 'NOT AS EXPECTED')}


class Progress:
    """Show the current step.

    On a terminal one line is rewritten; elsewhere each step is a new line.
    """

    def __init__(self, console: console.Console) -> None:
        self.console = console
        self._begin = time.monotonic()
        self._status = console.status('')
        self._prefix = ''

    def __enter__(self) -> Progress:
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def begin(self, prefix: str) -> None:
        """Show *prefix* before all following steps."""
        self._prefix = prefix

    def __call__(self, text: str) -> None:
        """Show the next step."""
        line = f'{self._prefix}: {text}' if self._prefix else text
        if self.console.is_terminal:
            self._status.update(line)
        else:
            self.done(line)

    def done(self, line: str, style: str | None = None) -> None:
        """Print a line that stays on the screen, with the time."""
        seconds = int(time.monotonic() - self._begin)
        self.console.print(f'{seconds // 60:3}:{seconds % 60:02}  {line}',
                           style=style, highlight=False, soft_wrap=True)


def runs(
    chosen: Iterable[scenario.Scenario], only: str | None = None,
) -> list[tuple[scenario.Scenario, scenario.Arrangement]]:
    """Return ``(scenario, arrangement)`` in the order with least restarts.

    :param only: the column of the arrangements to run; None: all
    """
    return [(item, arrangement) for arrangement in scenario.ARRANGEMENTS
            if only in (None, arrangement.column)
            for item in chosen if arrangement in item.expected]


def perform(cloud: cloud.Cloud, chosen: Iterable[scenario.Scenario],
            progress: Progress,
            only: str | None = None) -> Iterator[evidence.Result]:
    """Yield the Result of each scenario in each of its arrangements.

    :param only: as in `runs`
    """
    possible = []
    for item in chosen:
        why = (item.impossible(cloud.venvs.major)
               if cloud.venvs.variant in item.variants
               else f'it is not for the variant {cloud.venvs.variant}')
        if why:
            progress.done(f'{item.name}: left out, {why}')
        else:
            possible.append(item)
    for item, arrangement in runs(possible, only):
        what = f'{item.name}, {cloud.venvs.variant} on {arrangement.name}'
        progress.begin(what)
        result = scenario.Run(cloud, item, arrangement, progress).perform()
        if result.crashed:
            # Emulation loses writes (see qemu_tcg.py) and interrupts. A
            # fault of Nova happens in the second run, too.
            progress.done(f'{what}: the emulated guest crashed or does not '
                          'answer; second run')
            crashed = result.crashed
            result = scenario.Run(cloud, item, arrangement,
                                  progress).perform()
            result.repeated = crashed
        style, verdict = _MARK[result.as_expected]
        progress.done(f'{what}: {verdict} ({result.expectation}), '
                      f'{result.seconds:.0f} s', style)
        for problem in result.problems:
            progress.done(f'      {problem}', style)
        yield result


def rows(
    results: Iterable[evidence.Result],
) -> Iterator[tuple[str, dict[str, evidence.Result], float]]:
    """Yield one row for each scenario and pair of arrangements to compare.

    A row is ``(name, {STOCK or FIXED: Result}, seconds)``.
    """
    by_run = {(result.scenario.name, result.arrangement): result
              for result in results}
    for name in scenarios.ALL:
        of_name = [by_run[name, arrangement]
                   for arrangement in scenario.ARRANGEMENTS
                   if (name, arrangement) in by_run]
        stock = [r for r in of_name
                 if r.arrangement.column == environments.STOCK]
        fixed = [r for r in of_name
                  if r.arrangement.column == environments.FIXED]
        for index in range(max(len(stock), len(fixed))):
            cells = {}
            if index < len(stock):
                cells[environments.STOCK] = stock[index]
            if index < len(fixed):
                cells[environments.FIXED] = fixed[index]
            yield name, cells, sum(r.seconds for r in cells.values())


def make_table(results: Iterable[evidence.Result],
               variant: str) -> table.Table:
    """Return the table at the end, for rich."""
    result = table.Table(box=box.SIMPLE_HEAD)
    for column in ('scenario', 'stock', variant):
        result.add_column(column)
    result.add_column('time', justify='right')
    for name, cells, seconds in rows(results):
        result.add_row(name, *[_cell(cells.get(column)) for column in (
            environments.STOCK, environments.FIXED)], f'{seconds:.0f} s')
    return result


def _cell(result: evidence.Result | None) -> str:
    if result is None:
        return ''
    style, verdict = _MARK[result.as_expected]
    where = ('' if result.arrangement in (scenario.NEITHER, scenario.BOTH)
             else f'on the {result.arrangement.name}: ')
    again = ', at the second run' if result.repeated else ''
    return f'[{style}]{where}{result.expectation}, {verdict}{again}[/]'
