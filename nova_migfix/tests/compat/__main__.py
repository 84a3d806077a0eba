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

"""Runs Nova's suites with both drivers and compares test by test."""

import argparse
import collections
from collections.abc import Iterator
from collections.abc import Mapping
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from nova import version

from nova_migfix.tests import results

DRIVERS = ('stock', 'migfix')

#: for one test, in seconds
TIMEOUT = '300'

#: Nova runs them in processes of their own, too: together they hang.
SUITES = (r'^nova\.tests\.unit\.', r'^nova\.tests\.functional\.')


# On a busy machine some of Nova's functional tests hang now and then, with
# either driver, and take those with them that should have come after.
ATTEMPTS = 3


def run(driver: str, directory: pathlib.Path) -> dict[str, str]:
    """Run both suites with a driver and return each test's status."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    stestr = _Stestr(driver, directory)
    for suite in SUITES:
        left = stestr.ids(suite)
        for _ in range(ATTEMPTS):
            if left:
                stestr.run(left)
                left -= {name for name, status in _statuses(directory).items()
                         if status in results.PASSED | results.SKIPPED}
    return _statuses(directory)


def _statuses(directory: pathlib.Path) -> dict[str, str]:
    return {test['id']: test['status']
            for tests in results.runs(str(directory)) for test in tests}


class _Stestr:
    """stestr with a repository and a driver."""

    def __init__(self, driver: str, directory: pathlib.Path) -> None:
        self._command = ['stestr', '--repo-url', directory,
                         '--test-path', os.path.dirname(__file__)]
        self._environment = {
            **os.environ, 'MIGFIX_COMPAT_DRIVER': driver,
            'OS_TEST_TIMEOUT': TIMEOUT}
        subprocess.run([*self._command, 'init'], check=True)

    def ids(self, suite: str) -> set[str]:
        listed = subprocess.run(
            [*self._command, 'list', suite], env=self._environment,
            stdout=subprocess.PIPE, text=True, check=True).stdout
        return {line for line in listed.splitlines()
                if line.startswith('nova.')}

    def run(self, ids: set[str]) -> None:
        with tempfile.NamedTemporaryFile('w', suffix='.list') as file:
            file.write('\n'.join(sorted(ids)) + '\n')
            file.flush()
            subprocess.run([*self._command, 'run', '--load-list', file.name],
                           env=self._environment)


def describe(statuses: Mapping[str, str]) -> str:
    counts = collections.Counter(statuses.values())
    return f'{len(statuses)} run (' + ', '.join(
        f'{number} {status}' for status, number in sorted(counts.items())
    ) + ')'


def complaints(stock: Mapping[str, str],
               ours: Mapping[str, str]) -> Iterator[str]:
    """Yield whatever is not as it should be, a line for each test."""
    if not stock:
        yield 'no test was run'
    for name in sorted({*stock, *ours}):
        before = stock.get(name, 'not run')
        now = ours.get(name, 'not run')
        if before not in results.PASSED | results.SKIPPED:
            yield f'{name}: {before} with Nova\'s own driver'
        elif now != before:
            yield f'{name}: {before}, with our driver {now}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('directory', type=pathlib.Path,
                        help='where the results are kept, below compat/')
    directory = parser.parse_args().directory / 'compat'
    stock, ours = (run(driver, directory / driver) for driver in DRIVERS)
    found = list(complaints(stock, ours))
    for complaint in found:
        print(complaint)
    print(f'Nova {version.version_string()}: stock {describe(stock)}, '
          f'with our driver {describe(ours)}')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
