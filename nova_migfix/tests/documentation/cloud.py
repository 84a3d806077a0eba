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

"""Pages for administrators, on Nova's in-process cloud."""

import time

import fixtures

from nova_migfix.tests.documentation import client
from nova_migfix.tests.functional import base

_FINAL = ('completed', 'cancelled', 'failed', 'error')


class CloudTestCase(base.MigrationTestCase):
    """Run the ``openstack`` and ``export`` commands of pages."""

    def setUp(self):
        super().setUp()
        self.boot()
        self.client = self.useFixture(client.Client(self.api_fixture))

    def do(self, command, answer=''):
        """Run a command that must succeed; return its output."""
        if command.startswith('export '):
            name, _, value = command.removeprefix('export ').partition('=')
            self.useFixture(fixtures.EnvironmentVariable(name, value))
            return ''
        ran = self.client.run(command, answer)
        self.assertEqual((0, ''), (ran.code, ran.err), command)
        return ran.out

    def is_over(self):
        """Wait until the migration is over; return its status."""
        found = None
        for _attempt in range(240):
            self.server = self.api.get_server(self.server['id'])
            for record in self.migrations():
                found = record['status']
            if found in _FINAL and not self.server['OS-EXT-STS:task_state']:
                return found
            time.sleep(0.5)
        self.fail(f'The migration is {found}, the server {self.server}')
