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

"""What the QEMU of this machine makes of policies.

Each is put where GnuTLS looks for it, in a mount namespace: the machine's own
is left alone.
"""

import json
import os
import pathlib
import subprocess
import sys

import ddt
import fixtures
import testtools

from nova_migfix.tests import policies
from nova_migfix.tls import lint
from nova_migfix.tls import probe
from nova_migfix.tls import qmp

# Seconds, for a command that is to take less than two.
_LIMIT = 60

# Gives the machine another /etc/gnutls, a link to a directory that may be
# changed later, and runs what it is told.
_ENTER = '''
mount -t overlay -o "lowerdir=$1:/etc" overlay /etc && shift && exec "$@"
'''

_CHANGED_LATER = '''
import pathlib, shutil, sys
from nova_migfix.tls import probe
with probe.listening(probe.find_qemu(), probe.find_user()) as address:
    shutil.copy(*sys.argv[1:])
    print(probe.handshake(address).version)
'''


class Etc(fixtures.Fixture):
    """An /etc with a policy of ours, for who enters."""

    def _setUp(self):
        root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        root.chmod(0o755)
        self._above = root / 'etc'
        self._above.mkdir()
        (root / 'gnutls').mkdir()
        (self._above / 'gnutls').symlink_to(root / 'gnutls')
        self.file = root / 'gnutls' / 'config'

    def put(self, name, mode=0o644):
        self.file.write_bytes(policies.path(name).read_bytes())
        self.file.chmod(mode)

    def entered(self):
        """The beginning of a command that sees it."""
        return ['unshare', '--mount', 'sh', '-c', _ENTER, 'sh', self._above]

    def run(self, *command):
        return subprocess.run([*self.entered(), *command],
                              capture_output=True, text=True, timeout=_LIMIT)

    def probe(self, *arguments):
        """Run the command; returns what it found."""
        done = self.run(sys.executable, '-m', 'nova_migfix.cmd.tls', 'probe',
                        '--json', *arguments)
        return json.loads(done.stdout or f'"{done.stderr}"')


@ddt.ddt
class ProbeTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        try:
            self.qemu = probe.find_qemu()
        except qmp.QemuError as error:
            self.skipTest(str(error))
        if lint.builtin_priority(self.qemu) != lint.NORMAL:
            self.skipTest(f'{self.qemu} was not built with NORMAL')
        self.etc = self.useFixture(Etc())
        done = self.etc.run('true')
        if done.returncode:
            self.skipTest(f'no mount namespace of our own: {done.stderr}')

    def assertNegotiated(self, expected, found):
        self.assertEqual((expected.version, expected.cipher),
                         (found['version'], found['cipher']), found)

    @ddt.data(*policies.EXPECTED)
    def test_policy(self, name):
        self.etc.put(name)
        self.assertNegotiated(policies.EXPECTED[name], self.etc.probe())

    def test_no_file(self):
        self.assertNegotiated(policies.EXPECTED['none'], self.etc.probe())

    def test_a_file_that_qemus_user_cannot_read(self):
        if os.geteuid() or probe.find_user() == 'root':
            self.skipTest('needs root, and a user that guests run as')
        self.etc.put('disabled-version', 0o600)
        self.assertNegotiated(policies.EXPECTED['none'], self.etc.probe())
        # and who does not ask as that user is told what is not so
        self.assertNegotiated(policies.EXPECTED['disabled-version'],
                              self.etc.probe('--user', 'root'))

    def test_a_file_that_comes_when_qemu_runs(self):
        done = self.etc.run(
            sys.executable, '-c', _CHANGED_LATER,
            policies.path('disabled-version'), self.etc.file)
        self.assertEqual('TLSv1.3', done.stdout.strip(), done.stderr)
        self.assertNegotiated(policies.EXPECTED['disabled-version'],
                              self.etc.probe())

    def test_a_priority_of_libvirt(self):
        self.assertNegotiated(
            policies.EXPECTED['disabled-version'],
            self.etc.probe('--priority', 'NORMAL:-VERS-TLS1.3'))

    def test_certificates_that_are_none(self):
        found = self.etc.probe('--creds', str(self.etc.file.parent))
        self.assertEqual('no session', found['verdict'])
        self.assertIn('ca-cert.pem', found['error'])
