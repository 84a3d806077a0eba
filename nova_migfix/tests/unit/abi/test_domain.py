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

import ddt
from lxml import etree
import testtools

from nova_migfix.abi import domain


@ddt.ddt
class TestDomainXML(testtools.TestCase):

    @ddt.data('', '<domain', 'no XML', '<domain><devices></domain>')
    def test_malformed_xml_is_refused(self, xml):
        self.assertRaises(ValueError, domain.parse, xml)

    def test_xml_entities_are_refused(self):
        document = ('<!DOCTYPE domain [<!ENTITY secret SYSTEM '
                    f'"file://{__file__}">]><domain>&secret;</domain>')
        self.assertRaises(ValueError, domain.parse, document)

    def test_domain_is_updated_in_place(self):
        xml = domain.updated(
            '<domain><name>ä</name></domain>', lambda document, name:
            etree.SubElement(document, name), 'uuid')
        self.assertEqual('<domain><name>ä</name><uuid/></domain>', xml)
