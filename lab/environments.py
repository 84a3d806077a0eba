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

"""The virtual environments: control plane, unmodified Nova, fixed Nova.

`control` has everything but Nova. ``nova-X.Y.Z`` has Nova from the package
index. The third one has a fixed Nova, of one of two variants:
``nova-X.Y.Z-plugin`` adds only the plugin's wheel, ``nova-X.Y.Z-patched`` has
Nova with the patch set.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import csv
import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from lab import process
from lab import workdir
from tools.patches import series as patches

# The Nova of a host, and the variants of a fixed Nova.
STOCK, FIXED = 'stock', 'fixed'
PLUGIN, PATCHED = VARIANTS = 'plugin', 'patched'

# os-vif 5.2 imports pyroute2 but does not require it.
_CONTROL = ('keystone', 'glance', 'openstack-placement', 'neutron',
            'python-openstackclient', 'pymysql', 'gunicorn', 'pyroute2')
_COMPUTE = ('libvirt-python', 'pymysql', 'gunicorn', 'pyroute2')

# The constraints of this Nova apply to the services of the control plane, too,
# and so lead to services of the same age.
_CONTROL_SERIES = 34


@dataclasses.dataclass(frozen=True)
class Series:
    """Properties of one major version of Nova."""

    python: str
    wsgi: str
    worker: str = 'gthread'
    extra: tuple[str, ...] = ()


_OLD_WSGI = 'nova.api.openstack.compute.wsgi:init_application()'
_NEW_WSGI = 'nova.wsgi.osapi_compute:application'
# nova/virt/__init__.py of these imports pkg_resources without requiring it.
_PKG_RESOURCES = ('setuptools<82',)

# The user nova cannot write bytecode later.
_OPTIONS = ('--compile-bytecode',)

SERIES = {
    29: Series('>=3.10,<3.12', _OLD_WSGI, 'sync', _PKG_RESOURCES),
    30: Series('>=3.10,<3.12', _OLD_WSGI, 'sync', _PKG_RESOURCES),
    31: Series('>=3.10,<3.14', _OLD_WSGI, 'sync'),
    32: Series('>=3.10,<3.14', _NEW_WSGI, 'sync'),
    33: Series('>=3.10,<3.14', _NEW_WSGI),
    34: Series('>=3.11,<3.14', _NEW_WSGI),
}


def series(version: str) -> Series:
    """Return the Series of a Nova *version*, ``'X.Y.Z'``."""
    try:
        return SERIES[int(version.split('.')[0])]
    except (KeyError, ValueError) as error:
        raise process.LabError(
            f'Nova {version} is not one of the supported series '
            f'{min(SERIES)} to {max(SERIES)}') from error


def _constraints(number: int) -> pathlib.Path:
    path = workdir.CHECKOUT / 'constraints' / f'nova-{number}.txt'
    if not path.exists():
        raise process.LabError(f'{path} is missing')
    return path


def _python(wanted: str) -> str:
    """Return the interpreter of the lab if it fits, else *wanted* for uv."""
    lower, upper = (tuple(map(int, bound.lstrip('>=<').split('.')))
                    for bound in wanted.split(','))
    fits = lower <= sys.version_info[:2] < upper
    # The interpreter outside of any virtual environment; typeshed lacks it.
    base: str = sys._base_executable  # type: ignore[attr-defined]
    return base if fits else wanted


class Venv:
    """One virtual environment, made by uv and remade when it is stale."""

    def __init__(self, path: pathlib.Path, python: str = '',
                 constraints: pathlib.Path | None = None) -> None:
        self.path = pathlib.Path(path)
        self.python = python
        self.constraints = constraints

    def bin(self, name: str) -> pathlib.Path:
        return self.path / 'bin' / name

    def etc(self, place: str) -> pathlib.Path:
        """Return the path of a file that a package installs below ``etc/``."""
        return self.path / 'etc' / place

    @property
    def site_packages(self) -> pathlib.Path:
        return next(self.path.glob('lib/python3*/site-packages'))

    def version_of(self, package: str) -> str:
        """Return the version of a *package*, named as its directory."""
        metadata = next(self.site_packages.glob(f'{package}-*.dist-info'))
        return metadata.name[len(package) + 1:-len('.dist-info')]

    def python_version(self) -> str:
        return process.run([self.bin('python'), '--version']).split()[1]

    def make(self, requirements: Iterable[str], log: pathlib.Path,
             wheel: pathlib.Path | None = None,
             series: str | None = None) -> None:
        """Install *requirements*, and *wheel* without its dependencies.

        :param series: of patches, which are applied to Nova
        """
        wanted = self._fingerprint(requirements, [
            *filter(None, [wheel]), *(patches.read(series) if series else ())])
        if self.made_of() == wanted:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self._uv('venv', '--python', self.python, self.path, log=log)
        limits = ('-c', self.constraints) if self.constraints else ()
        self._install(*limits, *requirements, log=log)
        if wheel:
            self._install('--no-deps', wheel, log=log)
        if series:
            self._patch(series)
        self._stamp.write_text(wanted)

    @property
    def _stamp(self) -> pathlib.Path:
        return self.path / 'made-of'

    def made_of(self) -> str:
        """Return a digest of all inputs; '' before it is made."""
        return self._stamp.read_text() if self._stamp.exists() else ''

    def _install(self, *arguments: object, log: pathlib.Path) -> None:
        self._uv('pip', 'install', *_OPTIONS, '--python', self.bin('python'),
                 *arguments, log=log)

    def _patch(self, series: str) -> None:
        try:
            patches.patch_installed(series, self.site_packages)
        except subprocess.CalledProcessError as error:
            raise process.LabError(
                f'patches/{series} does not apply: {error.stdout}') from error

    @staticmethod
    def _uv(*arguments: object, log: pathlib.Path) -> None:
        uv = pathlib.Path(sys.executable).with_name('uv')
        process.run([uv, '--quiet', *arguments], timeout=900, log=log)

    def _fingerprint(self, requirements: Iterable[str],
                     files: Iterable[pathlib.Path]) -> str:
        digest = hashlib.sha256()
        digest.update('\n'.join(
            (self.python, *_OPTIONS, *requirements)).encode())
        for path in filter(None, (self.constraints, *files)):
            digest.update(pathlib.Path(path).read_bytes())
        return digest.hexdigest()

    def modified_files(self, package: str) -> list[str]:
        """Return the files of *package* that differ from its RECORD."""
        record = next(self.site_packages.glob(f'{package}-*.dist-info/RECORD'))
        with open(record, newline='') as rows:
            listed = [row for row in csv.reader(rows)
                      if row[0].startswith(f'{package}/') and row[1]]
        return [path for path, digest, _ in listed
                if digest != _record_digest(self.site_packages / path)]


def _record_digest(path: pathlib.Path) -> str | None:
    if not path.exists():
        return None
    digest = hashlib.sha256(path.read_bytes()).digest()
    return 'sha256=' + base64.urlsafe_b64encode(digest).decode().rstrip('=')


# The inputs of the wheel: a change leads to another one.
_SOURCES = ('nova_migfix/**/*', 'setup.cfg', 'pyproject.toml', 'setup.py')
_NOT_BUILT = ('nova_migfix/tests/', '__pycache__')


def _sources() -> Iterator[pathlib.Path]:
    for pattern in _SOURCES:
        for path in sorted(workdir.CHECKOUT.glob(pattern)):
            place = path.relative_to(workdir.CHECKOUT)
            if path.is_file() and not any(
                    part in str(place) for part in _NOT_BUILT):
                yield place


def build_wheel(cache: pathlib.Path, log: pathlib.Path) -> pathlib.Path:
    """Return a wheel of the checkout, built once for each state of it.

    It is built from a copy: pbr writes into the tree from which it builds.
    """
    digest = hashlib.sha256()
    for place in _sources():
        digest.update(str(place).encode())
        digest.update((workdir.CHECKOUT / place).read_bytes())
    out = cache / 'wheels' / digest.hexdigest()[:16]
    if not list(out.glob('*.whl')):
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            tree = pathlib.Path(directory) / 'tree'
            _copy_checkout(tree)
            process.run(
                [pathlib.Path(sys.executable).with_name('uv'), 'build',
                 '--quiet', '--wheel', '--out-dir', out, tree],
                timeout=300, log=log,
                env={**os.environ, 'PBR_VERSION': _wheel_version()})
    return next(out.glob('*.whl'))


def _copy_checkout(tree: pathlib.Path) -> None:
    for place in (*_sources(), pathlib.Path('requirements.txt'),
                  pathlib.Path('README.rst'), pathlib.Path('LICENSE')):
        source = workdir.CHECKOUT / place
        if source.exists():
            (tree / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tree / place)


def _wheel_version() -> str:
    """Return a constant: the lab must not depend on tags or on git."""
    return '0.0.1.dev0'


class Environments:
    """The virtual environments of one run, for one version of Nova.

    :param variant: one of VARIANTS
    """

    def __init__(self, version: str, directories: workdir.WorkDir,
                 variant: str = PLUGIN) -> None:
        self.version = version
        self.variant = variant
        self.series = series(version)
        self._directories = directories
        self.major = int(version.split('.')[0])
        path = directories.venvs
        python = _python(self.series.python)
        self.control = Venv(path / 'control',
                            _python(SERIES[_CONTROL_SERIES].python),
                            _constraints(_CONTROL_SERIES))
        self.nova = {
            STOCK: Venv(path / f'nova-{version}', python,
                        _constraints(self.major)),
            FIXED: Venv(path / f'nova-{version}-{variant}', python,
                         _constraints(self.major)),
        }

    def make(self, progress: Callable[[str], object]) -> None:
        """Make missing and stale environments.

        :param progress: called with each step, as text
        """
        log = self._directories.root / 'install.log'
        log.write_text('')
        progress('control plane from the package index')
        self.control.make(_CONTROL, log)
        nova = (f'nova=={self.version}', *_COMPUTE, *self.series.extra)
        progress(f'Nova {self.version} from the package index')
        self.nova[STOCK].make(nova, log)
        patched = set()
        if self.variant == PLUGIN:
            progress(f'Nova {self.version} with the plugin of this checkout')
            wheel = build_wheel(self._directories.cache, log)
            self.nova[FIXED].make(nova, log, wheel)
        else:
            series = patches.of_nova(self.major)
            progress(f'Nova {self.version} with patches/{series}')
            self.nova[FIXED].make(nova, log, series=series)
            patched = {path for patch in patches.read(series)
                       for path in patches.touched(patch)}
        self._check_published(STOCK, set())
        self._check_published(FIXED, patched)

    def _check_published(self, which: str, patched: set[str]) -> None:
        """Compare Nova's files, except *patched*, with the published ones.

        :raises LabError: one of them differs
        """
        venv = self.nova[which]
        modified = set(venv.modified_files('nova')) - patched
        if modified:
            raise process.LabError(
                f'{venv.path} does not hold the Nova that was published: '
                f'{min(modified)}')
