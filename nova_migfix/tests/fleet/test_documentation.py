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

"""The documented commands run and have the documented effect."""

import json
import subprocess
import sys

import testtools

from nova_migfix.tests import etc
from nova_migfix.tests.fleet import browser
from nova_migfix.tests.fleet import playbook
from nova_migfix.tests import pages

PAGE = 'status/fleet.rst'
SNIPPET = 'kolla/config/nova/nova-compute.conf'

# The container is this machine.
_ENGINE = '#!/bin/sh\nshift 2; exec "$@"\n'


class DocumentationTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.etc = self.useFixture(etc.WritableEtc())
        self.etc.require(self)
        for directory in ('kolla', 'nova'):
            (self.etc.above / directory).mkdir()
        (self.etc.above / 'nova/nova.conf').write_text(
            '[DEFAULT]\nhost = compute1\n')
        self.site = self.useFixture(playbook.Site())
        self.site.program('docker', _ENGINE)
        (self.site.path / 'nova-migfix').symlink_to(pages.CHECKOUT)
        (self.site.path / 'multinode').write_text(
            '[compute]\ncompute1 ansible_connection=local '
            f'ansible_python_interpreter={sys.executable}\n')

    def do(self, command):
        if 'screenshot' in command and not browser.DRIVER:
            self.skipTest('no chromedriver: see bindep.txt')
        done = subprocess.run(
            [*self.etc.entered(), 'sh', '-c', command], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=self.site.path, env=self.site.environment, timeout=300)
        self.assertEqual(0, done.returncode, f'{command}: {done.stdout}')

    def test_commands_of_the_fleet_page_succeed(self):
        (report, _), (install, _), (remove, _), (picture, _) = pages.commands(
            PAGE)
        self.do(report)
        host, = json.loads((
            self.site.path / 'nova-migfix-report.json').read_text())['hosts']
        # this machine has neither libvirt nor a guest
        self.assertEqual('failed', host['state'])
        self.assertIn('Release of Nova',
                      [check['check'] for check in host['checks']])
        self.do(install)
        self.assertIn('compute_driver = migfix.LibvirtDriver',
                      (self.etc.above / SNIPPET).read_text())
        self.do(remove)
        self.assertFalse((self.etc.above / SNIPPET).exists())
        self.do(picture)
        self.assertEqual(b'\x89PNG', (
            self.site.path / 'fleet.png').read_bytes()[:4])

    def test_variables_of_the_page_exist_in_the_role(self):
        text = (pages.CHECKOUT / 'doc/source' / PAGE).read_text()
        defaults = (playbook.PLAYBOOKS /
                    'roles/nova_migfix/defaults/main.yml').read_text()
        shown = {word.partition('=')[0] for word in text.split()
                 if word.startswith('nova_migfix_') and '=' in word}
        self.assertIn('nova_migfix_bin', shown)
        for name in shown:
            self.assertIn(f'\n{name}:', defaults)
