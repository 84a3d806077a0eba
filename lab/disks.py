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

"""The content of a guest's disk, read on its host and without the guest."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess

import fixtures

from lab import host

# Commands that check a filesystem and change nothing, by its type.
_CHECKS = {
    'xfs': ('xfs_repair', '-n', '-f'),
    'ext3': ('e2fsck', '-fn'),
    'ext4': ('e2fsck', '-fn'),
    'vfat': ('fsck.vfat', '-n'),
}


class Snapshot(fixtures.Fixture):
    """A copy of a disk in a raw file without a backing file.

    The guest may run, but must not write while the copy is made.
    """

    def __init__(self, host: host.Host, path: pathlib.Path) -> None:
        """:param path: of the disk in the mount namespace of *host*"""
        self.host = host
        self.disk = path

    def _setUp(self) -> None:
        directory = self.useFixture(
            fixtures.TempDir(rootdir=str(self.host.root)))
        self.path = directory.join('raw')
        self.host.run('qemu-img', 'convert', '--force-share', '-O', 'raw',
                      self.disk, self.path)

    def identity(self) -> dict[str, str]:
        """Return TYPE, LABEL and UUID of its filesystem, those that it has."""
        _, found = _run('blkid', '--probe', '--output', 'export', self.path)
        return {name: value for name, value in re.findall(
            r'^(TYPE|LABEL|UUID)=(.*)$', found, re.M)}

    def faults(self) -> str:
        """Return the findings of the filesystem's check, '' for none."""
        kind = self.identity().get('TYPE')
        if kind not in _CHECKS:
            return f'a filesystem of type {kind}'
        return _complaint(*_CHECKS[kind], self.path)

    def difference(self, other: Snapshot) -> str:
        """Return where another Snapshot first differs, '' for nowhere."""
        return _complaint('qemu-img', 'compare', '-f', 'raw', '-F', 'raw',
                          self.path, other.path)


def backing_file(host: host.Host, path: pathlib.Path) -> str | None:
    """Return the backing file of a disk on *host*, None if it has none."""
    found = host.run('qemu-img', 'info', '--force-share', '--output', 'json',
                     path)
    return json.loads(found).get('backing-filename')


def empty(path: pathlib.Path) -> None:
    """Replace all bytes of a file by zeros."""
    size = path.stat().st_size
    with open(path, 'r+b') as file:
        file.truncate(0)
        file.truncate(size)


def _run(*command: str | pathlib.Path) -> tuple[int, str]:
    done = subprocess.run(command, text=True, errors='replace', timeout=300,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout.strip()


def _complaint(*command: str | pathlib.Path) -> str:
    """Return the output of *command* if it fails, else ''."""
    status, output = _run(*command)
    return (output or f'exit status {status}') if status else ''
