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
from nova import exception
from nova.objects import migrate_data as nova_migrate_data
from oslo_config import cfg
from oslo_config import fixture as config_fixture
import testtools

from nova_migfix.fixes import source_address
from nova_migfix import peer
from nova_migfix.tests import fixtures as migfix_fixtures

ADDRESSES = ('10.0.2.11', 'fd00::2:11', 'compute1.migration.example')
REFUSED = ('-oProxyCommand=id', 'a b', '/tmp/a', 'root@a', '', 'a' * 64)


@ddt.ddt
class TestSourceAddress(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.fix = source_address.SourceAddress()
        self.useFixture(migfix_fixtures.PatchedMigrateData())
        self.data = peer.LibvirtLiveMigrateData()

    def configure(self, value):
        self.config.config(live_migration_inbound_addr=value, group='libvirt')

    @ddt.data(*ADDRESSES)
    def test_source_sends_its_address_in_precheck_and_on_departure(self, own):
        self.configure(own)
        for tell in (
                lambda: self.fix.check_can_live_migrate_source(
                    None, None, self.data),
                lambda: self.fix.set_source_fields(self.data, [])):
            self.data = peer.LibvirtLiveMigrateData()
            tell()
            self.assertEqual(own, self.data.source_connect_addr)

    def test_unset_option_sends_no_address(self):
        self.configure(None)
        self.fix.check_can_live_migrate_source(None, None, self.data)
        self.fix.set_source_fields(self.data, [])
        self.assertNotIn('source_connect_addr', self.data)
        disks = [{'path': 'disk'}]
        self.fix.set_source_fields(None, disks)
        self.assertEqual([{'path': 'disk'}], disks)

    @ddt.data(*ADDRESSES)
    def test_destination_fetches_from_the_address_of_the_source(
            self, announced):
        self.data.source_connect_addr = announced
        self.assertEqual(announced, self.fix.source_address(None, self.data))
        self.assertIn(announced, self.log.output)
        self.assertIn('LP 1939869', self.log.output)

    def test_destination_without_address_fetches_from_the_host_name(self):
        self.assertIsNone(self.fix.source_address(None, self.data))
        stock = nova_migrate_data.LibvirtLiveMigrateData()
        self.assertIsNone(self.fix.source_address(None, stock))
        self.assertEqual('', self.log.output)

    @ddt.data(*REFUSED)
    def test_invalid_address_is_refused(self, announced):
        self.data.source_connect_addr = announced
        error = self.assertRaises(exception.MigrationPreCheckError,
                                  self.fix.source_address, None, self.data)
        self.assertIn('live_migration_inbound_addr', str(error))
        self.assertRaises(
            exception.MigrationPreCheckError, self.fix.source_address, None,
            None, [{'source_connect_addr': announced}])

    @ddt.data(*ADDRESSES)
    def test_cold_migration_sends_the_address_with_each_disk(self, own):
        self.configure(own)
        disks = [{'path': 'disk'}, {'path': 'disk.eph0'}]
        self.fix.set_source_fields(None, disks)
        self.assertEqual([own, own],
                         [disk['source_connect_addr'] for disk in disks])
        self.assertEqual(own, self.fix.source_address(None, None, disks))

    def test_cold_migration_without_disks_sends_no_address(self):
        self.assertIsNone(self.fix.source_address(None, None, []))

    def test_fix_is_not_needed_where_nova_has_the_field(self):
        self.assertIsNone(source_address.SourceAddress.not_needed())
        with mock.patch('nova_migfix.peer.NOVA_FIELDS',
                        {'source_connect_addr'}):
            self.assertEqual('its migrate_data has source_connect_addr',
                             source_address.SourceAddress.not_needed())
