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

"""Check one series of patches against its release."""

from __future__ import annotations

import ast
import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import fnmatch
import os
import pathlib
import re
import subprocess
import sys
from typing import NamedTuple

from nova_migfix.tests import environments
from nova_migfix.tests import suites
from tools.patches import note
from tools.patches import passed
from tools.patches import series
from tools.patches import tree

#: The paths in Nova's tree that a patch may touch.
PLACES = ('nova/', 'doc/source/', 'releasenotes/notes/')

#: The tests of a file, beside the module that is named after it.
ALSO_TESTED = {
    'nova/compute/manager.py': ('nova.tests.unit.compute.test_compute_mgr',),
    'nova/objects/*': ('nova.tests.unit.objects.test_objects',),
    'nova/virt/libvirt/driver.py': (
        'nova.tests.functional.libvirt.test_live_migration',
        'nova.tests.functional.libvirt.test_migration_addr'),
}


class Tool(NamedTuple):
    """A tool with which Nova checks style or types.

    :ivar package: in the version that the release pins, if it pins one
    :ivar files: a pattern for the touched files that the tool checks; None if
        the release's configuration lists all files
    :ivar needs: further packages that the tool needs
    """

    package: str
    command: tuple[str, ...]
    files: str | None = None
    needs: tuple[str, ...] = ()


STYLE = (
    Tool('hacking', ('flake8',), '*.py'),
    Tool('autopep8', ('autopep8', '--in-place', '--exit-code'), '*.py'),
    Tool('codespell', ('codespell', '--ignore-words=doc/dictionary.txt'), '*'),
    Tool('mypy', ('mypy', '--no-error-summary'), needs=('types-paramiko',)),
)


class Row(NamedTuple):
    series: str
    patch: str
    before: str = ''
    after: str = ''
    without: str = ''
    style: str = ''
    note: str = ''
    rc: int = 0


