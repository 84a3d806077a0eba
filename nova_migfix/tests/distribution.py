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

"""Build the plugin's distribution as for a release."""

import os
import pathlib
import shutil
import subprocess

import fixtures
import uv

from nova_migfix.tests import pages

# Files that the build needs, beside the package.
_FILES = ('LICENSE', 'MANIFEST.in', 'README.rst', 'pyproject.toml',
          'requirements.txt', 'setup.cfg', 'setup.py')

_LIMIT = 600    # seconds


def copy_source(directory):
    """Copy the files that the build needs, without tests."""
    shutil.copytree(pages.CHECKOUT / 'nova_migfix', directory / 'nova_migfix',
                    ignore=shutil.ignore_patterns('__pycache__', 'tests'))
    for name in _FILES:
        shutil.copy(pages.CHECKOUT / name, directory)


def build(out, version, kind='wheel'):
    """Build the distribution outside of git, and return the path of the file.

    :param out: directory for the file
    :param kind: 'wheel' or 'sdist'
    :raises RuntimeError: the build failed; has its error messages
    """
    with fixtures.TempDir() as directory:
        # Build a copy, because a build leaves files in the source.
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
    """A wheel that is removed after the test.

    :ivar path: path of the file
    """

    def __init__(self, version):
        super().__init__()
        self._version = version

    def _setUp(self):
        self.path = build(self.useFixture(fixtures.TempDir()).path,
                          self._version)
