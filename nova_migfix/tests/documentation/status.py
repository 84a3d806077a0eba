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

"""``nova-migfix-status`` as pages show it, on a fake host."""

import shlex

import fixtures
from oslo_concurrency import processutils

from nova_migfix.status import endpoint
from nova_migfix.status import explain
from nova_migfix.status import finders
from nova_migfix.status import remote
from nova_migfix.status import results
from nova_migfix.tests.unit.status import base
from nova_migfix.transport import transfer

PROGRAM = 'nova-migfix-status'


class Status(fixtures.Fixture):
    """The command, on the guests and the logs of its unit tests."""

    def _setUp(self):
        for module, name, replacement in (
                (explain, 'QEMU_LOGS', base.DATA),
                (endpoint, '_ssh_destination', self._no_ssh),
                (transfer, 'execute', self._no_ssh),
                (remote, 'connect', self._no_libvirt)):
            self.useFixture(fixtures.MonkeyPatch(
                f'{module.__name__}.{name}', replacement))
        finders._file_system.cache_clear()
        self._host = self.useFixture(base.Hypervisor())
        self._host.command.write(self._host.text('nova.conf').replace(
            '[DEFAULT]', f'[DEFAULT]\nlog_file = {base.DATA}/nova-compute.log')
        )

    @staticmethod
    def _no_ssh(*_args, **_kwargs):
        raise processutils.ProcessExecutionError

    @staticmethod
    def _no_libvirt(_uri):
        return remote.Connected(None, results.warning('no connection'))

    def run(self, command):
        """Run a command as it is shown; return its result."""
        program, *arguments = shlex.split(command)
        if program != PROGRAM:
            raise ValueError(command)
        return self._host.run(*arguments)
