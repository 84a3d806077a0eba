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

"""tox.ini has the environments that the pages name."""

import re

import ddt
import testtools

from nova_migfix.tests.documentation import tox
from nova_migfix.tests import pages

# The environments in upstream.rst are Nova's.
_PAGES = [page for page in pages.names() if page != 'patches/upstream.rst']
_NAMED = re.compile(r'\btox (?:run )?-e ([a-z0-9-]+(?:,[a-z0-9-]+)*)')


@ddt.ddt
class ToxTestCase(testtools.TestCase):

    @ddt.data(*_PAGES)
    def test_environments_of_a_page_exist(self, page):
        for names in _NAMED.findall(pages.text(page)):
            self.assertEqual(
                set(), set(names.split(',')) - tox.environments())

    def test_environment_names_are_expanded(self):
        self.assertTrue({'nova-29', 'nova-34-quick', 'docs'}.issubset(
            tox.environments()))
