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
"""Keep control characters of logs, guests and hosts out of terminals."""

from __future__ import annotations

import io
import re
from typing import IO

_LONE_RETURN = re.compile(r'\r(?!\n)')


def printable(text: str, kept: str = '') -> str:
    """Return a text with blanks for characters that are not printable.

    :param kept: further characters that stay
    """
    return text if text.isprintable() else ''.join(
        char if char.isprintable() or char in kept else ' ' for char in text)


class Printable(io.TextIOBase):
    """A stream that writes lines of printable characters to another one."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(
            _LONE_RETURN.sub(' ', text), kept='\r\n'))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()
