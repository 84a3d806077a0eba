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

"""Read the series in ``patches/``, and apply them to an installed Nova.

The patches are for Nova's source tree. An installed Nova has only the package:
with its tests, which are in the wheel, and without release notes and
documents.
"""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess

import unidiff.patch

CHECKOUT = pathlib.Path(__file__).parents[2]
PATCHES = CHECKOUT / 'patches'

#: The series, and the major version of Nova for each.
SERIES = {
    '2024.1': 29,
    '2024.2': 30,
    '2025.1': 31,
    '2025.2': 32,
    '2026.1': 33,
    '2026.2': 34,
    'master': 34,
}

PACKAGE = 'nova/'
TESTS = 'nova/tests/'


def of_nova(major: int) -> str:
    """Return the stable series of a Nova."""
    return next(name for name, of in SERIES.items() if of == major)


def constraints(major: int) -> pathlib.Path:
    return CHECKOUT / 'constraints' / f'nova-{major}.txt'


def release(major: int) -> str:
    """Return the release that the patches are for, 'X.Y.Z'."""
    found = re.search(
        r'^nova==(\S+)$', constraints(major).read_text(), re.MULTILINE)
    assert found, constraints(major)
    return found[1]


def read(name: str, patches: pathlib.Path = PATCHES) -> list[pathlib.Path]:
    """Return the patches of a series in their order.

    :raises OSError: there is no such series
    """
    lines = (patches / name / 'series').read_text().splitlines()
    return [patches / name / line.strip() for line in lines
            if line.strip() and not line.startswith('#')]


def touched(patch: pathlib.Path) -> list[str]:
    """Return the paths in the source tree that a patch changes."""
    return [file.path for file in _files(patch)]


def module(path: str) -> str:
    """Return the dotted name of a Python file."""
    return path.removesuffix('.py').replace('/', '.')


def subject(patch: pathlib.Path) -> str:
    """Return the first line of a patch's commit message."""
    found = re.search(r'^Subject: (?:\[[^]]*\] *)?(.*(?:\n[ \t].*)*)',
                      patch.read_text(), re.MULTILINE)
    return ' '.join(found[1].split()) if found else patch.stem


def message(patch: pathlib.Path) -> str:
    """Return a patch's commit message after its first line."""
    body = patch.read_text().partition('\n\n')[2]
    return re.split('^(?:---$|diff --git )', body, flags=re.MULTILINE)[0]


def installed(
    patch: pathlib.Path, prefix: str = '', tests: bool = True,
) -> str:
    """Return the diff for ``patch -p0`` on an installed Nova.

    :param prefix: the path of the package, '' or with a slash at the end
    :param tests: whether Nova's tests are installed, too
    :returns: the diff, '' if the patch changes no installed file
    """
    left_out = () if tests else (TESTS,)
    files = [file for file in _files(patch)
             if file.path.startswith(PACKAGE)
             and not file.path.startswith(left_out)]
    for file in files:
        # git's own header lines have the paths as well
        file.patch_info = None
        file.source_file = _moved(file.source_file, prefix)
        file.target_file = _moved(file.target_file, prefix)
    return ''.join(map(str, files))


def _files(patch: pathlib.Path) -> unidiff.patch.PatchSet:
    return unidiff.patch.PatchSet(patch.read_text())


def _moved(path: str, prefix: str) -> str:
    return path if path == '/dev/null' else prefix + path.partition('/')[2]


def apply(diff: str, directory: pathlib.Path) -> None:
    """Apply a diff as Kolla does, without fuzz.

    :raises CalledProcessError: it does not apply
    """
    subprocess.run(
        ['patch', '-p0', '--fuzz=0', '--ignore-whitespace'], input=diff,
        cwd=directory, check=True, text=True, stdout=subprocess.PIPE)


def patch_installed(
    name: str, site_packages: pathlib.Path, tests: bool = True,
    patches: pathlib.Path = PATCHES,
) -> None:
    """Apply a series to the Nova that is installed in *site_packages*."""
    for patch in read(name, patches):
        if diff := installed(patch, tests=tests):
            apply(diff, site_packages)


def copy_patched(
    name: str, site_packages: pathlib.Path, target: pathlib.Path,
) -> None:
    """Copy an installed Nova without its tests, and patch the copy.

    :param target: a directory for PYTHONPATH
    """
    shutil.copytree(
        site_packages / 'nova', target / 'nova',
        ignore=lambda path, names: [
            'tests'] if path == str(site_packages / 'nova') else [])
    patch_installed(name, target, tests=False)
