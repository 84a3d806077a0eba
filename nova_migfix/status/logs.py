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
"""Read logs of this host line by line.

Logs contain texts of guests and of other hosts, and may be large: lines are
cut, and readers keep a limited number of them.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import itertools
import pathlib
import sys
from typing import IO
from typing import NamedTuple

from nova_migfix import status
from nova_migfix.status import terminal

#: means standard input
STDIN = '-'

#: the most lines of a log that have to be kept; a migration writes fewer
KEPT = 1000

#: characters of a line that are read, and that are shown
READ = 4096
_SHOWN = 500


class Line(NamedTuple):
    file: str
    number: int
    text: str

    def __str__(self) -> str:
        text = terminal.printable(self.text.strip())
        return f'{self.file}:{self.number}: ' + (
            text if len(text) <= _SHOWN else f'{text[:_SHOWN]} ...')


def lines(path: str | pathlib.Path) -> Iterator[Line]:
    """Yield the lines of a file, or of standard input for ``-``.

    :raises Error: the file cannot be read
    """
    try:
        with _open(path) as log:
            for number in itertools.count(1):
                text = log.readline(READ)
                if not text:
                    return
                yield Line(str(path), number, text)
                while text and not text.endswith('\n'):
                    text = log.readline(READ)
    except OSError as error:
        raise status.Error(
            f'{path} cannot be read: {error.strerror}. Run this command as a '
            'user with permission to read it.') from error


def _open(path: str | pathlib.Path
          ) -> contextlib.AbstractContextManager[IO[str]]:
    if str(path) == STDIN:
        return contextlib.nullcontext(sys.stdin)
    return open(path, errors='replace')
