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

"""What the tests with the QEMU of this machine have in common.

Policies are put where GnuTLS looks for them, in a mount namespace: the
machine's own is left alone.
"""

import json
import pathlib
import subprocess
import sys

import fixtures
import testtools

from nova_migfix.tests import policies
from nova_migfix.tls import probe
from nova_migfix.tls import qmp

# Seconds, for a command that is to take less than two.
_LIMIT = 60

# Gives the machine another /etc/gnutls, a link to a directory that may be
# changed later, and runs what it is told.
_ENTER = '''
mount -t overlay -o "lowerdir=$1:/etc" overlay /etc && shift && exec "$@"
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


class QemuTestCase(testtools.TestCase):
    """Skips where there is no QEMU or no mount namespace of our own."""

    def setUp(self):
        super().setUp()
        try:
            self.qemu = probe.find_qemu()
        except qmp.QemuError as error:
            self.skipTest(str(error))
        self.etc = self.useFixture(Etc())
        done = self.etc.run('true')
        if done.returncode:
            self.skipTest(f'no mount namespace of our own: {done.stderr}')
