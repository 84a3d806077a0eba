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

"""The runbook for a migration that has failed."""

import shutil

import fixtures
import testtools

from nova_migfix.status import explain
from nova_migfix.tests.documentation import cloud
from nova_migfix.tests.documentation import machine
from nova_migfix.tests.documentation import status
from nova_migfix.tests.functional import test_rollback_state
from nova_migfix.tests import pages
from nova_migfix.tests.unit.status import base
from nova_migfix.tests.unit.status import test_explain

PAGE = 'admin/diagnose.rst'


class FailedMigrationTestCase(cloud.CloudTestCase):
    """QEMU on the destination ends the migration."""

    def _migrate_stub(self, domain, destination, params, flags):
        test_rollback_state.fail(self.source_domain())

    def migrate(self):
        self.api.post_server_action(self.server['id'], {
            'os-migrateLive': {'host': 'dest', 'block_migration': 'auto'}})
        self.assertEqual('failed', self.is_over())

    def test_diagnose_commands_show_the_failed_migration(self):
        self.migrate()
        version, server, records, events, event = (
            command for command, _ in pages.commands(
                PAGE, 'Nova API', server=self.server['id'],
                request_id=self.request()))
        self.do(version)
        self.assertIn('ACTIVE', self.do(server))
        self.assertIn('failed', self.do(records))
        self.assertIn(self.request(), self.do(events))
        self.assertIn('live_migration', self.do(event))

    def request(self):
        """Return the ID of the failed request."""
        return self.api.get_instance_actions(
            self.server['id'])[0]['request_id']

    def test_commands_of_the_rollback_state_page_succeed(self):
        self.migrate()
        self.do('export OS_COMPUTE_API_VERSION=2.84')
        for command, _ in pages.commands(
                'fixes/rollback_state.rst', server=self.server['id'],
                request_id=self.request()):
            self.assertIn(self.request(), self.do(command))


class LogsTestCase(testtools.TestCase):

    def commands(self, section,
                 request='req-a6ede1b8-6d44-4001-9687-1634efe5a281'):
        return [command for command, _ in pages.commands(
            PAGE, section, server=test_explain.QUEUES, domain='test',
            request_id=request)]

    def test_explain_finds_the_fault_in_the_logs(self):
        commands = self.commands(
            'Logs', 'req-85000203-a8c9-4c0b-8876-d596b6927922')
        host = self.useFixture(status.Status())
        for command in commands[:2]:
            ran = host.run(command)
            self.assertEqual(2, ran.code)
            self.assertIn('vnic-queues', ran.out)

    def test_logs_elsewhere_are_read_from_standard_input(self):
        host = self.useFixture(status.Status())
        for command in self.commands('Logs elsewhere'):
            _source, explained = command.split(' | ')
            with open(base.DATA / 'instance-00000001.log') as log, \
                    fixtures.MonkeyPatch('sys.stdin', log):
                ran = host.run(explained.removeprefix(
                    'docker exec -i nova_compute '))
            self.assertEqual(2, ran.code)
            self.assertIn('vnic-queues', ran.out)

    def host(self):
        """Return a host with the logs of the tests of ``explain``."""
        host = self.useFixture(machine.Host('compute1'))
        try:
            host.run(['true'])
        except AssertionError as error:
            self.skipTest(f'no mount namespace of our own: {error}')
        for name, target in (('nova-compute.log', 'nova/nova-compute.log'),
                             ('instance-00000001.log',
                              'libvirt/qemu/test.log')):
            path = host.root / 'log' / target
            path.parent.mkdir(parents=True)
            shutil.copy(base.DATA / name, path)
        (host.root / 'etc/nova').mkdir()
        (host.root / 'etc/nova/nova.conf').write_text('[DEFAULT]\n')
        return host

    def test_log_commands_find_the_fault(self):
        _explain, _request, *commands = self.commands('Logs')
        nova, qemu = self.host().run(commands)
        self.assertIn('Pre live migration failed', nova)
        self.assertIn('load of migration failed', qemu)

    def test_collected_files_are_those_of_the_runbook(self):
        if not shutil.which('virsh'):
            self.skipTest('libvirt-clients is not installed')
        self.useFixture(fixtures.EnvironmentVariable(
            'VIRSH_DEFAULT_CONNECT_URI', 'test:///default'))
        host = self.host()
        host.run(self.commands('Unknown faults'))
        kept = host.nova / f'migration-{test_explain.QUEUES}'
        self.assertEqual(
            {'nova-compute.log', 'test.log', 'nova.conf', 'test.xml'},
            {path.name for path in kept.iterdir()})
        self.assertIn('<domain', (kept / 'test.xml').read_text())
        # the remedy that explain prints with *unknown*
        self.assertIn('both nova.conf', explain.COLLECT)
