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

"""A release's source tree in git, with a series of patches on top."""

from __future__ import annotations

from collections.abc import Iterable
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

# The user of this tool need not have configured a name for git.
_NOBODY = {
    'GIT_CONFIG_GLOBAL': os.devnull, 'GIT_CONFIG_SYSTEM': os.devnull,
    **{f'GIT_{role}_{what}': value
       for role in ('AUTHOR', 'COMMITTER')
       for what, value in (('NAME', 'nova_migfix'), ('EMAIL', 'none'))},
}


class Tree:
    """The source archive of a release from the package index.

    :ivar path: the work tree
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def make(self, release: str) -> None:
        """Fetch the release, unless it has been fetched before."""
        if not (self.path / '.git' / 'complete').exists():
            shutil.rmtree(self.path, ignore_errors=True)
            _fetch(release, self.path)
            self._git('init', '--quiet', '--initial-branch', 'release')
            self._git('add', '--all', '--force')
            self._git('commit', '--quiet', '--message', f'Nova {release}')
            (self.path / '.git' / 'complete').touch()
        self.checkout('release')

    def apply(self, patches: Iterable[pathlib.Path]) -> list[str]:
        """Apply the patches to the release.

        :returns: the commits, that of the release first
        :raises CalledProcessError: git am refuses one; with git's output
        """
        self.checkout('release')
        commits = [self._git('rev-parse', 'HEAD')]
        for patch in patches:
            self._git('am', '--quiet', patch.resolve())
            commits.append(self._git('rev-parse', 'HEAD'))
        return commits

    def checkout(self, commit: str) -> None:
        """Check a commit out and delete all untracked files."""
        # git am may have stopped at a patch
        shutil.rmtree(self.path / '.git' / 'rebase-apply', ignore_errors=True)
        self._git('checkout', '--quiet', '--force', '--detach', commit)
        # files of earlier tests, and bytecode of deleted files
        self._git('clean', '--quiet', '-d', '--force', '-x')

    def add_from(self, commit: str, path: str) -> None:
        """Check out the files of another commit below a path."""
        self._git('checkout', '--quiet', commit, '--', path)

    def show(self, commit: str, path: str) -> str:
        """Return the content of a file in a commit, '' if it has none."""
        if not self._git('ls-tree', '--name-only', commit, path):
            return ''
        return self._git('show', f'{commit}:{path}')

    def content(self, commit: str) -> str:
        """Return a name that all commits with the same content share."""
        return self._git('rev-parse', f'{commit}^{{tree}}')

    def difference(self) -> str:
        """Return the diff of the work tree to the commit."""
        return self._git('diff', 'HEAD')

    def _git(self, *arguments: str | pathlib.Path) -> str:
        done = subprocess.run(
            ['git', *arguments], cwd=self.path, text=True,
            env={**os.environ, **_NOBODY}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise subprocess.CalledProcessError(
                done.returncode, done.args, done.stdout)
        return done.stdout.strip()


def _fetch(release: str, target: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        subprocess.run(
            [sys.executable, '-m', 'pip', '--quiet', 'download', '--no-deps',
             '--no-binary', 'nova', '--dest', directory, f'nova=={release}'],
            check=True)
        archive, = directory.glob('nova-*.tar.gz')
        # git refuses trees of other users, and tar would keep the archive's
        subprocess.run(['tar', '--extract', '--no-same-owner', '--file',
                        archive, '--directory', directory], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(directory / archive.name.removesuffix('.tar.gz'), target)
