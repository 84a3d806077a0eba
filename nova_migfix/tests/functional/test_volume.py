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

"""The guest has the same volume on its destination, and no other disk."""

import copy

import fixtures
from lxml import etree
from nova.tests import fixtures as nova_fixtures
from nova.tests.fixtures import libvirt as fakelibvirt

from nova_migfix import nova_release
from nova_migfix.tests.functional import base

VOLUME = nova_fixtures.CinderFixture.SWAP_OLD_VOL
OTHER_VOLUME = nova_fixtures.CinderFixture.SWAP_NEW_VOL
SOURCE_PATH, DESTINATION_PATH = '/dev/source-1', '/dev/destination-7'


class VolumesOfLibvirt(fixtures.Fixture):
    """Correct Nova's fake libvirt, which keeps only the paths of a disk."""

    def _setUp(self):
        parse = fakelibvirt.Domain._parse_definition
        describe = fakelibvirt.Domain.XMLDesc

        def parse_definition(domain, xml):
            domain.disks = etree.fromstring(xml).findall('./devices/disk')
            return parse(domain, xml)

        def xml_desc(domain, flags):
            document = etree.fromstring(describe(domain, flags))
            for shown, given in zip(document.findall('./devices/disk'),
                                    domain.disks):
                shown.getparent().replace(shown, copy.deepcopy(given))
            return etree.tostring(document, encoding='unicode')

        for name, replacement in (('_parse_definition', parse_definition),
                                  ('XMLDesc', xml_desc)):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova.tests.fixtures.libvirt.Domain.{name}', replacement))


class VolumeTestCase(base.MigrationTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(VolumesOfLibvirt())
        self.cinder = self.useFixture(nova_fixtures.CinderFixture(self))
        # the volumes of a guest are one test's own
        self.cinder.VOLUME_CONNECTION_INFO = {}
        self.connect(SOURCE_PATH)

    def connect(self, path, **data):
        """Let Cinder return this path and data for a volume."""
        self.cinder.VOLUME_CONNECTION_INFO['fake'] = {
            'driver_volume_type': 'local',
            'data': {'device_path': path, **data}}

    def boot(self, **volume):
        image = self.create_image()
        server = self._build_server(
            image_uuid=image, host=self.src.host,
            networks=[{'port': self.neutron.port_1['id']}])
        server['block_device_mapping_v2'] = [
            {'boot_index': 0, 'uuid': image, 'source_type': 'image',
             'destination_type': 'local'},
            {'boot_index': -1, 'uuid': VOLUME, 'source_type': 'volume',
             'destination_type': 'volume', **volume}]
        self.server = self._wait_for_state_change(
            self.api.post_server({'server': server}), 'ACTIVE')

    def migrate(self, record='completed'):
        self.connect(DESTINATION_PATH, **self.changed)
        self.live_migrate(record, host='dest')

    #: of the connection, since the boot
    changed = {'discard': True}

    def volume(self, xml):
        """Return the disk of the volume."""
        return etree.fromstring(xml).findall('./devices/disk')[1]

    def arrived(self):
        return self.volume(self.destination_xmls[-1])

    def change_serial(self):
        """Let libvirt's disk have the serial of another volume."""
        disk = self.source_domain().disks[1]
        disk.find('serial').text = OTHER_VOLUME
        # Nova 29 sets none.
        for alias in disk.findall('alias'):
            alias.set('name', f'ua-{OTHER_VOLUME}')


class KeptVolumeTestCase(VolumeTestCase):

    def test_volume_has_the_path_of_the_destination_and_no_new_feature(self):
        self.boot()
        self.migrate()
        self.assertEqual(DESTINATION_PATH,
                         self.arrived().find('source').get('dev'))
        self.assertIsNone(self.arrived().find('driver').get('discard'))
        self.assertIn('kept driver/@discard None where Nova would have set '
                      'unmap', self.stdlog.logger.output)

    def test_lun_has_the_path_of_the_destination(self):
        self.boot(device_type='lun', disk_bus='scsi')
        self.migrate()
        self.assertEqual('lun', self.arrived().get('device'))
        self.assertEqual(DESTINATION_PATH,
                         self.arrived().find('source').get('dev'))

    def test_volume_that_is_not_attached_is_refused_in_the_precheck(self):
        self.boot()
        self.change_serial()
        self.migrate('error')
        self.assertEqual('src', self.host())
        self.assertEqual([], self.destination_xmls)
        event = self.failed_event('compute_check_can_live_migrate_source')
        for part in (self.server['id'], OTHER_VOLUME, 'vdb',
                     'Hard reboot the instance'):
            self.assertIn(part, event['details'])


class UnmodifiedNovaTestCase(VolumeTestCase):
    """Without the fix Nova changes the volume, or opens the source's path."""

    enabled_fixes = ['rollback_state', 'source_address', 'vnic']

    def test_unmodified_nova_changes_the_volume(self):
        self.boot()
        self.migrate()
        self.assertEqual('unmap', self.arrived().find('driver').get('discard'))

    def test_unmodified_nova_opens_a_lun_by_the_path_of_the_source(self):
        self.boot(device_type='lun', disk_bus='scsi')
        self.migrate()
        self.assertEqual(
            SOURCE_PATH if nova_release.major() > 29 else DESTINATION_PATH,
            self.arrived().find('source').get('dev'))

    def test_unmodified_nova_opens_another_volume_by_the_path_of_the_source(
            self):
        self.boot()
        self.change_serial()
        self.migrate()
        self.assertEqual(SOURCE_PATH, self.arrived().find('source').get('dev'))
