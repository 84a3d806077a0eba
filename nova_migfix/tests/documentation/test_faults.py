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

"""The reference of faults agrees with the table of ``explain``.

``explain`` finds the same fault as the reference in each line, and the
reference has each fault that the command knows.
"""

import re
import textwrap

import ddt
import testtools

from nova_migfix.status import faults
from nova_migfix.status import logs
from nova_migfix.status import verdict
from nova_migfix.tests import pages

_LINES = re.compile(
    r'^( *)\.\. code-block:: none\n\n((?:\1 +\S.*\n|\n)+)', re.MULTILINE)
_TABLE = re.compile(r'^\.\. include:: table/(\S+)\.rst$', re.MULTILINE)
_LINK = re.compile(':doc:`/([^`]+)`')

#: text of each section, by title
SECTIONS = {
    title: text for page in pages.names()
    if page.startswith('faults/')
    for title, text in list(pages.sections(page).items())[1:]}
KNOWN = faults.BY_NAME


def _name(text):
    """Return the name of a fault, '' if only the reference has it."""
    return ''.join(_TABLE.findall(text))


def _said(text):
    return [logs.Line('log', number, line) for number, line in enumerate(
        line for block in _LINES.finditer(text)
        for line in textwrap.dedent(block[2]).splitlines())]


@ddt.ddt
class FaultsReferenceTestCase(testtools.TestCase):

    def test_each_fault_has_its_section(self):
        self.assertEqual(sorted(KNOWN), sorted(
            filter(None, map(_name, SECTIONS.values()))))

    @ddt.data(*SECTIONS)
    def test_explain_finds_the_fault_in_the_lines_of_a_section(self, title):
        text = SECTIONS[title]
        found = verdict.shown(_said(text), [], [], [])
        self.assertEqual(_name(text), found.fault.name if found else '')
        if found:
            self.assertEqual(title, found.fault.name)

    @ddt.data(*SECTIONS)
    def test_section_has_its_parts(self, title):
        text = SECTIONS[title]
        fault = KNOWN.get(title)
        # the table of a known fault has the cause
        parts = ['Log'] if fault else ['Log', 'Cause']
        if fault and fault.fix:
            parts += ['Symptom', 'Releases', 'With the plugin', 'Without it']
        for part in parts:
            self.assertIn(f'\n{part}\n', f'\n{text}')

    @ddt.data(*SECTIONS)
    def test_linked_pages_exist(self, title):
        for link in _LINK.findall(SECTIONS[title]):
            self.assertIn(f'{link}.rst', pages.names())
