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

"""A host: the namespaces that make its services see a machine of their own."""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import fixtures

from lab import init
from lab import process
from lab import topology
from lab import users
from lab import workdir

_ETC_HOSTS = ''.join(
    [f'{topology.MANAGEMENT.address(host)} {host}\n'
     for host in topology.HOSTS])

PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

# Without the caller's environment, such as Python's path, locale and proxy.
_ENVIRONMENT = {
    'HOME': '/root',
    'LANG': 'C.UTF-8',
    'PATH': PATH,
    'PYTHONWARNINGS': 'ignore',
}


class Host(fixtures.Fixture):
    """Mount, UTS, network and PID namespaces with a first process.

    No namespace has a name, and the machine's own namespace has no interface
    of the lab: all of it exists as long as the first process. That dies with
    the lab, even if the lab is killed, unless *keep* is set.
    """

    def __init__(self, name: str, workdir: workdir.WorkDir,
                 keep: bool = False) -> None:
        self.name = name
        self.root = workdir.run / name
        self.own = workdir.own
        # nova's home, in the mount namespace of the host and of the machine
        self.home, self.home_here = self.own / 'nova', self.root / 'nova'
        self.keep = keep
        # Those that `start` has started last, by name.
        self.daemons: dict[str, process.Daemon] = {}
        self._venvs = workdir.venvs
        self.pid: int

    def _setUp(self) -> None:
        self._make_files()
        leash = () if self.keep else ('setpriv', '--pdeathsig', 'KILL')
        kill = () if self.keep else ('--kill-child',)
        log = open(self.root / 'log/init.log', 'wb')
        with log:
            self._unshare = subprocess.Popen(
                (*leash, 'unshare', '--mount', '--uts', '--net', '--pid',
                 '--fork', *kill, sys.executable, init.__file__, self.name,
                 str(self.root), str(self.own)),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)
        self.addCleanup(self._end)
        process.wait_for(f'host {self.name}', self._ready,
                         timeout=20, log=log.name, poll=0.05)

    def _make_files(self) -> None:
        for place in ('etc/libvirt', 'etc/ssh', 'log', 'var/cache/libvirt',
                      'var/lib/libvirt', 'var/log/libvirt/qemu'):
            (self.root / place).mkdir(parents=True)
        self.write('etc/hosts', f'127.0.0.1 localhost\n{_ETC_HOSTS}')
        self.write('etc/ssh/ssh_config', '')
        for place, (text, mode) in users.files(
                self.home, self._venvs).items():
            self.write(place, text).chmod(mode)
        self.home_here.mkdir()
        self.give_to_nova(self.home_here)

    def _ready(self) -> bool:
        if self._unshare.poll() is not None:
            raise process.LabError(
                f'host {self.name} did not start'
                f'{process.tail(self.root / "log/init.log")}')
        if not (self.root / 'ready').exists():
            return False
        self.pid = process.descendants(self._unshare.pid)[-1]
        return True

    def _end(self) -> None:
        """Kill the first process and wait for the kernel to end the rest."""
        for pid in process.descendants(self._unshare.pid):
            process.kill(pid, signal.SIGKILL)
        self._unshare.wait(process.Daemon.GRACE)

    def write(self, place: str, text: str) -> pathlib.Path:
        """Write a file of this host and return its path."""
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    @staticmethod
    def give_to_nova(path: pathlib.Path) -> None:
        """Make nova the owner of *path* and of all files below it."""
        for each in (path, *path.rglob('*')):
            os.chown(each, users.NOVA_ID, users.NOVA_ID)

    def log(self, name: str) -> pathlib.Path:
        return self.root / 'log' / f'{name}.log'

    def enter(self, *argv: object) -> tuple[str, ...]:
        """Return the arguments that run *argv* on this host."""
        return ('nsenter', '--target', str(self.pid), '--mount', '--uts',
                '--net', '--pid', '--', *map(str, argv))

    def run(self, *argv: object, **kwargs: Any) -> str:
        return process.run(self.enter(*argv), env=_ENVIRONMENT, cwd='/',
                           **kwargs)

    def succeeds(self, *argv: object, timeout: float = 20) -> bool:
        """Return whether *argv* succeeds within *timeout* seconds."""
        try:
            self.run(*argv, timeout=timeout)
        except process.LabError:
            return False
        return True

    def start(self, name: str, *argv: object,
              env: Mapping[str, object] | None = None) -> process.Daemon:
        """Start a daemon; *env* is added to its environment."""
        setting = [f'{key}={value}' for key, value in (env or {}).items()]
        daemon = self.daemons[name] = process.Daemon(
            f'{name} on {self.name}', self.enter('env', *setting, *argv),
            self.root / 'log' / f'{name}.out', env=_ENVIRONMENT, cwd='/')
        return daemon

    def start_as_nova(
        self, name: str, *argv: object,
        env: Mapping[str, object] | None = None,
    ) -> process.Daemon:
        """Start a daemon as `start` does, but as nova and with its groups."""
        return self.start(
            name, 'setpriv', '--reuid', users.NOVA, '--regid', users.NOVA,
            '--init-groups', *argv,
            env={'HOME': self.home, 'USER': users.NOVA, **(env or {})})
