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

"""Check the series of patches against their releases.

``python -m tools.patches DIRECTORY [SERIES...]`` keeps all that it downloads
and makes below the directory. Each patch must apply by git am and pass Nova's
own style checks; the tests of the files that it touches must pass before and
after; and the tests that it adds or changes must fail without the rest of it.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys

import prettytable

from nova_migfix.tests import environments
from tools.patches import check
from tools.patches import series

COLUMNS = ('series', 'patch', 'tests before', 'after',
           'new or changed, failing without', 'style', 'note', 'rc')


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='run_patches.sh', description='Check the patches to Nova.')
    parser.add_argument('directory', type=pathlib.Path)
    parser.add_argument('series', nargs='*', metavar='SERIES',
                        help=f'{", ".join(series.SERIES)}; default: all')
    parser.add_argument('--patches', type=pathlib.Path,
                        default=series.PATCHES,
                        help='another directory with series')
    parser.add_argument('--ends', action='store_true',
                        help='run the tests of the touched files before the '
                        'first and after the last patch only')
    arguments = parser.parse_intermixed_args()
    if unknown := set(arguments.series) - set(series.SERIES):
        parser.error(f'no such series: {", ".join(sorted(unknown))}')
    return arguments


def main() -> int:
    arguments = parse()
    directory = arguments.directory.resolve()
    venvs = environments.Environments(
        directory / 'venvs', '-r', series.CHECKOUT / 'requirements.txt',
        '-r', series.CHECKOUT / 'test-requirements.txt')
    table = prettytable.PrettyTable(COLUMNS, align='l')
    complaints, notes = [], []
    for name in arguments.series or series.SERIES:
        checked = check.Series(
            name, directory, venvs, arguments.patches, arguments.ends)
        try:
            for row in checked.rows():
                # All series together take more than an hour.
                print(*row, sep='  ', flush=True)
                table.add_row(list(row))
        except subprocess.CalledProcessError as error:
            checked.complaints.append(f'{error}\n{error.output or ""}')
        complaints += [f'{name}: {text}' for text in checked.complaints]
        notes += [f'{name}: note: {text}' for text in checked.notes]
    print('\n'.join([*notes, *complaints, str(table)]))
    return 1 if complaints else 0


if __name__ == '__main__':
    sys.exit(main())
