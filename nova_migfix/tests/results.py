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

"""What the tests came to, from the repositories that stestr keeps.

``python -m nova_migfix.tests.results DIRECTORY...`` adds up all runs below
the directories.
"""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import sys

from stestr import repository
from stestr.repository import file
import subunit
import testtools

PASSED = frozenset(('success', 'xfail'))
SKIPPED = frozenset(('skip',))


def runs(directory: str) -> Iterator[dict[str, str]]:
    """Yield, for each run in a repository, each test's name and status."""
    try:
        stored = file.RepositoryFactory().open(directory)
    except repository.abstract.RepositoryNotFound:
        return
    for run_id in stored.get_run_ids():
        yield _statuses(stored.get_test_run(run_id).get_subunit_stream())


def _statuses(stream) -> dict[str, str]:
    statuses: dict[str, str] = {}
    result = testtools.StreamToDict(
        lambda test: statuses.update({test['id']: test['status']}))
    result.startTestRun()
    subunit.ByteStreamToStreamResult(stream).run(result)
    result.stopTestRun()
    return statuses


def totals(counted: Iterable[Mapping[str, str]]) -> collections.Counter[str]:
    """Count what passed, failed and was skipped.

    Whatever neither passed nor was skipped has failed, be it an unexpected
    success, a module that cannot be imported or a test that never ended.
    """
    counts = collections.Counter(passed=0, failed=0, skipped=0)
    for statuses in counted:
        for status in statuses.values():
            counts['passed' if status in PASSED else
                   'skipped' if status in SKIPPED else 'failed'] += 1
    return counts


def main(directories: list[str]) -> None:
    counts = totals(
        run for directory in directories for run in runs(directory))
    print(', '.join(f'{number} {what}' for what, number in counts.items()))


if __name__ == '__main__':
    main(sys.argv[1:])
