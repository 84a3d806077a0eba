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
"""``report``: files, output, exit codes."""

import html
import json
import pathlib
import re
import subprocess
import sys
import textwrap

import fixtures
import hypothesis
from hypothesis import strategies

from nova_migfix.tests import hosts
from nova_migfix.tests.unit.status import base
from nova_migfix.tests.unit.status import test_fleet

JSON = strategies.recursive(
    strategies.one_of(
        strategies.none(), strategies.booleans(), strategies.integers(),
        strategies.floats(), strategies.just(10 ** 400),
        strategies.text(strategies.characters())),
    lambda values: strategies.one_of(
        strategies.lists(values),
        strategies.dictionaries(strategies.text(), values)), max_leaves=5)
# Ends and begins a script, a comment, an attribute and a template.
HOSTILE = '</script><script>document.title = "taken"</script><!--&\'"{{ 7*7 }}'


class TestReport(test_fleet.FleetTestCase):

    def setUp(self):
        super().setUp()
        self.command = self.useFixture(base.Command(''))
        self.place = pathlib.Path(self.useFixture(fixtures.TempDir()).path)

    def run_report(self, *arguments):
        return self.command.run('report', str(self.directory), *arguments)

    def json(self):
        path = self.place / 'report.json'
        self.run_report('--json', str(path))
        return json.loads(path.read_text())

    def html(self):
        path = self.place / 'report.html'
        self.run_report('--html', str(path))
        return path.read_text()

    def test_report_prints_a_table(self):
        self.put('a')
        self.put('c')
        hosts.write(self.directory, 'b', hosts.UNREACHABLE, {})
        ran = self.run_report()
        self.assertEqual('', ran.err)
        self.assertEqual(textwrap.dedent(f'''\
            +---------------+-------+--------+
            | Safe to drain | Hosts | Guests |
            +---------------+-------+--------+
            | no            | 0     | 0      |
            | unknown       | 1     | 0      |
            | changes       | 0     | 0      |
            | depends       | 2     | 4      |
            | yes           | 0     | 0      |
            +---------------+-------+--------+
            b unreachable: {hosts.UNREACHABLE["msg"]}
            '''), ran.out)

    def test_report_exit_code_follows_the_worst_host(self):
        self.put('a')
        self.put('d')
        self.assertEqual(0, self.run_report().code)
        hosts.write(self.directory, 'b', hosts.UNREACHABLE, {})
        self.assertEqual(1, self.run_report().code)
        self.put('c', hosts.finding('vnic', test_fleet.A, False))
        self.assertEqual(2, self.run_report().code)

    def test_report_without_input_or_output_directory_is_an_error(self):
        ran = self.run_report()
        self.assertEqual((255, f'{self.directory} has no file HOST.json of '
                               'any host.\n'), (ran.code, ran.err))
        self.put('a')
        ran = self.run_report('--json', str(self.place / 'no/report.json'))
        self.assertEqual(255, ran.code)
        self.assertIn('cannot be written', ran.err)

    def test_report_is_written_as_json(self):
        self.put('a', hosts.finding('vnic', test_fleet.A))
        self.put('b')
        told = self.json()
        self.assertEqual({'created', 'summary', 'hosts', 'placement'},
                         set(told))
        host, _other = told['hosts']
        self.assertEqual(('answered', 'yes'), (host['state'], host['drain']))
        self.assertEqual([hosts.finding('vnic', test_fleet.A)],
                         host['findings'])

    def test_report_as_json_has_placement_by_class(self):
        self.put('a')
        self.put('b')
        told = self.json()
        for host in told['hosts']:
            one, = host['placement']
            self.assertEqual((0, 2, 2), (
                one['class'], one['guests'], len(one['instances'])))
            self.assertEqual({'yes': [0], 'unknown': [], 'no': []},
                             host['destinations'])
            self.assertNotIn('capabilities', host)
        self.assertEqual(['a', 'b'], told['placement']['hosts'][0]['hosts'])

    def test_page_needs_no_other_files(self):
        self.put('a')
        page = self.html()
        self.assertEqual([], re.findall(r'\s(?:src|href)=', page))
        self.assertNotIn('url(', page)
        self.assertEqual(2, page.count('<script'))

    def test_hostile_name_does_not_become_markup(self):
        hosts.write(self.directory, 'b', hosts.registered(hosts.checks()), {
            'rc': 1, 'stdout': '', 'stderr': HOSTILE})
        self.put('a', hosts.finding(
            'vnic', HOSTILE, domain=HOSTILE, device=HOSTILE),
            notes=[HOSTILE])
        page = self.html()
        self.assertEqual(2, page.count('<script'))
        self.assertEqual(2, page.count('</script'))
        self.assertNotIn('<!--', page)
        data = json.loads(re.search(
            '<script id="data"[^>]*>(.*)</script>', page)[1])
        self.assertIn(HOSTILE, data['strings'])
        self.assertNotIn(html.escape(HOSTILE), data['strings'])

    @hypothesis.settings(
        max_examples=12,
        suppress_health_check=[*hypothesis.HealthCheck])
    @hypothesis.given(strategies.data())
    def test_any_answer_of_a_host_stays_that_host(self, data):
        """A value of an answer is replaced, or the bytes of a file."""
        self.put('b')
        answers = [hosts.checks(), hosts.preflight(
            'a', [hosts.finding('vnic', test_fleet.A)])]
        answer = data.draw(strategies.sampled_from(answers))
        while True:
            keys = [*answer] if isinstance(answer, dict) else [
                *range(len(answer))]
            key = data.draw(strategies.sampled_from(keys))
            if not answer[key] or not isinstance(answer[key], (dict, list)):
                break
            if data.draw(strategies.booleans()):
                break
            answer = answer[key]
        answer[key] = data.draw(JSON)
        hosts.write(self.directory, 'a', *map(hosts.registered, answers))
        path = self.directory / 'a.json'
        file = path.read_bytes()
        place = data.draw(strategies.integers(0, len(file)))
        path.write_bytes(file[:place] + data.draw(strategies.one_of(
            strategies.just(b''), strategies.binary(max_size=2)))
            + file[place:])
        out = self.place / 'report.json'
        ran = self.run_report('--json', str(out), '--html',
                              str(self.place / 'report.html'))
        self.assertEqual('', ran.err)
        self.assertIn(ran.code, (0, 1, 2))
        whole = json.loads(out.read_text(), parse_constant=self.fail)
        # whether it can be drained depends on the other host
        self.assertEqual([('b', 'answered', [], [])], [
            (host['host'], host['state'], host['errors'], host['findings'])
            for host in whole['hosts'] if host['host'] != 'a'])

    def test_repeated_text_is_stored_once(self):
        self.put('a', *(hosts.finding('vnic', base.uuid(number))
                        for number in range(50)))
        self.assertEqual(1, self.html().count('driver/@queues'))


class TestWithoutNova(test_fleet.FleetTestCase):
    """Nova is not installed where Ansible runs."""

    def run_command(self, *arguments):
        return subprocess.run(
            [sys.executable, '-c', textwrap.dedent('''
                import sys
                sys.modules['nova'] = None
                from nova_migfix.cmd import status
                sys.exit(status.main(sys.argv[1:]))
                '''), *arguments],
            capture_output=True, text=True, timeout=60)

    def test_report_works_without_nova(self):
        self.put('a')
        self.put('b')
        done = self.run_command('report', str(self.directory))
        self.assertEqual((0, ''), (done.returncode, done.stderr))

    def test_other_commands_without_nova_say_where_to_run_them(self):
        done = self.run_command('preflight')
        self.assertEqual(255, done.returncode)
        self.assertIn('run this command in the Python environment of '
                      'nova-compute', done.stderr)
        self.assertNotIn('Traceback', done.stderr)
