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

"""Virtual environments with releases of Nova, kept between runs."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from tools.patches import series


class IndexUnreachable(Exception):
    """The package index cannot be reached, so the test cannot run."""


class Environments:
    """One virtual environment for each release of Nova, without the plugin.

    :param directory: has the environments
    :param requirements: other packages to install, as arguments of pip install
    """

    def __init__(self, directory: pathlib.Path,
                 *requirements: str | pathlib.Path) -> None:
        self.directory = directory
        self.requirements = requirements
        directory.mkdir(parents=True, exist_ok=True)
        self.uv = shutil.which('uv') or shutil.which(
            'uv', path=os.path.dirname(sys.executable))

    def python(self, major: int) -> pathlib.Path:
        """Return the interpreter with a release of Nova; install it first.

        Reuse an existing environment if the constraints have not changed.
        """
        environment = self.directory / f'nova-{major}'
        python = environment / 'bin' / 'python'
        complete = environment / 'complete'
        constraints = series.constraints(major)
        if not complete.exists() or (
                complete.read_text() != constraints.read_text()):
            shutil.rmtree(environment, ignore_errors=True)
            self._run(*([self.uv, 'venv', '--python', sys.executable]
                        if self.uv else [sys.executable, '-m', 'venv']),
                      environment)
            self.install(python, '-c', constraints, 'nova',
                         *self.requirements)
            complete.write_text(constraints.read_text())
        return python

    def install(self, python: pathlib.Path, *what: str | pathlib.Path,
                **environment: str) -> None:
        """Install by pip or uv.

        :param environment: environment variables for the build
        :raises IndexUnreachable: the package index cannot be reached
        :raises RuntimeError: another failure; has the output
        """
        install = [*([self.uv, 'pip', 'install', '--python', python]
                     if self.uv else [python, '-m', 'pip', 'install'])]
        try:
            self._run(*install, *what, **environment)
        except RuntimeError as error:
            self._check_index(install, error)
            raise

    def _check_index(self, install, error: RuntimeError) -> None:
        with tempfile.TemporaryDirectory() as nowhere:
            try:
                self._run(*install, '--dry-run', '--no-cache-dir',
                          '--no-deps', '--target', nowhere, 'pbr')
            except RuntimeError:
                raise IndexUnreachable(str(error)) from None

    def _run(self, *command: str | pathlib.Path, **environment: str) -> None:
        # The plugin's version must not become that of other packages with pbr.
        inherited = {name: value for name, value in os.environ.items()
                     if name != 'PBR_VERSION'}
        done = subprocess.run(
            command, env={**inherited, **environment}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        if done.returncode:
            raise RuntimeError(done.stdout)


def site_packages(python: pathlib.Path) -> pathlib.Path:
    """Return the site-packages directory of an interpreter's environment."""
    found, = python.parents[1].glob('lib/python3*/site-packages')
    return found
