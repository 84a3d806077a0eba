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

import fixtures
from nova import context
from nova import objects
from nova.objects import base
from nova.objects import migrate_data as nova_migrate_data
import testtools

from nova_migfix import migrate_data
from nova_migfix.tests import fixtures as migfix_fixtures


class TestObject(testtools.TestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.useFixture(migfix_fixtures.PatchedMigrateData())
        self.context = context.RequestContext('u', 'p', is_admin=False)
        self.serializer = base.NovaObjectSerializer()

    def sent(self, data):
        return self.serializer.serialize_entity(self.context, data)

    def received(self, primitive):
        return self.serializer.deserialize_entity(self.context, primitive)

    def test_it_takes_the_place_of_novas_however_often(self):
        migrate_data.register()
        self.assertIs(migrate_data.LibvirtLiveMigrateData,
                      objects.LibvirtLiveMigrateData)
        self.assertEqual(
            [migrate_data.LibvirtLiveMigrateData],
            base.NovaObjectRegistry.obj_classes()['LibvirtLiveMigrateData'])

    def test_what_is_told_arrives_at_a_patched_peer(self):
        data = self.received(self.sent(objects.LibvirtLiveMigrateData(
            source_connect_addr='fd00::11', dest_capabilities={'a': 'b'})))
        self.assertEqual('fd00::11', data.source_connect_addr)
        self.assertEqual({'a': 'b'}, data.dest_capabilities)

    def test_an_unpatched_peer_does_not_notice(self):
        stock = nova_migrate_data.LibvirtLiveMigrateData
        primitive = self.sent(objects.LibvirtLiveMigrateData(
            filename='f', source_connect_addr='10.0.2.11'))
        self.assertEqual(stock.VERSION, primitive['nova_object.version'])
        base.NovaObjectRegistry.register(stock)
        data = self.received(primitive)
        self.assertIs(stock, type(data))
        self.assertEqual('f', data.filename)
        self.assertIsNone(migrate_data.get(data, 'source_connect_addr'))

    def test_what_was_not_told_is_none(self):
        data = objects.LibvirtLiveMigrateData()
        for name in ('source_connect_addr', 'dest_capabilities'):
            self.assertIsNone(migrate_data.get(data, name))

    def test_capabilities_add_up(self):
        data = objects.LibvirtLiveMigrateData()
        migrate_data.add_capabilities(data, {})
        self.assertNotIn('dest_capabilities', data)
        migrate_data.add_capabilities(data, {'queues': '256'})
        migrate_data.add_capabilities(data, {'disks': 'pulled'})
        self.assertEqual({'queues': '256', 'disks': 'pulled'},
                         data.dest_capabilities)


class Manager:
    """As much of ComputeManager as the departure passes."""

    def __init__(self):
        self.compute_rpcapi = mock.Mock()

    def reset(self):
        self.compute_rpcapi = mock.Mock()

    def _do_pre_live_migration_from_source(
            self, context, dest, instance, block_migration, migration,
            migrate_data, source_bdms):
        return self.compute_rpcapi.pre_live_migration(migrate_data)


class TestDeparture(testtools.TestCase):

    def depart(self, manager):
        data = []
        manager._do_pre_live_migration_from_source(
            'context', 'dest', 'instance', True, 'migration', data, 'bdms')
        return manager.compute_rpcapi.pre_live_migration.call_args.args[0]

    def test_the_stamp_is_on_what_leaves(self):
        manager = Manager()
        migrate_data.on_departure(
            mock.Mock(_compute=manager), lambda data: data.append('stamp'))
        self.assertEqual(['stamp'], self.depart(manager))

    def test_it_survives_reset(self):
        manager = Manager()
        migrate_data.on_departure(
            mock.Mock(_compute=manager), lambda data: data.append('stamp'))
        manager.reset()
        self.assertEqual(['stamp'], self.depart(manager))

    def test_an_error_does_not_keep_the_guest_from_leaving(self):
        manager = Manager()
        log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        migrate_data.on_departure(
            mock.Mock(_compute=manager), mock.Mock(side_effect=ValueError))
        self.assertEqual([], self.depart(manager))
        self.assertIn('ValueError', log.output)

    def test_without_a_manager_nothing_departs(self):
        self.assertIsNone(migrate_data.on_departure(object(), mock.Mock()))

    def test_a_manager_that_nova_has_changed_is_noticed_at_start(self):
        self.assertRaises(AttributeError, migrate_data.on_departure,
                          mock.Mock(_compute=object()), mock.Mock())
