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

"""The distribution of the plugin, as it is released."""

import os
import pathlib
import shutil
import subprocess

import fixtures
import uv

from nova_migfix.tests import pages

# What it is built from, beside the package.
_FILES = ('LICENSE', 'MANIFEST.in', 'README.rst', 'pyproject.toml',
          'requirements.txt', 'setup.cfg', 'setup.py')

_LIMIT = 600    # seconds


def copy_source(directory):
    """Copy what it is built from into a directory, without its tests."""
    shutil.copytree(pages.CHECKOUT / 'nova_migfix', directory / 'nova_migfix',
                    ignore=shutil.ignore_patterns('__pycache__', 'tests'))
    for name in _FILES:
        shutil.copy(pages.CHECKOUT / name, directory)


def build(out, version, kind='wheel'):
    """Build it where there is no git; returns the file.

    :param out: directory where the file is put
    :param kind: 'wheel' or 'sdist'
    :raises RuntimeError: it cannot be built, with what was said
    """
    with fixtures.TempDir() as directory:
        # of a copy, as a build leaves its traces
        source = pathlib.Path(directory.path)
        copy_source(source)
        done = subprocess.run(
            [uv.find_uv_bin(), 'build', '--quiet', f'--{kind}', '--out-dir',
             out, source], env={**os.environ, 'PBR_VERSION': version},
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=_LIMIT)
    if done.returncode:
        raise RuntimeError(done.stderr)
    made, = pathlib.Path(out).glob(f'nova_migfix-{version}*')
    return made


class Wheel(fixtures.Fixture):
    """A wheel that is gone with the test.

    :ivar path: the file
    """

    def __init__(self, version):
        super().__init__()
        self._version = version

    def _setUp(self):
        self.path = build(self.useFixture(fixtures.TempDir()).path,
                          self._version)
