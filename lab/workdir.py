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

"""The working directory of the lab."""

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
import stat

from lab import process
from lab import users

DEFAULT = '/var/tmp/nova-migfix-lab'
CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
DATA = pathlib.Path(__file__).resolve().parent / 'data'


class WorkDir:
    """Paths below the working directory; each run empties `run` only.

    venvs/    virtual environments, kept between runs
    cache/    the guest's kernel and image, the keys of sshd
    run/      one directory for each host: its configuration, logs, disks
    own/      a mount point: each host sees its own run/<name> there, so
              that two hosts can use one path for different files
    """

    def __init__(self, root: str | None = None) -> None:
        root = root or os.environ.get('NOVA_MIGFIX_LAB_DIR', DEFAULT)
        self.root = pathlib.Path(root).resolve()
        self.venvs = self.root / 'venvs'
        self.cache = self.root / 'cache'
        self.run = self.root / 'run'
        self.own = self.root / 'own'
        self.kept = self.run / 'kept.json'
        self.report = self.root / 'report.html'

    def prepare(self) -> None:
        """Make the directories.

        :raises LabError: other users cannot reach them
        """
        for directory in (self.venvs, self.cache, self.run, self.own):
            directory.mkdir(parents=True, exist_ok=True)
        closed = [directory for directory in (self.root, *self.root.parents)
                  if not directory.stat().st_mode & stat.S_IXOTH]
        if closed:
            raise process.LabError(
                f'only its owner can enter {closed[0]}, but the users nova '
                f'and {users.QEMU} have to; set NOVA_MIGFIX_LAB_DIR to a '
                f'directory that all users can enter')

    def lock(self) -> None:
        """Lock the directory until this process ends.

        :raises LabError: another run has locked it
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.root / 'lock', 'w')
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise process.LabError(
                f'another lab is running in {self.root}; set '
                f'NOVA_MIGFIX_LAB_DIR to use a directory of its own'
            ) from error

    def forget_run(self) -> None:
        """Delete all files of the previous run."""
        shutil.rmtree(self.run, ignore_errors=True)
        self.run.mkdir(parents=True)
