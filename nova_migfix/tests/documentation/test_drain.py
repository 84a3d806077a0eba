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

"""The runbook for draining a host.

The real client runs it on Nova's in-process cloud with two computes.
"""

import time

import ddt
from nova.tests.fixtures import libvirt as fakelibvirt
import testtools

from nova_migfix.tests.documentation import cloud
from nova_migfix.tests.documentation import status
from nova_migfix.tests import pages
from nova_migfix.tests.unit.status import base as status_base


# VIR_ERR_OPERATION_ABORTED
ABORTED = 78


class DrainTestCase(cloud.CloudTestCase):

    def setUp(self):
        super().setUp()
        self.stays = False

    def _migrate_stub(self, domain, destination, params, flags):
        source = self.source_domain()
        if not self.stays:
            super()._migrate_stub(domain, destination, params, flags)
            return
        source.abortJob = lambda: setattr(self, 'stays', False)
        while self.stays:
            time.sleep(0.1)
        source._job_type = fakelibvirt.VIR_DOMAIN_JOB_CANCELLED
        raise fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'canceled by client',
            error_code=ABORTED)

    def shown(self, section, migration=''):
        return [command for command, _ in pages.commands(
            'admin/drain.rst', section, host='src', server=self.server['id'],
            destination='dest', migration=migration)
            if not command.startswith(status.PROGRAM)]

    def test_drain_commands_move_the_guest(self):
        self.do('export OS_COMPUTE_API_VERSION=2.80')
        disable, services, servers = self.shown('Preparation')
        self.do(disable)
        self.assertIn('disabled', self.do(services))
        self.assertIn(self.server['id'], self.do(servers))

        self.do(self.shown('Move')[0])
        self.assertEqual('completed', self.is_over())

        record, server, left, enable = self.shown('Afterwards')
        self.assertRegex(self.do(record), r'completed +\| dest|dest +\| compl')
        self.assertRegex(self.do(server), r':host +\| dest')
        self.assertEqual('', self.do(left).strip())
        self.do(enable)
        self.assertIn('enabled', self.do(services))

    def test_drain_commands_abort_a_migration(self):
        self.do('export OS_COMPUTE_API_VERSION=2.80')
        self.stays = True
        self.do(self.shown('Move')[0])
        self._wait_for_migration_status(self.server, ['running'])
        migration = self.migrations()[-1]['id']
        _migrate, running, watch, abort = self.shown('Move', migration)
        self.assertIn(self.server['id'], self.do(running))
        self.assertRegex(self.do(watch), rf'\| +{migration} \|.* running ')
        self.do(abort)
        self.assertEqual('cancelled', self.is_over())
        self.assertEqual('src', self.host())


@ddt.ddt
class DrainStatusTestCase(testtools.TestCase):

    @ddt.data(*(command for command, _ in pages.commands(
        'admin/drain.rst', host='compute1', server=status_base.uuid(2),
        destination='compute2', migration=1)
        if command.startswith(status.PROGRAM)))
    def test_status_commands_of_the_drain_page_succeed(self, command):
        ran = self.useFixture(status.Status()).run(command)
        self.assertIn(ran.code, (0, 1, 2), ran.err)
        self.assertIn('|', ran.out)
