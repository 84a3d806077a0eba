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
"""The commands print the output that the documentation shows."""

import contextlib
import json
import shlex

import ddt
import fixtures
from oslo_concurrency import processutils
import testtools

from nova_migfix.cmd import status
from nova_migfix.status import endpoint
from nova_migfix.status import explain
from nova_migfix.status import finders
from nova_migfix.status import findings
from nova_migfix.status.heal import display
from nova_migfix.status import hypervisor
from nova_migfix.status import upgrade
from nova_migfix.tests import pages
from nova_migfix.tests.unit.status import base

PAGE = pages.text('status/index.rst')

#: command: allowed exit codes
CODES = {'upgrade': {0, 1, 2}, 'preflight': {1}, 'heal': {0, 1},
         'explain': {2}}


def shown():
    """Yield each command of the pages and its documented lines."""
    for command, output in (*pages.commands('status/index.rst'),
                            *pages.commands('README.rst')):
        yield command.removeprefix('nova-migfix-status '), tuple(
            line.strip() for line in output.splitlines()
            if line.strip() not in ('', '...'))


@ddt.ddt
class TestDocumentation(testtools.TestCase):

    @ddt.data(*shown())
    @ddt.unpack
    def test_documented_command_prints_the_documented_lines(
            self, command, lines):
        self.useFixture(fixtures.MockPatchObject(
            explain, 'QEMU_LOGS', base.DATA))
        self.useFixture(fixtures.MockPatchObject(
            endpoint, '_ssh_destination', autospec=True,
            side_effect=processutils.ProcessExecutionError))
        self.useFixture(fixtures.MockPatchObject(
            hypervisor, 'guests', lambda: contextlib.nullcontext({})))
        finders._file_system.cache_clear()
        host = self.useFixture(base.Hypervisor())
        host.command.write(host.text('nova.conf').replace(
            '[DEFAULT]', f'[DEFAULT]\nlog_file = {base.DATA}/nova-compute.log')
        )
        arguments = shlex.split(command)
        ran = host.run(*arguments)
        allowed = {0} if '--instance' in arguments else CODES[arguments[0]]
        self.assertIn(ran.code, allowed, ran.err)
        said = [line.strip() for line in ran.out.splitlines()]
        for line in lines:
            self.assertTrue(any(
                other.startswith(line) for other in said), (line, ran.out))
        if '--json' in arguments:
            json.loads(ran.out)

    def test_documented_table_of_heal_has_all_columns(self):
        table, *_rest = pages.blocks('status/index.rst', 'none')
        self.assertEqual(
            [title for title, _show in display.COLUMNS],
            [cell.strip() for cell in
             table.splitlines()[1].split('|')[1:-1]])

    @ddt.data(*shown())
    @ddt.unpack
    def test_documented_parser_accepts_the_command(self, command, _lines):
        arguments = shlex.split(command)
        self.assertEqual(
            arguments[0], status.parser().parse_args(arguments).command)

    def test_page_shows_each_command(self):
        self.assertEqual(set(CODES), {
            command.split()[1]
            for command, _ in pages.commands('status/index.rst')})

    def test_every_finding_check_and_column_is_described(self):
        names = [f'``{name}``' for name in (
            *findings.KINDS, *findings.Finding._fields,
            *explain.Explanation._fields[1:2])]
        names += [f'* - {name}\n' for name, _ in upgrade.CHECKS]
        for name in names:
            self.assertIn(name, PAGE)


