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

"""Sum up the results of tests from stestr's repositories.

``python -m nova_migfix.tests.results DIRECTORY...`` prints the end of the
details of each failed test, and then the totals of all runs in the
directories. The end of a log thus shows which tests failed.
"""

import collections
from collections.abc import Iterator
from collections.abc import Mapping
import sys
from typing import Any

from stestr import repository
from stestr.repository import file
import subunit
import testtools

PASSED = frozenset(('success', 'xfail'))
SKIPPED = frozenset(('skip',))
# Lines to print of each detail of a failed test, which may be a whole log.
LINES_SHOWN = 25


def runs(directory: str) -> Iterator[list[dict[str, Any]]]:
    """Yield the tests of each run in a repository, with their results.

    A test is a dictionary with ``id``, ``status`` and ``details``, as
    ``testtools.StreamToDict`` makes it.
    """
    try:
        stored = file.RepositoryFactory().open(directory)
    except repository.abstract.RepositoryNotFound:
        return
    for run_id in stored.get_run_ids():
        yield _tests(stored.get_test_run(run_id).get_subunit_stream())


def _tests(stream) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = []
    result = testtools.StreamToDict(tests.append)
    result.startTestRun()
    subunit.ByteStreamToStreamResult(stream).run(result)
    result.stopTestRun()
    return tests


def outcome(test: Mapping[str, Any]) -> str:
    """Return 'passed', 'failed' or 'skipped'.

    Every other status counts as failed, such as an unexpected success, a
    module that cannot be imported, or a test that did not end.
    """
    status = test['status']
    return ('passed' if status in PASSED else
            'skipped' if status in SKIPPED else 'failed')


def describe(test: Mapping[str, Any]) -> str:
    """Return a failed test's name and the ends of its details."""
    lines = [f"FAILED {test['id']}: {test['status']}"]
    for name, content in sorted(test['details'].items()):
        if content.content_type.type == 'text':
            lines += [f'  {name}:', *(
                f'    {line}' for line
                in content.as_text().splitlines()[-LINES_SHOWN:])]
    return '\n'.join(lines)


def main(directories: list[str]) -> None:
    tests = [test for directory in directories for run in runs(directory)
             for test in run]
    for test in tests:
        if outcome(test) == 'failed':
            print(describe(test))
    counts = collections.Counter(passed=0, failed=0, skipped=0)
    counts.update(map(outcome, tests))
    print(', '.join(f'{number} {name}' for name, number in counts.items()))


if __name__ == '__main__':
    main(sys.argv[1:])