class Series:
    """The checks of a series on its release.

    :ivar complaints: all failures
    :ivar notes: findings that are no failures
    """

    def __init__(self, name: str, directory: pathlib.Path,
                 venvs: environments.Environments, patches: pathlib.Path,
                 ends: bool = False) -> None:
        self.name = name
        self.complaints: list[str] = []
        self.notes: list[str] = []
        self._directory = directory
        self._major = series.SERIES[name]
        self._patches = series.read(name, patches)
        self._ends = ends
        self._tree = tree.Tree(directory / 'trees' / name)
        self._python = venvs.python(self._major)
        self._statuses: dict[int, dict[str, str]] = {}
        self._passed = passed.Passed(
            directory / 'passed',
            series.constraints(self._major).read_text())

    def rows(self) -> Iterator[Row]:
        self._tree.make(series.release(self._major))
        self._commits = self._tree.apply(self._patches)
        for number, patch in enumerate(self._patches, 1):
            yield self._row(number, patch)

    def _row(self, number: int, patch: pathlib.Path) -> Row:
        known = len(self.complaints)
        self._complain(patch, (
            f'{path}: does not belong there' for path in series.touched(patch)
            if not path.startswith(PLACES)))
        modules = self._modules([patch])
        before, after = (
            _of(self._run(where), modules) for where in (
                (0, len(self._patches)) if self._ends
                else (number - 1, number)))
        self._complain(patch, _bad(before, 'before it'))
        self._complain(patch, _bad(after, 'with it'))
        return Row(self.name, patch.name, _counted(before), _counted(after),
                   self._without(number, patch, before, after),
                   self._style(number, patch), self._note(number, patch),
                   int(len(self.complaints) > known))

    def _complain(self, patch: pathlib.Path, what: Iterable[str]) -> None:
        self.complaints += [f'{patch.name}: {text}' for text in what]

    # -- tests ---------------------------------------------------------------

    def _modules(self, patches: Iterable[pathlib.Path]) -> set[str]:
        """Return the test modules of the files that the patches touch."""
        return {module for patch in patches for path in series.touched(patch)
                for module in self._tests_of(path)}

    def _tests_of(self, path: str) -> Iterator[str]:
        if path.startswith(series.TESTS):
            if os.path.basename(path).startswith('test_'):
                yield series.module(path)
            return
        directory, name = os.path.split(path)
        test = (f'{series.TESTS}unit/{directory.removeprefix("nova/")}/'
                f'test_{name}')
        if (self._tree.path / test).exists():
            yield series.module(test)
        for pattern, modules in ALSO_TESTED.items():
            if fnmatch.fnmatch(path, pattern):
                yield from modules

    def _run(self, number: int) -> dict[str, str]:
        """Run all tests of the tree after *number* patches, once.

        :returns: the status of each test by its name
        """
        if number not in self._statuses:
            self._tree.checkout(self._commits[number])
            near = (self._patches if self._ends
                    else self._patches[max(number - 1, 0):number + 1])
            modules = set(filter(self._is_here, self._modules(near)))
            content = self._tree.content(self._commits[number])
            known = self._passed.read(content)
            new = self._run_here(f'{number:02}', modules - set(known))
            self._passed.add(content, {
                module: _of(new, {module}) for module in modules})
            self._statuses[number] = new
            for module in modules & set(known):
                self._statuses[number] |= known[module]
        return self._statuses[number]

    def _is_here(self, module: str) -> bool:
        return (self._tree.path / (module.replace('.', '/') + '.py')).exists()

    def _run_here(
        self, name: str, modules: Iterable[str], *,
        only: Callable[[str], bool] | None = None,
        attempts: int = suites.ATTEMPTS,
    ) -> dict[str, str]:
        modules = sorted(modules)
        if not modules:
            return {}
        directory = self._directory / 'results' / self.name
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / f'{name}.log', 'w') as output:
            return suites.run(
                directory / name, python=self._python, only=only,
                attempts=attempts, output=output,
                PYTHONPATH=str(self._tree.path),
                # git removes bytecode from the tree with each checkout.
                PYTHONPYCACHEPREFIX=str(self._directory / 'bytecode'),
                MIGFIX_COMPAT_MODULES=' '.join(modules))

    def _without(self, number: int, patch: pathlib.Path,
                 before: Mapping[str, str], after: Mapping[str, str]) -> str:
        """Run the tests that a patch adds without the rest of the patch."""
        new = self._new(number, patch, before, after)
        if not new:
            self._complain(patch, ['it has no test'])
            return 'none'
        self._tree.checkout(self._commits[number - 1])
        self._tree.add_from(self._commits[number], series.TESTS)
        statuses = self._run_here(
            f'{number:02}-without', self._modules([patch]),
            only=new.__contains__, attempts=1)
        passing = {name for name in new
                   if suites.is_good(statuses.get(name, 'not run'))}
        if passing == new:
            self._complain(patch, ['no new test fails without it'])
        self.notes += [f'{patch.name}: {name} passes without it'
                       for name in sorted(passing)]
        return f'{len(new - passing)} of {len(new)}'

    def _new(self, number: int, patch: pathlib.Path,
             before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
        """Return the tests that a patch adds or changes."""
        changed = {
            f'{series.module(path)}.{test}'
            for path in series.touched(patch) if path.startswith(series.TESTS)
            for test in changed_tests(*(
                self._tree.show(self._commits[at], path)
                for at in (number - 1, number)))}
        return {name for name in after if is_among(name, changed)
                or (not self._ends and name not in before)}

    # -- style ---------------------------------------------------------------

    def _style(self, number: int, patch: pathlib.Path) -> str:
        bad = []
        for tool in STYLE:
            said = self._said(tool, number, patch)
            if said:
                said = news(self._said(tool, number - 1, patch), said)
            if said:
                bad.append(tool.package)
                self._complain(patch, [f'{tool.package}: {said}'])
        return ', '.join(bad) or 'good'

    def _said(self, tool: Tool, number: int, patch: pathlib.Path) -> str:
        """Return a tool's complaints about a patch's files.

        :param number: of patches that are applied
        """
        self._tree.checkout(self._commits[number])
        files = [path for path in series.touched(patch)
                 if tool.files and fnmatch.fnmatch(path, tool.files)
                 and (self._tree.path / path).exists()]
        if tool.files and not files:
            return ''
        done = subprocess.run(
            ['uv', 'tool', 'run', '--quiet', '--python', sys.executable,
             '--from', self._requirement(tool.package),
             *(f'--with={package}' for package in tool.needs),
             *tool.command, *files],
            cwd=self._tree.path, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={
                **os.environ,
                'MYPY_CACHE_DIR': str(self._directory / 'mypy' / self.name)})
        # autopep8 reports problems by fixing them
        said = f'{done.stdout}{self._tree.difference()}'
        return said or 'failed' if done.returncode else ''

    def _requirement(self, package: str) -> str:
        found = re.search(
            rf'[/-]{package}\n +rev: v?(\S+)',
            (self._tree.path / '.pre-commit-config.yaml').read_text())
        # Newer releases use the newest mypy, by tox.ini.
        return f'{package}=={found[1]}' if found else package

    def _note(self, number: int, patch: pathlib.Path) -> str:
        """Check the release note that a patch adds."""
        paths = [path for path in series.touched(patch)
                 if path.startswith('releasenotes/')]
        bad = [] if paths else ['it has no release note']
        for path in paths:
            bad += note.complaints(
                path, self._tree.show(self._commits[number], path))
        self._complain(patch, bad)
        return 'bad' if bad else 'good'


def _of(statuses: Mapping[str, str], modules: set[str]) -> dict[str, str]:
    return {name: status for name, status in statuses.items()
            if any(name.startswith(f'{module}.') or name == module
                   for module in modules)}


def _bad(statuses: Mapping[str, str], when: str) -> Iterator[str]:
    for name, status in sorted(statuses.items()):
        if not suites.is_good(status):
            yield f'{name}: {status} {when}'


def news(before: str, after: str) -> str:
    """Return the lines of *after* that are not in *before*.

    Lines that differ in a line or column number only count as equal.
    """
    known = collections.Counter(map(_placeless, before.splitlines()))
    new = []
    for line in after.splitlines():
        if known[_placeless(line)]:
            known[_placeless(line)] -= 1
        else:
            new.append(line)
    return '\n'.join(new)


def _placeless(line: str) -> str:
    return re.sub(r'\d+', '', line)


def _counted(statuses: Mapping[str, str]) -> str:
    good = sum(map(suites.is_good, statuses.values()))
    return f'{good} of {len(statuses)}'


def is_among(name: str, tests: set[str]) -> bool:
    """Return whether a test is one of *tests*, or generated from one.

    ddt appends the number and the value of its data to the name.
    """
    return name in tests or re.sub(r'_\d+(_\w*)?$', '', name) in tests


def changed_tests(before: str, after: str) -> set[str]:
    """Return, as Class.method, the tests that a source adds or changes."""
    old, new = (dict(_tests(ast.parse(source))) for source in (before, after))
    return {name for name in new if new[name] != old.get(name)}


def _tests(module: ast.Module) -> Iterator[tuple[str, str]]:
    classes = {node.name: node for node in module.body
               if isinstance(node, ast.ClassDef)}
    for name, node in classes.items():
        # a base class: its subclasses run its tests
        if not name.startswith('_'):
            for method in _methods(node, classes):
                if method.name.startswith('test'):
                    yield f'{name}.{method.name}', ast.dump(method)


def _methods(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef],
             ) -> Iterator[ast.FunctionDef]:
    """Yield a class's methods after those that it inherits in the module."""
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            yield from _methods(classes[base.id], classes)
    yield from (method for method in node.body
                if isinstance(method, ast.FunctionDef))
