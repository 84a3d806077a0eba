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
"""The table of disks, and the progress of ``heal``."""

from __future__ import annotations

from collections.abc import Callable
import os

from oslo_utils import units
import prettytable
from rich import console as rich_console
from rich import progress as rich_progress

from nova_migfix.status.heal import plan
from nova_migfix.storage import block_job


def title(row: plan.Row) -> str:
    return f'{row.instance} {row.disk.name}'


class Display:
    """A bar for each disk; lines if the output is not a terminal."""

    def __init__(self) -> None:
        self._console = rich_console.Console(
            highlight=False, markup=False, soft_wrap=True)
        self._bars = rich_progress.Progress(
            rich_progress.TextColumn('{task.description}', markup=False),
            rich_progress.BarColumn(), rich_progress.TaskProgressColumn(),
            rich_progress.TimeRemainingColumn(), console=self._console,
            disable=not self._console.is_terminal)

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, row: plan.Row) -> block_job.Progress:
        """Show that a disk begins; return a callback for its progress."""
        if self._bars.disable:
            self.say(f'{title(row)}: {row.way}, '
                     f'about {_gib(row.needed)} GiB')
        task = self._bars.add_task(title(row), total=None)
        return lambda done, total: self._bars.update(
            task, completed=done, total=total)

    def say(self, line: str) -> None:
        self._console.print(line)


#: columns of the table: title, and the text of a row
COLUMNS: tuple[tuple[str, Callable[[plan.Row], str]], ...] = (
    ('Instance', lambda row: row.instance),
    ('Disk', lambda row: row.disk.name),
    ('Size', lambda row: _gib(row.size)),
    ('Base', lambda row: os.path.basename(row.disk.backing)),
    ('Written', lambda row: _gib(row.needed)),
    ('Free', lambda row: _gib(row.free)),
    ('Way', lambda row: row.way or f'skipped: {row.reason}'),
)


def table(rows: list[plan.Row]) -> str:
    table = prettytable.PrettyTable([title for title, _ in COLUMNS])
    table.align = 'l'
    table.max_width['Way'] = 30
    for row in rows:
        table.add_row([show(row) for _title, show in COLUMNS])
    possible = [row for row in rows if row.way]
    written = sum(row.needed or 0 for row in possible)
    return (f'{table}\n{len(possible)} of {len(rows)} disks can be completed '
            f'now, with about {_gib(written)} GiB written; sizes in GiB.')


def _gib(size: int | None) -> str:
    return '?' if size is None else f'{size / units.Gi:.3f}'
