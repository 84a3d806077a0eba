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

"""Replace /etc in a mount namespace; the machine's own is not changed."""

import json
import pathlib
import subprocess
import sys

import fixtures

from nova_migfix.tests import policies

# Time limit in seconds, for a command that takes less than two.
_LIMIT = 120

# Mounts the overlay on /etc and runs a command.
_ENTER = '''
mount -t overlay -o "$1" overlay /etc && shift && exec "$@"
'''


class WritableEtc(fixtures.Fixture):
    """A writable /etc for commands that run one after the other."""

    def _setUp(self):
        self.root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.root.chmod(0o755)
        self.above = self.root / 'etc'
        for directory in (self.above, self.root / 'work'):
            directory.mkdir()

    @property
    def options(self):
        """The mount options of the overlay file system for /etc."""
        return (f'lowerdir=/etc,upperdir={self.above},'
                f'workdir={self.root}/work')

    def require(self, test):
        """Skip a test if this process cannot make a mount namespace."""
        done = self.run('true')
        if done.returncode:
            test.skipTest(f'no mount namespace of our own: {done.stderr}')

    def entered(self):
        """Return the beginning of a command line that runs with this /etc."""
        return ['unshare', '--mount', 'sh', '-c', _ENTER, 'sh', self.options]

    def run(self, *command, **popen):
        return subprocess.run([*self.entered(), *command], text=True,
                              capture_output=True, timeout=_LIMIT, **popen)


class Etc(WritableEtc):
    """An /etc with a GnuTLS policy that may change while commands run."""

    def _setUp(self):
        super()._setUp()
        gnutls = self.root / 'gnutls'
        gnutls.mkdir()
        (self.above / 'gnutls').symlink_to(gnutls)
        self.file = gnutls / 'config'

    @property
    def options(self):
        return f'lowerdir={self.above}:/etc'

    def put(self, name, mode=0o644):
        self.file.write_bytes(policies.path(name).read_bytes())
        self.file.chmod(mode)

    def probe(self, *arguments, **popen):
        """Run ``nova-migfix-tls probe``, and return what it prints."""
        done = self.run(sys.executable, '-m', 'nova_migfix.cmd.tls', 'probe',
                        '--json', *arguments, **popen)
        return json.loads(done.stdout or f'"{done.stderr}"')
