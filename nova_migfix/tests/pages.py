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

"""The commands that pages of the documentation show."""

import pathlib
import re
import textwrap

CHECKOUT = pathlib.Path(__file__).parents[2]

_BLOCK = re.compile(
    r'^( *)\.\. code-block:: console\n\n((?:\1 +\S.*\n|\n)+)', re.MULTILINE)


def commands(page):
    """Yield each command, and what it is shown to print.

    :param page: below doc/source
    """
    text = (CHECKOUT / 'doc/source' / page).read_text()
    for block in _BLOCK.finditer(text):
        for part in re.split('^[#$] ', textwrap.dedent(block[2]),
                             flags=re.MULTILINE)[1:]:
            command, _, output = part.strip().partition('\n')
            yield command, output
