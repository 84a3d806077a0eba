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
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
import testtools

from nova_migfix.abi import disk
from nova_migfix.abi import table
from nova_migfix.abi import vnic


#: the table, a device, and the function that applies the table to documents
DEVICES = {
    'vnic': (vnic.VNIC, '<interface><mac address="a"/></interface>',
             vnic.keep_vnics),
    'disk': (disk.DISK, '<disk><target dev="vda"/></disk>', disk.keep_disks),
}


def _element(path):
    """Return element and attribute of a path: 'driver/@queues', 'rom'."""
    parent, _, step = path.rpartition('/')
    step = step.partition('[')[0]
    return (parent, step[1:]) if step.startswith('@') else (
        f'{parent}/{step}'.strip('/'), 'name' if step == 'alias' else 'x')


def build(device, values):
    """Return a domain whose device has the given values."""
    document = etree.fromstring(
        f'<domain><devices>{device}</devices></domain>')
    for path, value in values.items():
        element, attribute = _element(path)
        node = document.find('devices')[0]
        for tag in filter(None, element.split('/')):
            child = node.find(tag)
            node = etree.SubElement(node, tag) if child is None else child
        node.set(attribute, value)
    return document


def device_of(document):
    return document.find('devices')[0]


@ddt.ddt
class TestEveryAttribute(testtools.TestCase):

    @ddt.data(*DEVICES)
    def test_each_attribute_follows_its_rule(self, kind):
        rows, device, keep = DEVICES[kind]
        values = st.dictionaries(
            st.sampled_from([row.path for row in rows.attributes]),
            st.sampled_from(['ua-1', 'ua-2', 'ua-3']))

        @given(running=values, computed=values)
        def check(running, computed):
            source, stock = build(device, running), build(device, computed)
            result = build(device, computed)
            keep(result, source)
            decides = {table.Rule.KEEP: device_of(source),
                       table.Rule.FOLLOW: device_of(stock)}
            for row in rows.attributes:
                self.assertEqual(row.read(decides[row.rule]),
                                 row.read(device_of(result)), row.path)
        check()

    @ddt.data(*DEVICES)
    def test_no_attribute_has_two_rules(self, kind):
        paths = [row.path for row in DEVICES[kind][0].attributes]
        self.assertEqual(sorted(set(paths)), sorted(paths))
