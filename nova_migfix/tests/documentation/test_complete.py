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

"""A test runs each command that the documentation shows.

A test that runs the commands of a page calls ``pages.commands`` with the name
of the page or with a constant of its module. This module searches for these
calls.
"""

import ast
import importlib.util
import re

import ddt
import testtools

from nova_migfix.tests.documentation import tox
from nova_migfix.tests import elsewhere
from nova_migfix.tests import pages

_TESTS = pages.CHECKOUT / 'nova_migfix/tests'
_SCENARIOS = pages.CHECKOUT / 'lab/scenarios'

# A command outside a console block.
_ASTRAY = re.compile(r'^ +[$#] \S.*$', re.MULTILINE)
_BLOCK = re.compile(r'\.\. code-block:: +(bash|sh|shell|shell-session)\b')


def _asked_for(path):
    """Yield the pages whose commands a test module reads."""
    tree = ast.parse(path.read_text())
    constants = {ast.unparse(node.targets[0]): node.value
                 for node in tree.body if isinstance(node, ast.Assign)}
    for node in ast.walk(tree):
        if (isinstance(node, ast.Call)
                and ast.unparse(node.func) == 'pages.commands'):
            page = node.args[0]
            if isinstance(page, ast.Name):
                page = constants.get(page.id)
            if isinstance(page, ast.Constant):
                yield page.value


RUN = {page for path in _TESTS.rglob('test_*.py')
       for page in _asked_for(path)}


@ddt.ddt
class CompleteCommandsTestCase(testtools.TestCase):

    @ddt.data(*pages.names())
    def test_each_command_of_a_page_is_run_by_a_test(self, page):
        if page in RUN:
            return
        for command, _ in pages.shown(page):
            self.assertIsNotNone(elsewhere.find(page, command), (
                f'No test runs this command of {page}: {command}'))

    @ddt.data(*pages.names())
    def test_commands_are_in_console_blocks(self, page):
        text = pages.text(page)
        self.assertIsNone(_BLOCK.search(text))
        shown = ''.join(command for command, _ in pages.shown(page))
        for line in _ASTRAY.findall(text):
            self.assertIn(line.strip()[2:], shown)

    @ddt.data(*sorted(RUN))
    def test_page_that_a_test_reads_has_commands(self, page):
        self.assertNotEqual([], list(pages.shown(page)))


@ddt.ddt
class ElsewhereTableTestCase(testtools.TestCase):

    @ddt.data(*elsewhere.TABLE)
    def test_table_names_commands_that_a_page_shows(self, entry):
        self.assertIn(entry, [elsewhere.find(entry.page, command)
                              for command, _ in pages.shown(entry.page)])

    @ddt.data(*elsewhere.TABLE)
    def test_table_names_tests_that_exist(self, entry):
        kind, _, name = entry.by.rpartition(' ')
        if kind == 'lab':
            self.assertIn(f"name = '{name}'", ''.join(
                path.read_text() for path in _SCENARIOS.glob('*.py')))
        elif kind:
            self.assertEqual('tox -e', kind)
            self.assertIn(name, tox.environments())
        elif name:
            self.assertIsNotNone(importlib.util.find_spec(name))
        self.assertTrue(entry.why)
