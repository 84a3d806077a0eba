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

"""Run two QEMUs on this machine, and migrate between them over TLS."""

import os
import pathlib
import subprocess
import time

import fixtures

from nova_migfix.tls import certificates
from nova_migfix.tls import probe
from nova_migfix.tls import qmp

MIB = 1 << 20

#: the final states of a migration
ENDED = ('completed', 'failed', 'postcopy-paused')

# Time limit of a migration, in seconds.
_LIMIT = 120


class Pair(fixtures.Fixture):
    """A source with a paused guest, and a destination.

    :param memory: memory of the guest in bytes, without zero pages
    :param arguments: arguments for both QEMUs, such as the guest's kernel
    :param priority: TLS priority string of the destination; '' for QEMU's
        default
    :ivar source, destination: the monitors
    :ivar processes: the processes, by 'source' and 'destination'
    """

    def __init__(self, memory, arguments=(), priority=''):
        self._memory = memory
        self._arguments = arguments
        self._priority = priority
        self.processes = {}

    def _setUp(self):
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        certificates.write(self.directory / 'certificates')
        memory = self.directory / 'memory'
        memory.write_bytes(os.urandom(MIB) * (self._memory // MIB))
        self.source = self._start(
            'source', 'endpoint=client', '-S', '-object',
            'memory-backend-file,id=memory,share=off,'
            f'size={self._memory},mem-path={memory}')
        priority = f',priority={self._priority}' if self._priority else ''
        self.destination = self._start(
            'destination', f'endpoint=server{priority}', '-incoming',
            'defer', '-object',
            f'memory-backend-ram,id=memory,size={self._memory}')

    def command(self, end):
        """Return the beginning of a command line, including the binary."""
        return [probe.find_qemu()]

    def _start(self, end, tls, *arguments):
        path = self.directory / f'{end}.monitor'
        process = self.processes[end] = subprocess.Popen(
            [*self.command(end), '-accel', 'tcg', '-nodefaults', '-display',
             'none', '-machine', 'pc,memory-backend=memory',
             '-m', f'{self._memory}B', '-object',
             f'tls-creds-x509,id=tls0,verify-peer=off,{tls},'
             f'dir={self.directory}/certificates',
             '-qmp', f'unix:{path},server=on,wait=off',
             *self._arguments, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE)
        self.addCleanup(process.wait)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.kill)
        monitor = qmp.Monitor(path, process)
        self.addCleanup(monitor.close)
        return monitor

    def migrate(self, *capabilities, bandwidth=1 << 40):
        """Start the migration.

        :param capabilities: migration capabilities to enable on both sides
        :param bandwidth: limit in bytes per second
        :raises qmp.QemuError: a QEMU does not support a capability
        """
        for monitor in (self.source, self.destination):
            monitor.ask('migrate-set-capabilities', capabilities=[
                {'capability': name, 'state': True}
                for name in capabilities])
            monitor.ask('migrate-set-parameters', **{
                'tls-creds': 'tls0', 'tls-hostname': 'localhost',
                'max-bandwidth': bandwidth})
        self.destination.ask('migrate-incoming', uri='tcp:127.0.0.1:0')
        address, = self.destination.ask('query-migrate')['socket-address']
        self.source.ask('migrate', uri=f'tcp:127.0.0.1:{address["port"]}')

    def wait(self, *wanted):
        """Wait until the migration is in one of the given states.

        :returns: the reply of the source to query-migrate
        :raises qmp.QemuError: the source has exited
        :raises TimeoutError: the migration did not reach them in 120 seconds
        """
        deadline = time.monotonic() + _LIMIT
        while time.monotonic() < deadline:
            found = self.source.ask('query-migrate')
            if found['status'] in wanted:
                return found
            time.sleep(0.02)
        raise TimeoutError(f'{found} after {_LIMIT} s')
