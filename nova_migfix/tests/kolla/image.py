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

"""Images of Kolla: their Dockerfiles, and what a step of one does.

There is no container engine. kolla-build writes the Dockerfiles, and hands
them to a stand-in for ``docker``; a step is run in a mount namespace, upon an
overlay of this machine's files.
"""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys

import fixtures

from nova_migfix.tests import distribution
from nova_migfix.tests import pages

BIN = pathlib.Path(sys.executable).parent
LIMIT = 600     # seconds

#: Where Kolla has Python, pip's constraints and plugins in its images.
VENV = '/var/lib/kolla/venv'
CONSTRAINTS = '/requirements/upper-constraints.txt'
PLUGINS = '/plugins'

#: Images that are made with kolla/.
IMAGES = ('nova-compute', 'nova-libvirt')

#: What it is run with; all but the client's connection is real.
_KOLLA_BUILD = '''
from unittest import mock

from kolla.cmd import build

with mock.patch('docker.DockerClient', autospec=True):
    build.main()
'''

#: Keeps what the engine would be given: the last argument is the directory.
_DOCKER = '''#!/bin/sh
[ "$2" = build ] || exit 0
for context; do :; done
cp -r "$context" {kept}
'''

_RUN = re.compile(r'^RUN ((?:.*\\\n)*.*)', re.MULTILINE)

# Makes a root directory of layers and runs a command in it.
_ENTER = '''
mount -t overlay -o "$1" overlay "$2" &&
for kernel in dev proc sys; do mount --rbind "/$kernel" "$2/$kernel"; done &&
exec chroot "$2" sh -c "$3"
'''


class Checkout(fixtures.Fixture):
    """A directory that has this checkout, as Kolla's tools are started in.

    :ivar path: the directory
    """

    def _setUp(self):
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.checkout = self.path / 'nova-migfix'
        self.checkout.mkdir()
        for file in pages.CHECKOUT.iterdir():
            if file.name != 'dist':
                (self.checkout / file.name).symlink_to(file)

    def build(self, kind):
        """Build the distribution into ``dist``: 'sdist' or 'wheel'."""
        distribution.build(self.checkout / 'dist', '1.0.0', kind)


@functools.cache
def dockerfiles(base, config=None):
    """Return the text of each image's Dockerfile.

    :param base: the base distribution
    :param config: of kolla-build, a file in kolla/; None for images without
        the plugin
    """
    with Checkout() as place:
        options = ('--config-file', f'nova-migfix/kolla/{config}')
        subprocess.run(
            [BIN / 'kolla-build', *(options if config else ()),
             '--template-only', '--base', base, '--work-dir', 'work',
             *(f'^{image}$' for image in IMAGES)],
            check=True, capture_output=True, timeout=LIMIT, cwd=place.path)
        return {image: (place.path / f'work/docker/nova/{image}/Dockerfile'
                        ).read_text() for image in IMAGES}


def build(place, config):
    """Let kolla-build build nova-compute; returns what the engine is given.

    :param place: a Checkout
    """
    stand_ins = place.path / 'bin'
    stand_ins.mkdir()
    docker = stand_ins / 'docker'
    docker.write_text(_DOCKER.format(kept=place.path / 'kept'))
    docker.chmod(0o755)
    subprocess.run(
        [sys.executable, '-c', _KOLLA_BUILD, '--config-file',
         f'nova-migfix/kolla/{config}', '--skip-parents', '--base', 'rocky',
         '--work-dir', place.path / 'work', '^nova-compute$'],
        check=True, capture_output=True, timeout=LIMIT, cwd=place.path,
        env={**os.environ, 'PATH': f'{stand_ins}:{os.environ["PATH"]}'})
    return place.path / 'kept'


def steps(dockerfile):
    """Return the commands that are run to make an image, in their order."""
    return [re.sub(r'\s*\\\n\s*', ' ', command)
            for command in _RUN.findall(dockerfile)]


class Image(fixtures.Fixture):
    """What the processes of an image see.

    :param parent: the image that this one is made from; None for this machine
    """

    def __init__(self, parent=None):
        super().__init__()
        self._parent = parent

    def _setUp(self):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        directory.chmod(0o755)
        self._files = directory / 'files'
        work, self._root = directory / 'work', directory / 'root'
        self._options = (
            f'lowerdir=/,upperdir={self._files},workdir={work}')
        for made in (self._files, work, self._root):
            made.mkdir()
        if self._parent:
            # Layers of an overlay may not lie within each other.
            subprocess.run(['cp', '--archive', f'{self._parent._files}/.',
                            self._files], check=True, timeout=LIMIT)

    def put(self, source, path):
        """Give it a file or directory of this machine, under *path*."""
        target = self._files / path.lstrip('/')
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copyfile
        copy(source, target)

    def enter(self, command):
        """Run a command of the shell; returns what subprocess does."""
        return subprocess.run(
            ['unshare', '--mount', 'sh', '-c', _ENTER, 'sh', self._options,
             self._root, command],
            text=True, capture_output=True, timeout=LIMIT, cwd='/',
            stdin=subprocess.DEVNULL, env={
                **os.environ, 'PATH': f'{VENV}/bin:{os.environ["PATH"]}'})

    def run(self, command):
        """Run a command that must succeed; returns what it prints."""
        done = self.enter(command)
        if done.returncode:
            raise AssertionError(
                f'{command} ended with {done.returncode}:\n'
                f'{done.stdout}{done.stderr}')
        return done.stdout
