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

Both load a copy of the machine's GnuTLS that changes keys after 2^16 records
instead of 2^24: the code that runs is the library's own. The copy is made for
the test and goes with it.
"""

import contextlib
import os
import pathlib
import re
import subprocess
import time

import fixtures
import testtools

from nova_migfix.tests.functional.tls import test_probe
from nova_migfix.tls import audit
from nova_migfix.tls import certificates
from nova_migfix.tls import policy
from nova_migfix.tls import probe
from nova_migfix.tls import qmp
from nova_migfix.tls import rekey

MIB = 1 << 20

# Of the guest; all of it is sent, in three changes of keys with that copy.
_MEMORY = 400 * MIB
# Bytes a second: GnuTLS takes no more than 8 changes of keys in one.
_BANDWIDTH = 200 * MIB
# Seconds until a migration has ended, one way or the other.
_LIMIT = 60

# On x86-64: and $0xffffff,%eax; cmp $0xfffffd,%rax
_COUNTS = re.compile(rb'\x25\xff\xff\xff\x00\x48\x3d\xfd\xff\xff\x00')
_SOONER = b'\x25\xff\xff\x00\x00\x48\x3d\xfd\xff\x00\x00'


class EagerGnutls(fixtures.Fixture):
    """A copy of the GnuTLS that QEMU loads; *found* if it could be made."""

    def __init__(self, library):
        self._library = pathlib.Path(library)

    def _setUp(self):
        content = self._library.read_bytes()
        self.found = len(_COUNTS.findall(content)) == 1
        self.directory = self.useFixture(fixtures.TempDir()).path
        path = pathlib.Path(self.directory, self._library.name)
        path.write_bytes(_COUNTS.sub(_SOONER, content))


class RekeyTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        try:
            self.qemu = probe.find_qemu()
        except qmp.QemuError as error:
            self.skipTest(str(error))
        self.etc = self.useFixture(test_probe.Etc())
        done = self.etc.run('true')
        if done.returncode:
            self.skipTest(f'no mount namespace of our own: {done.stderr}')
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        certificates.write(self.directory / 'certificates')
        self.gnutls = self.useFixture(EagerGnutls(self.library()))
        if not self.gnutls.found:
            self.skipTest('the limit is not found in this GnuTLS')

    def library(self):
        """Path of the GnuTLS that QEMU loads; skips if it is mended."""
        out = subprocess.run(['ldd', self.qemu], capture_output=True,
                             text=True, check=True).stdout
        match = re.search(r'libgnutls\S* => (\S+)', out)
        if not match:
            self.skipTest(f'{self.qemu} does not load GnuTLS by itself')
        version = audit.version(pathlib.Path(match[1]))
        if version is None or rekey.is_fixed(version):
            self.skipTest(f'GnuTLS {version} changes keys safely')
        return match[1]

    def start(self, end, *arguments):
        """Start a QEMU; returns it and its monitor."""
        path = self.directory / f'{end}.monitor'
        process = subprocess.Popen(
            [*self.etc.entered(), 'env',
             f'LD_LIBRARY_PATH={self.gnutls.directory}', self.qemu,
             '-accel', 'tcg', '-nodefaults', '-display', 'none', '-S',
             '-machine', 'pc,memory-backend=memory', '-m', f'{_MEMORY}B',
             '-object', f'tls-creds-x509,id=tls0,endpoint={end},dir='
             f'{self.directory}/certificates,verify-peer=off',
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
            'client', '-object', 'memory-backend-file,id=memory,size='
            f'{_MEMORY},mem-path={memory},share=off')

    def destination(self):
        return self.start(
            'server', '-incoming', 'defer', '-object',
            f'memory-backend-ram,id=memory,size={_MEMORY}')

    def migrate(self, *capabilities, meanwhile=lambda source: None):
        """Migrate; returns the source's process and the last status."""
        process, source = self.source()
        _, destination = self.destination()
        for monitor in (source, destination):
            monitor.ask('migrate-set-capabilities', capabilities=[
                {'capability': name, 'state': True}
                for name in capabilities])
            monitor.ask('migrate-set-parameters', **{
                'tls-creds': 'tls0', 'tls-hostname': 'localhost',
                'max-bandwidth': _BANDWIDTH})
        destination.ask('migrate-incoming', uri='tcp:127.0.0.1:0')
        address, = destination.ask('query-migrate')['socket-address']
        source.ask('migrate', uri=f'tcp:127.0.0.1:{address["port"]}')
        meanwhile(source)
        return process, self.ended(source)

    def ended(self, source):
        deadline = time.monotonic() + _LIMIT
        with contextlib.suppress(qmp.QemuError):
            while time.monotonic() < deadline:
                status = source.ask('query-migrate')['status']
                if status in ('completed', 'failed', 'postcopy-paused'):
                    return status
                time.sleep(0.1)
            self.fail(f'{status} after {_LIMIT} s')
        return 'gone'

    def give_policy_to_destination(self):
        """Both see it, but only who listens goes by it alone."""
        self.etc.file.write_text(policy.merge(
            policy.FAMILIES['debian'], policy.TLS12, ''))


class PreCopyTestCase(RekeyTestCase):
    """With a return path, as libvirt has it."""

    def test_the_source_crashes(self):
        process, status = self.migrate('return-path')
        self.assertEqual('gone', status)
        self.assertEqual(-11, process.wait())       # SIGSEGV

    def test_with_a_policy_it_arrives(self):
        self.give_policy_to_destination()
        _, status = self.migrate('return-path')
        self.assertEqual('completed', status)

    def test_without_a_return_path_it_arrives(self):
        _, status = self.migrate()
        self.assertEqual('completed', status)
