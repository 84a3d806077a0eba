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
"""No command writes control characters of others to the terminal."""

import io
import json

import ddt
import fixtures
import hypothesis
from hypothesis import strategies
import testtools

from nova_migfix.status import explain
from nova_migfix.status import hypervisor
from nova_migfix.status import terminal
from nova_migfix.tests import hosts
from nova_migfix.tests.unit.status import base
from nova_migfix.tests.unit.status import test_fleet

HOSTILE = 'b\ra\x1b[2J\x1b]0;taken\x07\x9b31m\u202ec\ud800d'


def unprintable(text):
    return {char for char in text.replace('\r\n', '\n')
            if not (char.isprintable() or char == '\n')}


class TestPrintable(testtools.TestCase):

    @hypothesis.given(strategies.lists(strategies.text(
        strategies.characters(categories=('C', 'L', 'Z')))))
    def test_only_lines_of_printable_characters_are_written(self, texts):
        out = io.StringIO(newline='')
        print(*texts, sep='', file=terminal.Printable(out))
        self.assertEqual(set(), unprintable(out.getvalue()))
        self.assertEqual(len(''.join(texts)) + 1, len(out.getvalue()))

    def test_printable_text_stays(self):
        out = io.StringIO(newline='')
        print('| Größe \r\n| 二 |', file=terminal.Printable(out))
        self.assertEqual('| Größe \r\n| 二 |\n', out.getvalue())


@ddt.ddt
class TestCommands(test_fleet.FleetTestCase):
    """Each command gets control characters from where it reads."""

    def setUp(self):
        super().setUp()
        self.host = self.useFixture(base.Hypervisor())

    def report(self):
        hosts.write(self.directory, 'a', hosts.registered(hosts.checks()), {
            'rc': 1, 'stdout': '', 'stderr': HOSTILE})
        return 'report', str(self.directory)

    def explain(self):
        path = self.directory / 'log'
        path.write_text(
            f'2026-11-25 10:44:15.412 7101 ERROR nova.x [None req-'
            f'{base.uuid(2)} - -] [instance: {base.uuid(1)}] Live Migration '
            f'failure: {HOSTILE}\n', errors='replace')
        self.useFixture(fixtures.MockPatchObject(
            explain, '_nova_log', lambda: path))
        return ('explain', base.uuid(1), '--qemu-log',
                f'/nonexistent/{HOSTILE[:-2]}')

    def explain_malformed(self):
        return 'explain', HOSTILE

    def upgrade(self):
        self.host.command.write(
            f'[DEFAULT]\ncompute_driver = {HOSTILE[2:7]}\n')
        return 'upgrade', 'check'

    def preflight(self):
        self.useFixture(fixtures.MockPatchObject(
            hypervisor, 'domains', lambda uuids: [hypervisor.Domain(
                base.uuid(1), HOSTILE, '<domain/>')]))
        return ('preflight',)

    def preflight_csv(self):
        return (*self.preflight(), '--csv')

    @ddt.data('report', 'explain', 'explain_malformed', 'upgrade', 'preflight',
              'preflight_csv')
    def test_output_is_printable(self, name):
        ran = self.host.run(*getattr(self, name)())
        self.assertNotIn('Traceback', ran.err)
        self.assertIn('[2J', ran.out + ran.err)
        self.assertEqual(set(), unprintable(ran.out + ran.err))

    def test_json_keeps_all_characters(self):
        ran = self.host.run(*self.preflight(), '--json')
        self.assertIn(HOSTILE, ''.join(json.loads(ran.out)['notes']))
