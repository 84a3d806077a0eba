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

"""Run modules of Nova's own test suites, in any environment.

Environment variables select the modules and the driver: see
:mod:`nova_migfix.tests.compat.test_nova`.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Mapping
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any
from typing import IO

from nova_migfix.tests import results

CHECKOUT = pathlib.Path(__file__).parents[2]

#: limit for one test, in seconds
TIMEOUT = '300'

#: Run in separate processes, as Nova does: together they hang.
SUITES = (r'^nova\.tests\.unit\.', r'^nova\.tests\.functional\.')

# On a busy machine some of Nova's functional tests hang sometimes, with either
# driver, and the tests after them do not run.
ATTEMPTS = 3


def run(
    directory: pathlib.Path, *, python: str | pathlib.Path = sys.executable,
    only: Callable[[str], bool] | None = None, attempts: int = ATTEMPTS,
    output: IO[str] | None = None, **environment: str,
) -> dict[str, str]:
    """Run the tests and return each one's status.

    :param directory: gets the results; its previous contents are removed
    :param python: the interpreter of an environment with Nova and stestr
    :param only: returns whether to run a test, by its name; None to run all
    :param attempts: how often to run tests that do not pass
    :param output: a file for stestr's output, None for standard output
    :param environment: environment variables
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    stestr = _Stestr(directory, python, environment, output)
    ids = stestr.ids()
    for suite in SUITES:
        left = {name for name in ids if re.match(suite, name)
                and (only is None or only(name))}
        for _ in range(attempts):
            if left:
                stestr.run(left)
                left -= {name for name, status in _statuses(directory).items()
                         if is_good(status)}
    return _statuses(directory)


def is_good(status: str) -> bool:
    return status in results.PASSED | results.SKIPPED


def _statuses(directory: pathlib.Path) -> dict[str, str]:
    return {test['id']: test['status']
            for tests in results.runs(str(directory)) for test in tests}


class _Stestr:
    """stestr with a repository and an environment."""

    def __init__(self, directory: pathlib.Path, python: str | pathlib.Path,
                 environment: Mapping[str, str],
                 output: IO[str] | None) -> None:
        self._command = [
            python, '-m', 'stestr', '--repo-url', directory,
            '--test-path', CHECKOUT / 'nova_migfix' / 'tests' / 'compat']
        self._options: dict[str, Any] = {
            'stdout': output, 'stderr': output, 'cwd': CHECKOUT, 'env': {
                **os.environ, 'OS_TEST_TIMEOUT': TIMEOUT, **environment}}
        subprocess.run([*self._command, 'init'], check=True, **self._options)

    def ids(self) -> set[str]:
        listed = subprocess.run(
            [*self._command, 'list'], text=True, check=True,
            **{**self._options, 'stdout': subprocess.PIPE}).stdout
        return {line for line in listed.splitlines()
                if line.startswith('nova.')}

    def run(self, ids: set[str]) -> None:
        with tempfile.NamedTemporaryFile('w', suffix='.list') as file:
            file.write('\n'.join(sorted(ids)) + '\n')
            file.flush()
            subprocess.run([*self._command, 'run', '--load-list', file.name],
                           **self._options)


def describe(statuses: Mapping[str, str]) -> str:
    counts = collections.Counter(statuses.values())
    return f'{len(statuses)} run (' + ', '.join(
        f'{number} {status}' for status, number in sorted(counts.items())
    ) + ')'
