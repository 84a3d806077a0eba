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

"""Read a GnuTLS configuration as GnuTLS does, byte for byte.

GnuTLS 3.6 to 3.8 contains a copy of inih (lib/inih/ini.c, and INI_* in
configure.ac), whose rules differ from those of other parsers:

* Only LF ends a line. A line of more than 2047 bytes is several lines.
* ``#`` and ``;`` begin a comment at the beginning of a line and after a blank.
* An indented line, even a heading, is one more value of the setting above.
* One invalid line, and GnuTLS ignores the whole file.
"""

from __future__ import annotations

from collections.abc import Iterator
import pathlib
import re
from typing import NamedTuple

from nova_migfix.tls import regular

#: white space in C
BLANKS = ' \t\n\v\f\r'

_BOM = b'\xef\xbb\xbf'
# Bytes of a line, and of the name of a section or setting.
_LONGEST_LINE, _LONGEST_NAME = 2047, 49

_END_OF_HEADING = re.compile(r'\]|(?<=\s)[;#]', re.ASCII)
_END_OF_KEY = re.compile(r'[=:]|(?<=\s)[;#]', re.ASCII)
_COMMENT = re.compile(r'(?<=\s)[;#]', re.ASCII)
_BLANK = re.compile(r'\s', re.ASCII)


class Line(NamedTuple):
    """A line that is neither blank nor a comment.

    :param number: in the file, from 1
    :param section: as it is written; '' before the first heading
    :param key: None: the line is a heading
    :param value: without blanks around it
    :param is_continuation: it is indented; *key* is that of the setting above
    :param invalid: the line, if GnuTLS cannot parse it
    """

    number: int
    section: str
    key: str | None = None
    value: str = ''
    is_continuation: bool = False
    invalid: str = ''


def read(path: pathlib.Path) -> str:
    """Return the text of a file; bytes that are not UTF-8 survive.

    :raises OSError: the file cannot be read, or is not a regular file
    """
    with regular.opened(path) as file:
        return file.read().decode('utf-8', 'surrogateescape')


def encode(text: str) -> bytes:
    """Return the bytes of a text from :func:`read`."""
    return text.encode('utf-8', 'surrogateescape')


def lower(text: str) -> str:
    """Return a text with ASCII letters in lower case, as GnuTLS compares."""
    return encode(text).lower().decode('utf-8', 'surrogateescape')


def word(value: str) -> str:
    """Return the part of a value that counts, except in priority strings."""
    return lower(_BLANK.split(value, maxsplit=1)[0])


def parse(text: str) -> Iterator[Line]:
    """Yield the lines of a configuration.

    :param text: from :func:`read`
    """
    section = key = ''
    for number, raw in _lines(encode(text)):
        line = raw.decode('utf-8', 'surrogateescape')
        content = line.strip(BLANKS)
        if not content or content[0] in ';#':
            continue
        if key and line[0] in BLANKS:
            yield Line(number, section, key, content, is_continuation=True)
            continue
        is_heading = content[0] == '['
        end = (_END_OF_HEADING.search(content, 1) if is_heading
               else _END_OF_KEY.search(content))
        if not end or end[0] in ';#':
            yield Line(number, section, invalid=content)
        elif is_heading:
            section, key = content[1:end.start()][:_LONGEST_NAME], ''
            yield Line(number, section)
        else:
            name = content[:end.start()].rstrip(BLANKS)
            value = _COMMENT.split(content[end.end():], maxsplit=1)[0]
            key = name[:_LONGEST_NAME]
            yield Line(number, section, name, value.strip(BLANKS))


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of the lines that inih sees."""
    for number, line in enumerate(content.removeprefix(_BOM).split(b'\n'), 1):
        first = _LONGEST_LINE
        if number == 1 and content.startswith(_BOM):
            first -= len(_BOM)
        ends = [0, *range(first, len(line), _LONGEST_LINE), len(line)]
        for begin, end in zip(ends, ends[1:]):
            # To C, a null byte ends the string.
            yield number, line[begin:end].partition(b'\0')[0]
