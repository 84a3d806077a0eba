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

"""Make the picture of the documentation: ``python -m ... FILE``.

It shows fake hosts, always the same ones.
"""

import argparse
import pathlib
import tempfile

from nova_migfix.cmd import status
from nova_migfix.tests.fleet import browser
from nova_migfix.tests import hosts

HOSTS, GUESTS = 12, 20


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', type=pathlib.Path, help='a PNG')
    file = parser.parse_args().file
    with tempfile.TemporaryDirectory() as directory, browser.Browser(
            '1200,1000') as page:
        place = pathlib.Path(directory)
        hosts.write_many(place, HOSTS, GUESTS)
        html = place / 'report.html'
        status.main(['report', directory, '--html', str(html)])
        page.open(html)
        page.save_screenshot(file)


if __name__ == '__main__':
    main()
