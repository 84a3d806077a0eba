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

"""Kolla images: their Dockerfiles, and the effect of a single step.

There is no container engine. kolla-build writes the Dockerfiles and passes
them to a fake ``docker``. A step runs in a mount namespace, on an overlay of
this machine's files.
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

#: The places of Python, pip's constraints and plugins in Kolla's images.
VENV = '/var/lib/kolla/venv'
CONSTRAINTS = '/requirements/upper-constraints.txt'
PLUGINS = '/plugins'

#: Images that kolla/ changes.
IMAGES = ('nova-compute', 'nova-libvirt')

#: Runs kolla-build; only the connection to the engine is fake.
_KOLLA_BUILD = '''
import sys
from unittest import mock

from kolla.cmd import build

with mock.patch('docker.DockerClient', autospec=True):
    sys.exit(build.main())
'''

#: Keeps the build context of the engine: the last argument is its directory.
_DOCKER = '''#!/bin/sh
[ "$2" = build ] || exit 0
for context; do :; done
cp -r "$context" {kept}
'''

_RUN = re.compile(r'^RUN ((?:.*\\\n)*.*)', re.MULTILINE)

# Mounts an overlay of a directory at another one; $1: its options.
_LAY = 'mount -t overlay -o "$1" overlay "$2" && shift 2 &&'

# Runs a command in a root directory.
_ENTER = '''
for shared in /dev /proc /sys "$3"; do
    mkdir -p "$1$shared" && mount --rbind "$shared" "$1$shared" || exit
done
exec chroot "$1" sh -c "$2"
'''


class Checkout(fixtures.Fixture):
    """A directory with a checkout, in which Kolla's tools start.

    :ivar path: the directory
    """

    def _setUp(self):
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self._checkout = self.path / 'nova-migfix'
        self._checkout.mkdir()
        distribution.copy_source(self._checkout)
        shutil.copytree(pages.CHECKOUT / 'kolla', self._checkout / 'kolla')

    def build(self, kind='wheel'):
        """Build the distribution into ``dist``; return the file."""
        return distribution.build(self._checkout / 'dist', '1.0.0', kind)

    def run(self, *command, **environ):
        """Run a command there that must succeed.

        :param environ: further environment variables
        """
        done = subprocess.run(
            command, text=True, capture_output=True, timeout=LIMIT,
            stdin=subprocess.DEVNULL, cwd=self.path, env={
                **os.environ, 'PATH': f'{BIN}:{os.environ["PATH"]}',
                # the version of a directory that is no clone
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
    """Build nova-compute by kolla-build; return the engine's context.

    :param place: a Checkout
    :param config: the configuration of kolla-build
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
    """Return the commands that make an image, in order."""
    return [re.sub(r'\s*\\\n\s*', ' ', command)
            for command in _RUN.findall(dockerfile)]


class Image(fixtures.Fixture):
    """The files that the processes of an image see.

    :param parent: the image that this one is based on; None for this machine
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
        """Yield options and place of each overlay, the lowest first."""
        below = '/'
        if self._parent:
            yield from self._parent._overlays()
            below = self._parent._root
        yield (f'lowerdir={below},upperdir={self._files},'
               f'workdir={self._work}'), self._root

    def put(self, source, path):
        """Copy a file or directory of this machine to *path* in the image."""
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
        """Run a shell command; return the result of subprocess.run."""
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
        """Run a command that must succeed; return its output."""
        done = self.enter(command)
        if done.returncode:
            raise AssertionError(
                f'{command} ended with {done.returncode}:\n'
                f'{done.stdout}{done.stderr}')
        return done.stdout


class NovaImage(Image):
    """An image with Nova where Kolla installs it, without the plugin.

    Constraints of its release replace Kolla's upper constraints.

    :param release: the release of Nova
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
    """One image with Nova for a class; each test bases its own image on it.

    :cvar nova_release: the release of Nova; the newest supported by default
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
        """Return the packages that pip finds in an image."""
        return set(made.run('python3 -m pip freeze').splitlines())
