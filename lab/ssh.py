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


"""sshd of a compute host, and the login of nova-compute's user."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
import shutil

import fixtures

from lab import host
from lab import infrastructure
from lab import process
from lab import topology

_SSHD = '''
{listen}
HostKey {key}
PidFile /run/sshd.pid
AuthorizedKeysFile {key}.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
'''

_SSH = '''
Host *
    BatchMode yes
    ConnectTimeout 10
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
'''


class SshServer(fixtures.Fixture):
    """sshd on the requested networks and on no other."""

    def __init__(self, host: host.Host, key: pathlib.Path) -> None:
        self.host = host
        self.key = key
        self._daemon: process.Daemon | None = None
        self._networks: Sequence[topology.Network] = ()

    def _setUp(self) -> None:
        self.host.write('etc/ssh/ssh_config', _SSH)
        keys = self.host.home_here / '.ssh'
        keys.mkdir(mode=0o700)
        shutil.copy(self.key, keys / 'id_ed25519')
        self.host.give_to_nova(keys)

    def listen(self, networks: Sequence[topology.Network]) -> None:
        """(Re)start sshd so that it answers on *networks*; () stops it."""
        if networks == self._networks:
            return
        if self._daemon:
            self._daemon.stop()
            self._daemon = None
        self._networks = networks
        if networks:
            self._start()

    def _start(self) -> None:
        addresses = [leg.split('/')[0] for network in self._networks
                     for leg in network.addresses(self.host.name)]
        configuration = self.host.write('etc/ssh/sshd_config', _SSHD.format(
            key=self.key, listen='\n'.join(
                f'ListenAddress {address}' for address in addresses)))
        self._daemon = self.host.start('sshd', '/usr/sbin/sshd', '-D', '-e',
                                       '-f', configuration)
        self._daemon.wait_for('sshd answers', lambda: infrastructure.answers(
            self.host, 22))
