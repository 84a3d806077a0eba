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

"""``ansible/report.yml`` reports hosts, also those that do not answer."""

import json

import testtools

from nova_migfix.tests import etc
from nova_migfix.tests.fleet import playbook
from nova_migfix.tests import hosts
from nova_migfix.tests.unit.status import test_fleet


class ReportTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.site = self.useFixture(playbook.Site())

    def ask(self, *arguments, **variables):
        ran = self.site.run('report.yml', *arguments, **variables)
        self.assertEqual(0, ran.code, ran.out)
        self.assertEqual({0}, set(ran.changed.values()), ran.out)
        self.assertEqual([], self.left())
        self.out = ran.out
        path = self.site.path / 'nova-migfix-report.json'
        return {host['host']: host
                for host in json.loads(path.read_text())['hosts']}

    def left(self):
        """Return the temporary directories that the playbook left."""
        return [*self.site.temporary.glob('nova-migfix-*')]

    def test_report_merges_hosts(self):
        self.site.container('with', hosts.checks(), hosts.preflight(
            'with', [hosts.finding('vnic', test_fleet.A)], 7))
        self.site.container(
            'without', hosts.checks(False), hosts.preflight('without', [
                hosts.finding('vnic', test_fleet.B, False)], 9, False))
        self.site.write_inventory(
            a={'nova_migfix_container': 'with'},
            b={'nova_migfix_container': 'without',
               'nova_migfix_container_engine': 'podman'})
        told = self.ask()
        self.assertEqual(
            [('a', 'with', 'yes', 7), ('b', 'without', 'no', 9)],
            [(name, host['name'], host['drain'], host['guests'])
             for name, host in told.items()])
        page = self.site.path / 'nova-migfix-report.html'
        self.assertIn(test_fleet.A, page.read_text())
        self.assertIn(str(page), self.out)

    def test_engine_is_that_of_kolla_ansible(self):
        kolla = self.useFixture(etc.WritableEtc())
        kolla.require(self)
        (kolla.above / 'kolla').mkdir()
        (kolla.above / 'kolla/globals.yml').write_text(
            '---\nkolla_container_engine: podman\n')
        self.site.program('docker', '#!/bin/sh\nexit 1\n')
        self.site.container('a', hosts.checks(), hosts.preflight('a', []))
        self.site.write_inventory(a={'nova_migfix_container': 'a'})
        found = self.ask(within=kolla.entered())
        self.assertEqual('answered', found['a']['state'])

    def test_report_shows_hosts_without_an_answer(self):
        slow = self.site.path / 'slow'
        slow.mkdir()
        self.site.program('../slow/nova-migfix-status',
                          '#!/bin/sh\nexec sleep 60\n')
        self.site.container('well', hosts.checks(),
                            hosts.preflight('well', []))
        self.site.write_inventory(
            well={'nova_migfix_container': 'well'},
            # no service listens
            away={'ansible_connection': 'ssh', 'ansible_host': '127.0.0.1',
                  'ansible_port': 1},
            none={'nova_migfix_container': 'none'},
            slow={'nova_migfix_container_engine': '',
                  'nova_migfix_bin': str(slow), 'nova_migfix_timeout': 2},
            bare={'nova_migfix_container_engine': '',
                  'nova_migfix_bin': str(self.site.path)})
        told = self.ask()
        self.assertEqual(
            {'well': 'answered', 'away': 'unreachable', 'none': 'failed',
             'slow': 'failed', 'bare': 'failed'},
            {name: host['state'] for name, host in told.items()})
        for name, said in (
                ('away', 'Connection refused'),
                ('none', 'exit code 1: Error response from daemon: '
                         'No such container: none'),
                ('slow', 'Timed out after 2 second(s)'),
                ('bare', 'Error executing command')):
            self.assertIn(said, ''.join(told[name]['why']))
            self.assertEqual('unknown', told[name]['drain'])

    def test_report_shows_only_hosts_of_the_limit(self):
        self.site.container('a', hosts.checks(), hosts.preflight('a', []))
        self.site.write_inventory(a={'nova_migfix_container': 'a'}, b={})
        self.assertEqual(['a'], list(self.ask('--limit', 'a')))

    def test_bad_answer_of_a_host_stays_that_host(self):
        self.site.container('well', hosts.checks(),
                            hosts.preflight('well', []))
        for name, number in (('infinite', float('inf')),
                             ('long', 10 ** 400), ('none', float('nan'))):
            self.site.container(name, hosts.checks(), {
                **hosts.preflight(name, []), 'seconds': number})
        self.site.container('bytes', hosts.checks())
        (self.site.containers / 'bytes/preflight.json').write_bytes(b'"\xff')
        self.site.write_inventory(**{
            name: {'nova_migfix_container': name}
            for name in ('well', 'infinite', 'long', 'none', 'bytes')})
        told = self.ask()
        self.assertEqual('answered', told.pop('well')['state'])
        self.assertEqual({'failed'}, {host['state'] for host in told.values()})

    def test_report_is_written_to_the_given_path(self):
        self.site.container('a', hosts.checks(), hosts.preflight('a', []))
        self.site.write_inventory(a={'nova_migfix_container': 'a'})
        ran = self.site.run('report.yml', nova_migfix_report=str(
            self.site.path / 'no/such/directory/report'))
        self.assertNotEqual(0, ran.code)
        self.assertIn('cannot be written', ran.out)
        self.assertEqual([], self.left())
        self.ask(nova_migfix_report=str(self.site.path / 'nova-migfix-report'))
