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

"""An sshd on loopback, and an ssh that connects to it."""

from __future__ import annotations

import getpass
import pathlib
import shutil
import socket
import subprocess
import time

import fixtures

HOST = 'source'
_STARTS_WITHIN = 10     # seconds


class Sshd(fixtures.Fixture):
    """Start sshd and put an ``ssh`` first into PATH that connects to it.

    For that ssh the host name *HOST* is this machine.
    """

    def _setUp(self) -> None:
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        for key in ('host', 'user'):
            subprocess.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '',
                            '-f', directory / key], check=True)
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = free.getsockname()[1]
        self._start(directory, port)
        self.ssh = directory / 'bin' / 'ssh'
        self._make_client(directory, port)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', f'{self.ssh.parent}:/usr/bin:/bin:/usr/sbin:/sbin'))

    def _start(self, directory: pathlib.Path, port: int) -> None:
        config = directory / 'sshd_config'
        config.write_text(
            f'HostKey {directory}/host\n'
            f'AuthorizedKeysFile {directory}/user.pub\n'
            'StrictModes no\nPermitRootLogin yes\nUsePAM no\nPidFile none\n'
            'Subsystem sftp internal-sftp\n'
            f'ListenAddress 127.0.0.1:{port}\n')
        pathlib.Path('/run/sshd').mkdir(exist_ok=True)
        daemon = subprocess.Popen(
            [shutil.which('sshd', path='/usr/sbin') or 'sshd', '-D', '-f',
             config])
        self.addCleanup(daemon.wait, _STARTS_WITHIN)
        self.addCleanup(daemon.terminate)
        deadline = time.monotonic() + _STARTS_WITHIN
        while True:
            try:
                socket.create_connection(('127.0.0.1', port)).close()
                return
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _make_client(self, directory: pathlib.Path, port: int) -> None:
        config = directory / 'ssh_config'
        config.write_text(
            f'Host {HOST}\n HostName 127.0.0.1\n Port {port}\n'
            f' User {getpass.getuser()}\n IdentityFile {directory}/user\n'
            ' StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n'
            ' LogLevel ERROR\n')
        self.ssh.parent.mkdir()
        self.ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} '
                            f'-F {config} "$@"\n')
        self.ssh.chmod(0o755)
