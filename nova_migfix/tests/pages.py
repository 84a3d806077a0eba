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

"""Extract the commands that pages of the documentation show.

A test runs each of them: one that calls :func:`commands` for the page, or the
substitute in :mod:`nova_migfix.tests.elsewhere`.
"""

import pathlib
import re
import textwrap

from nova_migfix.tests import elsewhere

CHECKOUT = pathlib.Path(__file__).parents[2]
SOURCE = CHECKOUT / 'doc/source'

_BLOCK = re.compile(
    r'^( *)\.\. code-block:: (\w+)\n\n((?:\1 +\S.*\n|\n)+)', re.MULTILINE)
_PLACEHOLDER = re.compile('<([a-z][a-z _]*)>')
_TABLE = re.compile(r'table(\.rst|/[^/]*)$')
_HEADING = re.compile(r'^(\S.*)\n([=\-^~])\2+\n', re.MULTILINE)


def names():
    """Return the names of all pages, relative to doc/source or the checkout.

    The tables that the build of the documentation writes are not included.
    """
    found = (path.relative_to(above) for above, paths in (
        (SOURCE, SOURCE.rglob('*.rst')), (CHECKOUT, CHECKOUT.glob('*.rst')))
        for path in paths)
    return sorted(str(path) for path in found if not _TABLE.search(str(path)))


def text(page):
    path = SOURCE / page
    return (path if path.exists() else CHECKOUT / page).read_text()


def blocks(page, language):
    """Yield the text of each code block of a page in a language.

    :param language: such as 'ini'
    """
    return _blocks(text(page), language)


def _blocks(part, language):
    for block in _BLOCK.finditer(part):
        if block[2] == language:
            yield textwrap.dedent(block[3])


def shown(page):
    """Yield each command of a page, with its output as shown."""
    return _shown(text(page))


def _shown(part):
    for block in _blocks(part, 'console'):
        for one in re.split('^[#$] ', block, flags=re.MULTILINE)[1:]:
            lines = one.strip().splitlines()
            # Lines after the shell's second prompt belong to the command.
            last = max((number for number, line in enumerate(lines)
                        if line.startswith('> ')), default=0)
            yield ('\n'.join(line.removeprefix('> ')
                             for line in lines[:last + 1]),
                   '\n'.join(lines[last + 1:]))


def commands(page, section=None, **values):
    """Yield each command that the test of a page runs, with its output.

    :param page: relative to doc/source, or to the checkout
    :param section: the heading of a section, None for the whole page
    :param values: replacements for ``<name>``; underscores stand for its
        spaces
    :raises KeyError: there is no such section, or no value for a name
    """
    part = text(page) if section is None else sections(page)[section]
    for command, output in _shown(part):
        if not elsewhere.find(page, command):
            yield tuple(_PLACEHOLDER.sub(
                lambda name: str(values[name[1].replace(' ', '_')]), line)
                for line in (command, output))


def sections(page):
    """Return the sections of a page, including subsections, by heading."""
    whole = text(page)
    headings = list(_HEADING.finditer(whole))
    ranks = list(dict.fromkeys(heading[2] for heading in headings))
    parts = {}
    for place, heading in enumerate(headings):
        rank = ranks.index(heading[2])
        end = next((other.start() for other in headings[place + 1:]
                    if ranks.index(other[2]) <= rank), len(whole))
        parts[heading[1]] = whole[heading.end():end]
    return parts
