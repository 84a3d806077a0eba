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

"""The fault itself, between two QEMUs of this machine, in seconds.

Both load a GnuTLS that changes keys sooner, see eager_gnutls. Each has an /etc
of its own: a policy is the destination's only.
"""

import os
import pathlib
import signal
import subprocess
import time

import fixtures

from nova_migfix.tests import eager_gnutls
from nova_migfix.tests.functional.tls import base
from nova_migfix.tests.functional.tls import busy_guest
from nova_migfix.tls import certificates
from nova_migfix.tls import policy
from nova_migfix.tls import qmp

MIB = 1 << 20

# Of the guest; all of it is sent, in three changes of keys with that library.
_MEMORY = 400 * MIB
# Bytes of it until the first: 2 records for a page of 4 KiB.
_PER_REKEY = eager_gnutls.RECORDS // 2 * 4096
# Bytes a second: GnuTLS takes no more than 8 changes of keys in one.
_BANDWIDTH = 200 * MIB
# Seconds until a migration has ended, one way or the other.
_LIMIT = 60

_ENDED = ('completed', 'failed', 'postcopy-paused')


class RekeyTestCase(base.QemuTestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        (self.directory / 'kernel').write_bytes(busy_guest.kernel(_MEMORY))
        certificates.write(self.directory / 'certificates')
        try:
            eager_gnutls.make(self.qemu, self.directory)
        except eager_gnutls.CannotBeMade as error:
            self.skipTest(str(error))
        self.etc_of_destination = self.useFixture(base.Etc())

    def give_policy_to_destination(self):
        self.etc_of_destination.file.write_text(policy.merge(
            policy.FAMILIES['debian'], policy.TLS12, ''))

    def start(self, etc, end, *arguments):
        """Start a QEMU; returns it and its monitor."""
        path = self.directory / f'{end}.monitor'
        process = subprocess.Popen(
            [*etc.entered(), 'env', f'LD_LIBRARY_PATH={self.directory}',
             self.qemu, '-accel', 'tcg', '-nodefaults', '-display', 'none',
             '-machine', 'pc,memory-backend=memory', '-m', f'{_MEMORY}B',
             '-kernel', self.directory / 'kernel', '-object',
             f'tls-creds-x509,id=tls0,endpoint={end},verify-peer=off,'
             f'dir={self.directory}/certificates',
             '-qmp', f'unix:{path},server=on,wait=off', *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE)
        self.addCleanup(process.wait)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.kill)
        monitor = qmp.Monitor(path, process)
        self.addCleanup(monitor.close)
        return process, monitor

    def source(self):
        memory = self.directory / 'memory'
        memory.write_bytes(os.urandom(MIB) * (_MEMORY // MIB))
        return self.start(
            self.etc, 'client', '-S', '-object', 'memory-backend-file,'
            f'id=memory,size={_MEMORY},mem-path={memory},share=off')

    def destination(self):
        return self.start(
            self.etc_of_destination, 'server', '-incoming', 'defer',
            '-object', f'memory-backend-ram,id=memory,size={_MEMORY}')

    def connect(self, *capabilities):
        """Begin to migrate; returns the source's process and monitor."""
        process, source = self.source()
        _, destination = self.destination()
        for monitor in (source, destination):
            self.allow(monitor, capabilities)
            monitor.ask('migrate-set-parameters', **{
                'tls-creds': 'tls0', 'tls-hostname': 'localhost',
                'max-bandwidth': _BANDWIDTH})
        destination.ask('migrate-incoming', uri='tcp:127.0.0.1:0')
        address, = destination.ask('query-migrate')['socket-address']
        source.ask('migrate', uri=f'tcp:127.0.0.1:{address["port"]}')
        return process, source

    def allow(self, monitor, capabilities):
        try:
            monitor.ask('migrate-set-capabilities', capabilities=[
                {'capability': name, 'state': True}
                for name in capabilities])
        except qmp.QemuError as error:
            # such as no userfaultfd
            self.skipTest(str(error))

    def wait(self, source, *wanted):
        """Wait until it is one of these; returns all that is known."""
        deadline = time.monotonic() + _LIMIT
        while time.monotonic() < deadline:
            found = source.ask('query-migrate')
            if found['status'] in wanted:
                return found
            time.sleep(0.02)
        self.fail(f'{found} after {_LIMIT} s')


class PreCopyTestCase(RekeyTestCase):
    """With a return path, as libvirt has it; the guest is paused."""

    def test_the_source_crashes(self):
        process, source = self.connect('return-path')
        self.assertRaises(qmp.QemuError, self.wait, source, *_ENDED)
        self.assertEqual(-signal.SIGSEGV, process.wait())

    def test_with_a_policy_on_the_destination_it_arrives(self):
        self.give_policy_to_destination()
        _, source = self.connect('return-path')
        self.assertEqual('completed', self.wait(source, *_ENDED)['status'])

    def test_without_a_return_path_it_arrives(self):
        _, source = self.connect()
        self.assertEqual('completed', self.wait(source, *_ENDED)['status'])


class PostCopyTestCase(RekeyTestCase):
    """The guest runs, and goes on on the destination at once."""

    def migrate(self):
        _, source = self.connect('postcopy-ram')
        source.ask('cont')
        self.wait(source, 'active')
        source.ask('migrate-start-postcopy')
        return self.wait(source, *_ENDED)

    def test_it_fails_at_the_first_change_of_keys(self):
        found = self.migrate()
        self.assertEqual('postcopy-paused', found['status'])
        self.assertEqual(1, found['ram']['transferred'] // _PER_REKEY)

    def test_with_a_policy_on_the_destination_it_arrives(self):
        self.give_policy_to_destination()
        self.assertEqual('completed', self.migrate()['status'])
