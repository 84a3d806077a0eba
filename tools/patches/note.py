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

"""Check a release note by reno's rules.

reno itself fails on notes of Nova's own releases.
"""

from __future__ import annotations

from collections.abc import Iterator
import re

import yaml

#: The paths of release notes; reno needs the 16 digits of the name.
NAME = re.compile(r'releasenotes/notes/[\w.-]+-[0-9a-f]{16}\.yaml')

#: reno's sections; each is a list of texts.
SECTIONS = ('features', 'issues', 'upgrade', 'deprecations', 'critical',
            'security', 'fixes', 'other')


def complaints(path: str, text: str) -> Iterator[str]:
    """Yield the problems of a new release note.

    :param path: in Nova's tree
    :param text: the content of the file
    """
    if not NAME.fullmatch(path):
        yield f'{path}: not named as reno names notes'
    try:
        note = yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield f'{path}: {error}'
        return
    if not isinstance(note, dict):
        yield f'{path}: it has no sections'
        return
    for section, texts in note.items():
        if section not in SECTIONS:
            yield f'{path}: there is no section {section}'
        if not (isinstance(texts, list)
                and all(isinstance(text, str) for text in texts)):
            yield f'{path}: {section} is no list of texts'
