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
import shlex
import shutil
import subprocess
import sys

import fixtures
import testtools

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
import sys
from unittest import mock

from kolla.cmd import build

with mock.patch('docker.DockerClient', autospec=True):
    sys.exit(build.main())
'''

#: Keeps what the engine would be given: the last argument is the directory.
_DOCKER = '''#!/bin/sh
[ "$2" = build ] || exit 0
for context; do :; done
cp -r "$context" {kept}
'''

_RUN = re.compile(r'^RUN ((?:.*\\\n)*.*)', re.MULTILINE)

# Lays files upon a directory, at another one; $1: options of the overlay.
_LAY = 'mount -t overlay -o "$1" overlay "$2" && shift 2 &&'

# Runs a command in a root directory.
_ENTER = '''
for shared in /dev /proc /sys "$3"; do
    mkdir -p "$1$shared" && mount --rbind "$shared" "$1$shared" || exit
done
exec chroot "$1" sh -c "$2"
'''


class Checkout(fixtures.Fixture):
    """A directory that has a checkout, as Kolla's tools are started in.

    :ivar path: the directory
    """

    def _setUp(self):
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self._checkout = self.path / 'nova-migfix'
        self._checkout.mkdir()
        distribution.copy_source(self._checkout)
        shutil.copytree(pages.CHECKOUT / 'kolla', self._checkout / 'kolla')

    def build(self, kind='wheel'):
        """Build the distribution into ``dist``; returns the file."""
        return distribution.build(self._checkout / 'dist', '1.0.0', kind)

    def run(self, *command, **environ):
        """Run a command there that must succeed.

        :param environ: what else its environment has
        """
        done = subprocess.run(
            command, text=True, capture_output=True, timeout=LIMIT,
            stdin=subprocess.DEVNULL, cwd=self.path, env={
                **os.environ, 'PATH': f'{BIN}:{os.environ["PATH"]}',
                # of what is no clone
                'PBR_VERSION': '1.0.0', **environ})
        if done.returncode:
            raise AssertionError(
                f'{command} ended with {done.returncode}:\n'
                f'{done.stdout}{done.stderr}')


@functools.cache
def dockerfiles(base, config=None):
    """Return the text of each image's Dockerfile.

    :param base: the base distribution
    :param config: of kolla-build, a file in kolla/; None for images without
        the plugin
    """
    with Checkout() as place:
        options = ('--config-file', f'nova-migfix/kolla/{config}')
        place.run(
            'kolla-build', *(options if config else ()), '--template-only',
            '--base', base, '--work-dir', str(place.path / 'work'),
            *(f'^{image}$' for image in IMAGES))
        return {image: (place.path / f'work/docker/nova/{image}/Dockerfile'
                        ).read_text() for image in IMAGES}


def build(place, config):
    """Let kolla-build build nova-compute; returns what the engine is given.

    :param place: a Checkout
    :param config: of kolla-build
    """
    stand_ins = place.path / 'bin'
    stand_ins.mkdir()
    docker = stand_ins / 'docker'
    docker.write_text(_DOCKER.format(kept=place.path / 'kept'))
    docker.chmod(0o755)
    place.run(
        sys.executable, '-c', _KOLLA_BUILD, '--config-file', config,
        '--skip-parents', '--base', 'rocky',
        '--work-dir', str(place.path / 'work'), '^nova-compute$',
        PATH=f'{stand_ins}:{os.environ["PATH"]}')
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
        self._work = directory / 'work'
        self._root = directory / 'root'
        for made in (self._files, self._work, self._root):
            made.mkdir()

    def _overlays(self):
        """Yield options and place of each, the lowest first."""
        below = '/'
        if self._parent:
            yield from self._parent._overlays()
            below = self._parent._root
        yield (f'lowerdir={below},upperdir={self._files},'
               f'workdir={self._work}'), self._root

    def put(self, source, path):
        """Give it a file or directory of this machine, under *path*."""
        target = self._place(path)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)

    def write(self, path, text, mode=0o644):
        target = self._place(path)
        target.write_text(text)
        target.chmod(mode)

    def _place(self, path):
        target = self._files / path.lstrip('/')
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def enter(self, command):
        """Run a command of the shell; returns what subprocess does."""
        overlays = list(self._overlays())
        return subprocess.run(
            ['unshare', '--mount', 'sh', '-c',
             _LAY * len(overlays) + _ENTER, 'sh',
             *(word for overlay in overlays for word in overlay),
             self._root, command, sys.prefix],
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


class NovaImage(Image):
    """One that has Nova where Kolla installs it, and no plugin.

    Constraints of its release stand in for Kolla's upper constraints.

    :param release: of Nova
    """

    def __init__(self, release):
        super().__init__()
        self._release = release

    def _setUp(self):
        super()._setUp()
        done = self.enter('true')
        if done.returncode:
            raise testtools.TestCase.skipException(
                f'no root directory of our own: {done.stderr}')
        self.put(pages.CHECKOUT / f'constraints/nova-{self._release}.txt',
                 CONSTRAINTS)
        uv = shlex.quote(str(BIN / 'uv'))
        self.run(f'{uv} venv --quiet --seed --python '
                 f'{os.path.realpath(sys.executable)} {VENV} && '
                 f'{uv} pip install --quiet --link-mode copy --python {VENV} '
                 f'-c {CONSTRAINTS} nova')


class NovaImageTestCase(testtools.TestCase):
    """With one such image for all tests of a class; each makes its own of it.

    :cvar nova_release: the newest that is supported, if not another
    :cvar nova: the image
    """

    nova_release = 34

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.nova = NovaImage(cls.nova_release)
        cls.nova.setUp()
        cls.addClassCleanup(cls.nova.cleanUp)

    @staticmethod
    def installed(made):
        """Return what pip finds in an image."""
        return set(made.run('python3 -m pip freeze').splitlines())
