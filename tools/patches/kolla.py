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

"""Convert a series for Kolla's patch mechanism.

``python -m tools.patches.kolla SERIES DIRECTORY`` writes
``DIRECTORY/<image>/series`` and the patches in that file, for ``kolla-build
--patches-path DIRECTORY``, which applies them to the image's root after Nova
is installed. Release notes and documents are not installed and are left out.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

from tools.patches import series

SITE_PACKAGES = 'var/lib/kolla/venv/lib/python3/site-packages/'
#: The image in which Kolla installs Nova; the images of all services of Nova
#: are built on it.
IMAGE = 'nova-base'


def write(name: str, directory: pathlib.Path, image: str = IMAGE,
          tests: bool = True,
          patches: pathlib.Path = series.PATCHES) -> list[str]:
    """Write a series for an image and return the names of the patches.

    :param tests: whether the image has Nova's tests
    """
    target = directory / image
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for patch in series.read(name, patches):
        if diff := series.installed(patch, SITE_PACKAGES, tests):
            (target / patch.name).write_text(
                f'{series.subject(patch)}\n\n{diff}')
            written.append(patch.name)
    (target / 'series').write_text(''.join(f'{one}\n' for one in written))
    return written


def main() -> int:
    parser = argparse.ArgumentParser(
        description='Write a series of patches for kolla-build.')
    parser.add_argument('series', choices=series.SERIES)
    parser.add_argument('directory', type=pathlib.Path,
                        help='the --patches-path of kolla-build')
    parser.add_argument('--image', default=IMAGE,
                        help=f'the image to patch (default: {IMAGE})')
    parser.add_argument('--without-tests', action='store_true',
                        help='for an image without the tests of Nova')
    arguments = parser.parse_args()
    written = write(arguments.series, arguments.directory, arguments.image,
                    not arguments.without_tests)
    print(f'{len(written)} patches in '
          f'{arguments.directory / arguments.image}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
