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

from unittest import mock

import ddt
import fixtures
from lxml import etree
from nova import exception
from nova import objects
from nova.virt.libvirt import host as libvirt_host
import testtools

from nova_migfix.fixes import volume
from nova_migfix.tests import volumes

ALIAS = f'<alias name="ua-{volumes.VOLUME}"/>'
LUN = volumes.disk(ALIAS, serial=None, device='lun')
DISKS = {
    'disk': volumes.disk(ALIAS),
    'disk of Nova 29': volumes.disk(),
    'lun': LUN,
    'lun of Nova 29': volumes.disk(device='lun'),
    # Cinder moved the volume, and its back end names the copy.
    'moved': volumes.disk(ALIAS.replace(volumes.VOLUME,
                                        volumes.OTHER_VOLUME)),
}


def canonical(element):
    return etree.canonicalize(etree.tostring(element, encoding='unicode'))


class VolumeTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.fix = volume.Volume()
        self.instance = volumes.instance()


@ddt.ddt
class TestVolumeThatIsNotAttached(VolumeTestCase):
    """LP 2112187: the disk of a volume that was swapped for another one."""

    def check(self, *disks, attached=(volumes.VOLUME,)):
        host = mock.create_autospec(libvirt_host.Host, instance=True)
        host.get_guest.return_value.get_xml_desc.return_value = (
            volumes.domain(*disks))
        mappings = [objects.BlockDeviceMapping(volume_id=identifier)
                    for identifier in attached]
        with mock.patch.object(
                objects.BlockDeviceMappingList, 'get_by_instance_uuid',
                autospec=True, return_value=mappings) as read:
            self.fix.check_can_live_migrate_source(self.instance, host, None)
        return read

    @ddt.data('disk', 'lun')
    def test_disk_is_refused_with_the_remedy(self, kind):
        disk = DISKS[kind].replace(volumes.VOLUME, volumes.OTHER_VOLUME)
        error = self.assertRaises(exception.MigrationPreCheckError,
                                  self.check, volumes.disk(), disk)
        for part in (volumes.INSTANCE, 'vdb', volumes.OTHER_VOLUME,
                     'not attached', 'Hard reboot the instance'):
            self.assertIn(part, str(error))
        self.assertLessEqual(len(str(error)), 255)
        self.assertIn('Live migration refused', self.log.output)

    @ddt.data('file', 'network')
    def test_disk_with_one_path_on_all_hosts_is_accepted(self, kind):
        disk = volumes.disk(serial=volumes.OTHER_VOLUME, kind=kind)
        self.check(disk).assert_not_called()

    @ddt.data(*DISKS)
    def test_disk_of_an_attached_volume_is_accepted(self, kind):
        # None is an image's mapping.
        self.check(DISKS[kind], attached=(None, volumes.VOLUME))
        self.assertEqual('', self.log.output)

    @ddt.data(('', None), ('', 'disk-1'), ('<alias name="ua-mine"/>', None))
    @ddt.unpack
    def test_disk_without_a_volume_is_accepted(self, elements, serial):
        disk = volumes.disk(elements, serial=serial)
        self.check(disk, attached=()).assert_not_called()


@ddt.ddt
class TestPathOfAVolume(VolumeTestCase):

    def update(self, computed, running=None, connected=(), **cachemodes):
        destination, present = (
            etree.fromstring(volumes.domain(disk))
            for disk in (computed, running or computed))
        self.fix.update_destination_xml(
            volumes.driver(**cachemodes), self.instance,
            objects.LibvirtLiveMigrateData(bdms=list(connected)),
            destination, present)
        return destination

    @ddt.data('lun', 'lun of Nova 29')
    def test_lun_gets_the_path_of_the_destination(self, kind):
        xml = self.update(DISKS[kind],
                          connected=[volumes.connected(kind='lun')])
        self.assertEqual([volumes.DESTINATION_PATH],
                         xml.xpath('//disk[@device="lun"]/source/@dev'))

    def test_lun_keeps_its_other_elements(self):
        before = etree.fromstring(LUN)
        after = self.update(LUN, connected=[volumes.connected(kind='lun')],
                            block='writethrough').find('.//disk')
        for disk in before, after:
            disk.remove(disk.find('source'))
        self.assertEqual(*(canonical(disk)
                           for disk in (before, after)))

    def test_volume_that_nova_finds_keeps_the_path_that_nova_set(self):
        computed = volumes.disk(path='/dev/as-nova-computed')
        xml = self.update(computed, connected=[volumes.connected()])
        self.assertEqual(['/dev/as-nova-computed'],
                         xml.xpath('//source/@dev'))

    def test_volume_is_found_by_its_alias(self):
        # Cinder moved the volume, and the disk has the former serial.
        xml = self.update(
            volumes.disk(ALIAS, serial=volumes.OTHER_VOLUME),
            connected=[volumes.connected()])
        self.assertEqual([volumes.DESTINATION_PATH],
                         xml.xpath('//source/@dev'))

    @ddt.data(*DISKS)
    def test_path_of_the_source_never_leaves_the_source(self, kind):
        error = self.assertRaises(exception.MigrationError, self.update,
                                  DISKS[kind])
        self.assertIn('which is not attached to it', str(error))

    @ddt.data('file', 'network')
    def test_path_that_all_hosts_have_stays(self, kind):
        xml = self.update(volumes.disk(kind=kind))
        self.assertEqual([volumes.SOURCE_PATH], xml.xpath('//source/@dev'))

    def test_disk_without_a_volume_is_left_alone(self):
        xml = self.update(volumes.disk(serial=None))
        self.assertEqual([volumes.SOURCE_PATH], xml.xpath('//source/@dev'))

    def test_kept_values_are_logged(self):
        xml = self.update(
            volumes.disk(),
            volumes.disk('<driver name="qemu" cache="writethrough"/>'),
            [volumes.connected()])
        self.assertEqual(['writethrough'], xml.xpath('//driver/@cache'))
        self.assertIn('Disk vdb: kept driver/@cache writethrough where Nova '
                      'would have set none', self.log.output)
