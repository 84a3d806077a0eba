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
from nova import objects
from nova.tests import fixtures as nova_fixtures
from nova.virt.libvirt import migration
import testtools

from nova_migfix.abi import disk as disk_abi
from nova_migfix.abi import domain
from nova_migfix.abi import table
from nova_migfix.tests import volumes

#: what changed since the guest booted: connection info of the volume, its
#: disk in the running guest, and the value that the guest must not lose
CHANGES = {
    'cache': ({}, '<driver name="qemu" type="raw" cache="writethrough"/>',
              'driver/@cache', 'writethrough', 'none'),
    'discard': ({'discard': True}, '', 'driver/@discard', None, 'unmap'),
    'io': ({}, '<driver name="qemu" type="raw" cache="none" io="threads"/>',
           'driver/@io', 'threads', None),
    'blockio': ({'logical_block_size': '4096'},
                '<blockio logical_block_size="512"/>', 'blockio',
                '<blockio logical_block_size="512"></blockio>',
                '<blockio logical_block_size="4096"></blockio>'),
    'no blockio': ({'physical_block_size': '4096'}, '', 'blockio', None,
                   '<blockio physical_block_size="4096"></blockio>'),
}


def first_disk(document):
    return document.find('./devices/disk')


@ddt.ddt
class TestKeepDisks(testtools.TestCase):
    """Nova computes the volumes; unmodified Nova is the first assertion."""

    def setUp(self):
        super().setUp()
        self.useFixture(nova_fixtures.LibvirtFixture())

    def recompute(self, running, data):
        return migration._update_volume_xml(
            domain.parse(running),
            objects.LibvirtLiveMigrateData(bdms=[volumes.connected(data)]),
            volumes.instance(), volumes.driver()._get_volume_config)

    @ddt.data(*CHANGES)
    def test_guest_sees_the_same_volume(self, name):
        data, elements, path, before, after = CHANGES[name]
        running = volumes.domain(volumes.disk(elements))
        document = self.recompute(running, data)
        attribute = next(row for row in disk_abi.DISK.attributes
                         if row.path == path)
        running = domain.parse(running)
        self.assertEqual([before, after], [
            attribute.read(first_disk(one)) for one in (running, document)])
        kept = disk_abi.keep_disks(document, running)
        self.assertEqual(before, attribute.read(first_disk(document)))
        self.assertIn(table.Kept('vdb', path, before, after), kept)

    def test_path_of_the_destination_is_kept(self):
        running = volumes.domain(volumes.disk())
        document = self.recompute(running, {})
        disk_abi.keep_disks(document, domain.parse(running))
        self.assertEqual(volumes.DESTINATION_PATH,
                         first_disk(document).find('source').get('dev'))

    @ddt.data([volumes.disk()], [])
    def test_same_disks_and_another_number_of_disks_stay(self, disks):
        document = domain.parse(volumes.domain(*disks))
        before = etree.tostring(document)
        self.assertEqual([], disk_abi.keep_disks(
            document, domain.parse(volumes.domain(volumes.disk()))))
        self.assertEqual(before, etree.tostring(document))
