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

"""Actual and expected changes of a text."""

import difflib
import pathlib

_GOLDEN = pathlib.Path(__file__).parent / 'golden'


def changes(before, after):
    """Return the lines that differ, without their positions."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(),
                                 lineterm='', n=0)
    return ''.join(f'{line}\n' for line in list(lines)[2:]
                   if line[:2] != '@@' and line[1:].strip())


def golden(name):
    return (_GOLDEN / f'{name}.diff').read_text()
