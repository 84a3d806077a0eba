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

"""Nova has the options that the pages name."""

import re

import ddt
from nova import conf
from oslo_log import log as logging
import testtools

from nova_migfix import conf as migfix_conf
from nova_migfix import nova_release
from nova_migfix.tests import pages

CONF = conf.CONF
PAGE = 'configuration/index.rst'
_NAMED = re.compile(r'``\[(\w+)\] (\w+)``')


def _named():
    """Return group and name of each option that the pages name."""
    return sorted({named for page in pages.names()
                   for named in _NAMED.findall(pages.text(page))})


@ddt.ddt
class OptionsTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        if nova_release.major() < nova_release.NEWEST:
            self.skipTest('the pages speak of the newest Nova')
        migfix_conf.register_opts(CONF)
        logging.register_options(CONF)

    @ddt.data(*_named())
    @ddt.unpack
    def test_documented_option_exists_in_nova(self, group, name):
        section = CONF if group == 'DEFAULT' else CONF[group]
        self.assertIn(name, section)

    def test_reference_of_the_plugin_options_is_generated(self):
        self.assertIn('.. show-options::\n\n   nova_migfix\n',
                      pages.text(PAGE))

    def test_pages_name_options(self):
        self.assertIn(('libvirt', 'max_queues'), _named())
