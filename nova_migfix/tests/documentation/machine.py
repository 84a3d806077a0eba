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

"""Hypervisors with their own directories, for shell commands.

Each is a mount namespace that lasts as long as its commands, with another
/etc, /var/lib/nova and /var/log: those of the machine are left alone.
"""

import os
import pathlib
import subprocess

import fixtures

# Seconds, for commands that take a few.
_LIMIT = 300

_MARK = '<<<next>>>'

# Mounts other directories and runs the given commands.
_ENTER = '''
mount -t overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/work" etc /etc &&
    mount -t tmpfs lib /var/lib && mkdir /var/lib/nova &&
    mount --bind "$1/nova" /var/lib/nova && mount --bind "$1/log" /var/log &&
    shift && exec "$@"
'''

# Connects to the only other host.
_SSH = '''#!/bin/sh
[ "$1" = {name} ] && shift && exec unshare --mount sh -c '{enter}' \
    sh {root} sh -c "$*"
'''


class Host(fixtures.Fixture):
    """A host with an ssh that leads to another one, its *peer*."""

    def __init__(self, name, peer=None):
        self.name = name
        self._peer = peer

    def _setUp(self):
        self.root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.root.chmod(0o755)
        for name in ('etc', 'work', 'log'):
            (self.root / name).mkdir()
        self.nova = self.root / 'nova'
        self.instances = self.nova / 'instances'
        self.base = self.instances / '_base'
        self.base.mkdir(parents=True)
        self._bin = self.root / 'bin'
        self._bin.mkdir()
        if self._peer:
            self.stand_in('ssh', _SSH.format(
                name=self._peer.name, enter=_ENTER, root=self._peer.root))

    def stand_in(self, name, text):
        """Provide a command that this machine lacks or has in another form."""
        path = self._bin / name
        path.write_text(text)
        path.chmod(0o755)

    def run(self, commands):
        """Run commands in one shell, each if the previous one succeeded.

        :returns: the output of each
        """
        script = '\n'.join(f'{command}\necho "{_MARK}"'
                           for command in commands)
        done = subprocess.run(
            ['unshare', '--mount', 'sh', '-c', _ENTER, 'sh', self.root,
             'bash', '-e', '-o', 'pipefail', '-c', script],
            text=True, capture_output=True, timeout=_LIMIT, env={
                **os.environ, 'LC_ALL': 'C',
                'PATH': f'{self._bin}:{os.environ["PATH"]}:/sbin:/usr/sbin'})
        *printed, rest = done.stdout.split(f'{_MARK}\n')
        if done.returncode:
            failed = commands[len(printed)] if printed else script
            raise AssertionError(f'{failed}\n{rest}{done.stderr}')
        return printed
