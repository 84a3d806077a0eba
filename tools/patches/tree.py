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

# Whoever runs it need not have told git who that is.
_NOBODY = {
    'GIT_CONFIG_GLOBAL': os.devnull, 'GIT_CONFIG_SYSTEM': os.devnull,
    **{f'GIT_{role}_{what}': value
       for role in ('AUTHOR', 'COMMITTER')
       for what, value in (('NAME', 'nova_migfix'), ('EMAIL', 'none'))},
}


class Tree:
    """The source archive of a release, as it is on the package index.

    :ivar path: the work tree
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def make(self, release: str) -> None:
        """Fetch the release, unless it is there already."""
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
        :raises CalledProcessError: git am refuses one; says so on output
        """
        self.checkout('release')
        commits = [self._git('rev-parse', 'HEAD')]
        for patch in patches:
            self._git('am', '--quiet', patch.resolve())
            commits.append(self._git('rev-parse', 'HEAD'))
        return commits

    def checkout(self, commit: str) -> None:
        # git am may have stopped in the middle
        shutil.rmtree(self.path / '.git' / 'rebase-apply', ignore_errors=True)
        self._git('checkout', '--quiet', '--force', '--detach', commit)
        # what tests have left, and bytecode of files that are no more
        self._git('clean', '--quiet', '-d', '--force', '-x')

    def add_from(self, commit: str, path: str) -> None:
        """Put what a commit has below a path over what is checked out."""
        self._git('checkout', '--quiet', commit, '--', path)

    def show(self, commit: str, path: str) -> str:
        """Return a file as a commit has it, '' if it has none."""
        if not self._git('ls-tree', '--name-only', commit, path):
            return ''
        return self._git('show', f'{commit}:{path}')

    def content(self, commit: str) -> str:
        """Return a name that all commits of the same content have."""
        return self._git('rev-parse', f'{commit}^{{tree}}')

    def difference(self) -> str:
        """Return what has changed in what is checked out."""
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
        # git trusts no tree of other users, who are those of the archive
        subprocess.run(['tar', '--extract', '--no-same-owner', '--file',
                        archive, '--directory', directory], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(directory / archive.name.removesuffix('.tar.gz'), target)
