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

"""The environments of tox.ini."""

import configparser
import itertools
import re

from nova_migfix.tests import pages

_ALTERNATIVES = re.compile('{([^}]*)}')


def environments():
    """Return the names of the environments."""
    parser = configparser.RawConfigParser()
    parser.read(pages.CHECKOUT / 'tox.ini')
    return {'py3', *itertools.chain.from_iterable(
        _expanded(section.removeprefix('testenv:'))
        for section in parser.sections() if section.startswith('testenv:'))}


def _expanded(name):
    """Expand names as tox does: ``nova-{29,30}{,-quick}`` gives four."""
    parts = _ALTERNATIVES.split(name)
    return map(''.join, itertools.product(*(
        part.split(',') if number % 2 else [part]
        for number, part in enumerate(parts))))
