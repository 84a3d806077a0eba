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

"""Measure the merge of the reports of many hosts, and the merged page.

``python -m bench.fleet`` generates reports of hosts, merges them by the real
command, opens the page in Chromium and uses its filters. The time of a filter
includes its script and the layout afterwards.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import prettytable

import bench
from nova_migfix.tests.fleet import browser
from nova_migfix.tests import hosts

# The number of hosts, and the share of guests with each finding.
CASES = ((100, .25), (300, .25), (1000, .25), (1000, 1))
GUESTS = 50
ROUNDS = 3

# Requirements, in seconds: merge and opening together, and each filter.
LIMIT = 10
FILTER_LIMIT = 0.5

_SET = '''
const field = document.getElementById('{}');
field.value = '{}';
field.dispatchEvent(new Event('input', {{bubbles: true}}))
'''
# Applied one after the other, without a reset.
FILTERS = (('text', 'a'), ('text', ''), ('finding', 'vnic'),
           ('covered', 'no'), ('host', 'compute00'))


def merge(directory: pathlib.Path) -> float:
    """Return the seconds of the command, with the start of Python."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, '-m', 'nova_migfix.cmd.status', 'report',
         str(directory), '--json', str(directory / 'report'),
         '--html', str(directory / 'report.html')],
        capture_output=True, text=True)
    if done.returncode not in (0, 1, 2) or done.stderr:
        raise RuntimeError(done.stderr)
    return time.monotonic() - begin


def measure(number: int,
            often: float) -> tuple[int, float, float, float, float]:
    """Return findings, the page's size in MB, and seconds of each step.

    :param number: of hosts
    :param often: the share of guests with each finding
    """
    with tempfile.TemporaryDirectory() as name, browser.Browser() as page:
        directory = pathlib.Path(name)
        hosts.write_many(directory, number, GUESTS, often)
        merged = min(merge(directory) for _ in range(ROUNDS))
        html = directory / 'report.html'
        opened = min(page.open(html) for _ in range(ROUNDS))
        findings = page.counts()[2]
        slowest = max(page.seconds(_SET.format(*one)) for one in FILTERS)
        return findings, html.stat().st_size / 1e6, merged, opened, slowest


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    table = prettytable.PrettyTable([
        'hosts', 'findings', 'page, MB', 'merge, s', 'open, s', 'filter, s'])
    table.align = 'r'
    failed = []
    for number, often in CASES:
        findings, size, merged, opened, slowest = measure(number, often)
        table.add_row([number, findings, f'{size:.1f}', f'{merged:.2f}',
                       f'{opened:.2f}', f'{slowest:.3f}'])
        if merged + opened > LIMIT:
            failed.append(f'{findings} findings: merged and opened in '
                          f'{merged + opened:.1f} s')
        if slowest > FILTER_LIMIT:
            failed.append(f'{findings} findings: a filter takes '
                          f'{slowest:.1f} s')
    print(table)
    return bench.print_problems(failed)


if __name__ == '__main__':
    sys.exit(main())
