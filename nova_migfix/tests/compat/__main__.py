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

"""Run Nova's suites with both drivers and compare them test by test."""

import argparse
from collections.abc import Iterator
from collections.abc import Mapping
import pathlib
import sys

from nova import version

from nova_migfix.tests import suites

DRIVERS = ('stock', 'migfix')


def complaints(stock: Mapping[str, str],
               ours: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each test with an unexpected result."""
    if not stock:
        yield 'no test was run'
    for name in sorted({*stock, *ours}):
        before = stock.get(name, 'not run')
        now = ours.get(name, 'not run')
        if not suites.is_good(before):
            yield f'{name}: {before} with Nova\'s own driver'
        elif now != before:
            yield f'{name}: {before}, with our driver {now}'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('directory', type=pathlib.Path,
                        help='where the results are kept, below compat/')
    directory = parser.parse_args().directory / 'compat'
    stock, ours = (
        suites.run(directory / driver, MIGFIX_COMPAT_DRIVER=driver)
        for driver in DRIVERS)
    found = list(complaints(stock, ours))
    for complaint in found:
        print(complaint)
    print(f'Nova {version.version_string()}: stock {suites.describe(stock)}, '
          f'with our driver {suites.describe(ours)}')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
