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
import hypothesis
from hypothesis import strategies
from nova import context
from nova import exception
from nova import objects
from nova.objects import base
from nova.objects import migrate_data as nova_migrate_data
import testtools

from nova_migfix.fixes import config_drive
from nova_migfix.fixes import ephemeral
from nova_migfix.fixes import kernel_ramdisk
from nova_migfix import peer
from nova_migfix.tests import fixtures as migfix_fixtures


class TestMigrateData(testtools.TestCase):

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

    def test_registration_replaces_the_object_of_nova_repeatedly(self):
        peer.register()
        self.assertIs(peer.LibvirtLiveMigrateData,
                      objects.LibvirtLiveMigrateData)
        self.assertEqual(
            [peer.LibvirtLiveMigrateData],
            base.NovaObjectRegistry.obj_classes()['LibvirtLiveMigrateData'])

    def test_fields_arrive_at_a_patched_peer(self):
        data = self.received(self.sent(objects.LibvirtLiveMigrateData(
            source_connect_addr='fd00::11', dest_capabilities={'a': 'b'})))
        self.assertEqual('fd00::11', data.source_connect_addr)
        self.assertEqual({'a': 'b'}, data.dest_capabilities)

    def test_unpatched_peer_ignores_the_fields(self):
        stock = nova_migrate_data.LibvirtLiveMigrateData
        primitive = self.sent(objects.LibvirtLiveMigrateData(
            filename='f', source_connect_addr='10.0.2.11'))
        self.assertEqual(stock.VERSION, primitive['nova_object.version'])
        base.NovaObjectRegistry.register(stock)
        data = self.received(primitive)
        self.assertIs(stock, type(data))
        self.assertEqual('f', data.filename)
        self.assertIsNone(peer.get(data, 'source_connect_addr'))

    def test_fields_that_are_not_set_read_as_none(self):
        data = objects.LibvirtLiveMigrateData()
        for name in ('source_connect_addr', 'dest_capabilities'):
            self.assertIsNone(peer.get(data, name))

    def test_capabilities_of_several_fixes_are_merged(self):
        data = objects.LibvirtLiveMigrateData()
        peer.add_capabilities(data, {})
        self.assertNotIn('dest_capabilities', data)
        peer.add_capabilities(data, {'queues': '256'})
        peer.add_capabilities(data, {'disks': 'pulled'})
        self.assertEqual({'queues': '256', 'disks': 'pulled'},
                         data.dest_capabilities)


class Manager:
    """The part of ComputeManager that a departure calls."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.compute_rpcapi = Rpcapi()

    def _do_pre_live_migration_from_source(
            self, context, dest, instance, block_migration, migration,
            migrate_data, source_bdms):
        return self.compute_rpcapi.pre_live_migration(
            context, instance, block_migration, 'from Nova', dest,
            migrate_data)


class Rpcapi:
    """A destination that accepts complete disks only."""

    def __init__(self):
        self.asked = []

    def pre_live_migration(self, ctxt, instance, block_migration, disk, host,
                           migrate_data):
        self.asked.append((disk, tuple(migrate_data)))
        if disk != 'complete':
            raise exception.MigrationError(reason='no ssh')
        return 'prepared'


class TestDeparture(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.manager = Manager()

    def wrap(self, described=('overlays', 'complete'),
             can_retry=lambda instance: True):
        described = iter(described)

        def set_source_fields(migrate_data, disk_info):
            migrate_data.append('address')
            self.assertEqual('from Nova', disk_info)
            return next(described)
        peer.wrap_pre_live_migration(
            mock.Mock(_compute=self.manager), set_source_fields, can_retry)

    def prepare(self):
        return self.manager._do_pre_live_migration_from_source(
            'context', 'dest', 'instance', True, 'migration', [], 'bdms')

    def test_each_attempt_carries_the_data_of_the_fixes(self):
        self.wrap()
        self.assertEqual('prepared', self.prepare())
        self.assertEqual(
            [('overlays', ('address',)), ('complete', ('address',) * 2)],
            self.manager.compute_rpcapi.asked)

    def test_second_migration_has_no_more_attempts(self):
        self.wrap(['overlays'] * 4)
        for times in (2, 4):
            self.assertRaises(exception.MigrationError, self.prepare)
            self.assertEqual(times, len(self.manager.compute_rpcapi.asked))

    def test_unchanged_disks_allow_one_attempt(self):
        self.wrap(can_retry=lambda instance: False)
        self.assertRaises(exception.MigrationError, self.prepare)
        self.assertEqual(1, len(self.manager.compute_rpcapi.asked))

    def test_hook_survives_a_reset_of_the_manager(self):
        self.wrap()
        self.manager.reset()
        self.assertEqual('prepared', self.prepare())

    def test_error_of_a_fix_stops_the_departure(self):
        peer.wrap_pre_live_migration(
            mock.Mock(_compute=self.manager),
            mock.Mock(side_effect=ValueError), mock.Mock())
        self.assertRaises(ValueError, self.prepare)
        self.assertEqual([], self.manager.compute_rpcapi.asked)

    def test_hook_without_a_manager_is_ignored(self):
        self.assertIsNone(peer.wrap_pre_live_migration(
            object(), mock.Mock(), mock.Mock()))

    def test_changed_manager_of_nova_is_an_error_at_start(self):
        self.assertRaises(
            AttributeError, peer.wrap_pre_live_migration,
            mock.Mock(_compute=object()), mock.Mock(), mock.Mock())


DISK = {'path': '/inst/disk', 'type': 'qcow2', 'virt_disk_size': 1 << 30,
        'over_committed_disk_size': 0, 'disk_size': 0}


@ddt.ddt
class TestDisks(testtools.TestCase):

    @ddt.data('', None, 'ephemeral_1_40d1d2c')
    def test_disk_info_of_nova_is_accepted(self, backing):
        peer.check_disks([{**DISK, 'backing_file': backing}] * 2)

    @ddt.data(*DISK, 'backing_file')
    def test_missing_value_is_named(self, name):
        disk = {**DISK, 'backing_file': ''}
        del disk[name]
        if name in ('over_committed_disk_size', 'disk_size'):
            peer.check_disks([disk])
            return
        raised = self.assertRaises(
            exception.MigrationError, peer.check_disks,
            [{**DISK, 'backing_file': ''}, disk])
        self.assertIn(f'no valid {name} of disk 2', str(raised))

    @hypothesis.given(strategies.lists(strategies.one_of(
        strategies.integers(), strategies.text(), strategies.none(),
        strategies.fixed_dictionaries({}, optional=dict.fromkeys(
            (*DISK, 'backing_file'), strategies.one_of(
                strategies.none(), strategies.text(), strategies.integers(),
                strategies.lists(strategies.integers(), max_size=1)))))))
    def test_fixes_can_read_what_is_accepted(self, disks):
        try:
            peer.check_disks(disks)
        except exception.MigrationError:
            return
        instance = objects.Instance(kernel_id='k', ramdisk_id='r')
        for fix in (config_drive.ConfigDrive, ephemeral.Ephemeral,
                    kernel_ramdisk.KernelRamdisk):
            try:
                list(fix().files_to_fetch(instance, '/inst', disks))
            except exception.MigrationError:
                pass    # two different backing files
