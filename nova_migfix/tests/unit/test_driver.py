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

"""Where the driver asks the fixes, and that Nova does its own part.

Nova's methods are replaced by recorders of the same signature; that they do
what they do is shown by Nova's own suites, which run against this driver.
"""

import contextlib
import inspect
import types
from unittest import mock

import ddt
import fixtures
from nova import exception
from nova import objects
from nova.tests import fixtures as nova_fixtures
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_serialization import jsonutils
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix import arrival
from nova_migfix import driver
from nova_migfix import fixes
from nova_migfix.fixes import base
from nova_migfix import migrate_data
from nova_migfix import scratch
from nova_migfix.tests import fixtures as migfix_fixtures
from nova_migfix import transfer


class DriverTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.useFixture(nova_fixtures.LibvirtFixture())
        self.useFixture(migfix_fixtures.PatchedMigrateData())
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))
        self.fix = mock.create_autospec(base.Fix, instance=True)
        self.fix.settles_failure.return_value = False
        self.useFixture(fixtures.MockPatchObject(
            fixes, 'load', autospec=True, return_value=(self.fix,)))
        self.virtapi = fake.FakeVirtAPI()
        self.driver = driver.LibvirtDriver(self.virtapi)

    def nova(self, method, **behaviour):
        """Replace one of Nova's methods by a recorder."""
        return self.useFixture(fixtures.MockPatchObject(
            libvirt_driver.LibvirtDriver, method, autospec=True,
            **behaviour)).mock


class TestStart(DriverTestCase):

    def test_the_enabled_fixes_are_loaded(self):
        self.config.config(enabled_fixes=['vnic'], group='migfix')
        driver.LibvirtDriver(fake.FakeVirtAPI())
        fixes.load.assert_called_with(['vnic'])

    def test_an_unsupported_nova_does_not_start(self):
        with mock.patch('nova_migfix.nova_release.major', autospec=True,
                        return_value=26):
            self.assertRaises(exception.InvalidConfiguration,
                              driver.LibvirtDriver, fake.FakeVirtAPI())

    def test_signatures_are_novas(self):
        for name, stock, override in self.overrides():
            self.assertEqual(
                inspect.getfullargspec(stock)[:-1],
                inspect.getfullargspec(override)[:-1], name)

    def test_what_they_really_take_is_what_nova_gives(self):
        for name, stock, override in self.overrides():
            given = list(inspect.signature(stock).parameters)
            # not what it shows, but what stands there
            taken = inspect.signature(types.FunctionType(
                override.__code__, {}, closure=override.__closure__))
            taken.bind(*given)
            taken.bind(**dict.fromkeys(given, name))

    def overrides(self):
        """Yield name, Nova's and ours of each method that is overridden."""
        for name, ours in vars(driver.LibvirtDriver).items():
            stock = getattr(libvirt_driver.LibvirtDriver, name, None)
            ours = getattr(ours, '__func__', ours)      # of a static method
            if inspect.isfunction(ours) and name != '__init__' and stock:
                yield name, stock, ours

    def test_what_was_left_is_swept_away_first(self):
        nova = self.nova('init_host')
        with mock.patch.object(
                scratch, 'sweep', autospec=True,
                side_effect=lambda: nova.assert_not_called()) as sweep:
            self.driver.init_host('compute1')
        sweep.assert_called_once_with()

    def test_then_the_fixes_look_at_what_is_there(self):
        nova = self.nova('init_host')
        self.fix.starting.side_effect = nova.assert_not_called
        self.driver.init_host('compute1')
        self.fix.starting.assert_called_once_with()

    def test_departures_are_stamped(self):
        self.nova('init_host')
        manager = mock.Mock()
        prepare = manager._do_pre_live_migration_from_source
        self.driver.virtapi = mock.Mock(_compute=manager)
        self.driver.init_host('compute1')
        manager._do_pre_live_migration_from_source(
            'context', 'dest', 'instance', True, 'migration', 'data', 'bdms')
        self.fix.depart.assert_called_once_with('data')
        prepare.assert_called_once_with(
            'context', 'dest', 'instance', True, 'migration', 'data', 'bdms')


class TestPrecheck(DriverTestCase):

    def test_the_destination_tells_what_it_can(self):
        data = migrate_data.LibvirtLiveMigrateData()
        self.nova('check_can_live_migrate_destination', return_value=data)
        self.nova('init_host')
        self.fix.capabilities.return_value = {'max_tap_queues': '8'}
        self.driver.init_host('compute1')
        told = self.driver.check_can_live_migrate_destination(
            'context', 'instance', 'source info', 'destination info')
        self.assertIs(data, told)
        self.assertEqual({'max_tap_queues': '8'}, told.dest_capabilities)

    def test_it_tells_what_has_changed_since_it_started(self):
        data = migrate_data.LibvirtLiveMigrateData()
        self.nova('check_can_live_migrate_destination', return_value=data)
        self.nova('init_host')
        self.fix.capabilities.side_effect = [{'tls': 'safe'},
                                             {'tls': 'rekeys'}]
        self.driver.init_host('compute1')
        self.driver.check_can_live_migrate_destination(
            'context', 'instance', 'source info', 'destination info')
        self.assertEqual({'tls': 'rekeys'}, data.dest_capabilities)

    def test_the_source_may_refuse(self):
        self.nova('check_can_live_migrate_source', return_value='data')
        self.fix.check_source.side_effect = (
            exception.MigrationPreCheckError(reason='it cannot be kept'))
        self.assertRaises(
            exception.MigrationPreCheckError,
            self.driver.check_can_live_migrate_source,
            'context', 'instance', 'data')
        self.fix.check_source.assert_called_once_with(
            'instance', self.driver._host, 'data')


class TestDestination(DriverTestCase):

    def setUp(self):
        super().setUp()
        self.fix.arriving.return_value = transfer.fetching_from('10.0.2.11')
        self.fix.arriving_cold.return_value = (
            transfer.fetching_from('10.0.2.11'))
        self.fetched_from = []

    def finish(self, driver, context, migration, instance, *args, **kwargs):
        driver._create_image(context, instance, 'mapping',
                             fallback_from_host=migration.source_compute)

    def fetch(self, driver, *args, **kwargs):
        driver._try_fetch_image_cache(
            'image', 'fetch', 'context', 'name', 'id', 'instance', 1, 'src')
        driver._fetch_instance_kernel_ramdisk('context', 'instance', 'src')

    def record(self):
        for name in ('_try_fetch_image_cache',
                     '_fetch_instance_kernel_ramdisk'):
            self.nova(name, side_effect=lambda *args: (
                self.fetched_from.append(args[-1])))

    def test_a_live_migration_fetches_from_the_told_address(self):
        self.record()
        self.nova('pre_live_migration', side_effect=self.fetch)
        self.driver.pre_live_migration(
            'context', 'instance', 'devices', 'network', 'disks', 'data')
        self.assertEqual(['10.0.2.11'] * 2, self.fetched_from)
        self.fix.arriving.assert_called_once_with('instance', 'data')

    def test_a_cold_migration_fetches_from_the_told_address(self):
        self.record()
        self.nova('_create_image', side_effect=self.fetch)
        nova = self.nova('finish_migration', side_effect=self.finish)
        instance = objects.Instance(uuid=uuids.instance)
        arguments = ('context', objects.Migration(source_compute='src'),
                     instance, '[{"path": "disk"}]', 'network', 'image',
                     False, {}, 'devices')
        self.driver.finish_migration(*arguments, power_on=False)
        nova.assert_called_once_with(
            self.driver, *arguments, power_on=False)
        self.assertEqual(['10.0.2.11'] * 2, self.fetched_from)
        self.fix.arriving_cold.assert_called_once_with(
            instance, [{'path': 'disk'}])
        self.fix.complete_disks.assert_called_once_with(
            instance, mock.ANY, '10.0.2.11')

    def test_disks_that_the_source_shares_are_left_alone(self):
        instances = self.useFixture(migfix_fixtures.Instances())
        (instances.path / f'{uuids.instance}_resize').mkdir()
        self.nova('_create_image')
        self.driver._create_image(
            'context', objects.Instance(uuid=uuids.instance), 'mapping',
            fallback_from_host='compute1')
        self.fix.complete_disks.assert_not_called()

    def test_a_patched_nova_knows_the_address_itself(self):
        self.nova('_create_image')
        instance = objects.Instance(uuid=uuids.instance)
        self.driver._create_image(
            'context', instance, 'mapping', fallback_from_host='10.0.2.11')
        self.fix.complete_disks.assert_called_once_with(
            instance, mock.ANY, '10.0.2.11')

    def test_nothing_is_fetched_for_a_guest_that_is_new(self):
        self.nova('_create_image')
        self.driver._create_image(
            'context', objects.Instance(uuid=uuids.instance), 'mapping')
        self.fix.complete_disks.assert_not_called()

    def test_what_holds_while_preparing_ends_with_a_failure(self):
        ended = []
        stack = contextlib.ExitStack()
        stack.callback(ended.append, True)
        self.fix.arriving.return_value = stack
        self.nova('pre_live_migration', side_effect=OSError)
        self.assertRaises(
            OSError, self.driver.pre_live_migration, 'context', 'instance',
            'devices', 'network', 'disks', 'data')
        self.assertEqual([True], ended)


class TestOperation(DriverTestCase):

    ARGUMENTS = ('context', 'instance', 'dest', True, 'data')

    def setUp(self):
        super().setUp()
        self.guest = mock.Mock()
        self.fix.update_destination_xml.side_effect = (
            lambda instance, destination_xml, running_xml:
            f'{destination_xml} as {running_xml}')

    def operate(self, computed='<computed/>', reads=({},)):
        def operation(driver, context, instance, dest, block, data, guest,
                      names):
            self.assertEqual(self.guest, guest)
            for flags in reads:
                guest.get_xml_desc(**flags)
            guest.migrate(
                'uri', migrate_uri='tcp', destination_xml=computed)
        self.guest.get_xml_desc.side_effect = (
            lambda dump_migratable=False:
            '<running/>' if dump_migratable else '<not-migratable/>')
        self.nova('_live_migration_operation', side_effect=operation)
        self.driver._live_migration_operation(
            *self.ARGUMENTS, self.guest, ['vda'])

    def assert_libvirt_gets(self, xml):
        self.guest.migrate.assert_called_once_with(
            'uri', migrate_uri='tcp', destination_xml=xml)

    def test_libvirt_gets_the_xml_of_the_fixes(self):
        self.operate(reads=[{'dump_migratable': True}])
        self.assert_libvirt_gets('<computed/> as <running/>')
        self.assertEqual(1, self.guest.get_xml_desc.call_count)

    def test_what_else_nova_reads_is_not_taken_for_it(self):
        # with serial consoles Nova reads the ports from the XML
        self.operate(reads=[{'dump_migratable': True}, {}])
        self.assert_libvirt_gets('<computed/> as <running/>')

    def test_where_nova_computes_none_there_is_none(self):
        self.operate(computed=None)
        self.fix.update_destination_xml.assert_not_called()
        self.assert_libvirt_gets(None)


class TestFailure(DriverTestCase):

    def migrate(self, error):
        self.nova('_live_migration', side_effect=error)
        self.driver._live_migration(
            'context', 'instance', 'dest', 'post', 'recover', True, 'data')

    def test_it_goes_to_nova(self):
        self.assertRaises(OSError, self.migrate, OSError())

    def test_one_that_is_settled_ends_here(self):
        self.fix.settles_failure.return_value = True
        error = OSError()
        self.migrate(error)
        self.fix.settles_failure.assert_called_once_with(
            'context', 'instance', self.driver._host, 'data', error)


class TestColdSource(DriverTestCase):

    def test_the_disks_are_described(self):
        self.nova('migrate_disk_and_power_off',
                  return_value='[{"path": "disk"}]')
        self.fix.describe_copies.side_effect = (
            lambda disks: disks[0].update(source_connect_addr='10.0.2.11'))
        told = self.driver.migrate_disk_and_power_off(
            'context', 'instance', 'dest', 'flavor', 'network', timeout=7)
        self.assertEqual(
            [{'path': 'disk', 'source_connect_addr': '10.0.2.11'}],
            jsonutils.loads(told))

    def stay(self, vm_state='active'):
        """A cold migration to another host whose disks cannot leave."""
        error = OSError('no space')
        self.virtapi._compute = mock.Mock()
        instance = objects.Instance(uuid=uuids.instance, vm_state=vm_state)
        shared = self.nova('_is_path_shared_with', return_value=False)
        describe = self.nova('_get_instance_disk_info')
        self.fix.leaving.side_effect = error

        def migrate(driver, *args):
            driver._is_path_shared_with('dest', '/inst')
            driver._get_instance_disk_info(instance, None)
        self.nova('migrate_disk_and_power_off', side_effect=migrate)
        with mock.patch.object(
                transfer, 'remove_empty_directory', autospec=True,
                side_effect=processutils.ProcessExecutionError) as remove:
            raised = self.assertRaises(
                exception.InstanceFaultRollback,
                self.driver.migrate_disk_and_power_off, 'context', instance,
                'dest', 'flavor', 'network')
        self.assertIs(error, raised.inner_exception)
        shared.assert_called_once()
        describe.assert_not_called()
        remove.assert_called_once_with('dest', mock.ANY)
        return self.virtapi._compute._power_on

    def test_a_guest_that_cannot_leave_is_started_again(self):
        # also when the destination cannot be reached
        self.stay().assert_called_once_with('context', mock.ANY)

    def test_one_that_must_not_be_stopped_is_not(self):
        nova = self.nova('migrate_disk_and_power_off')
        self.fix.before_power_off.side_effect = error = OSError('no base')
        raised = self.assertRaises(
            exception.InstanceFaultRollback,
            self.driver.migrate_disk_and_power_off, 'context', 'instance',
            'dest', 'flavor', 'network')
        self.assertIs(error, raised.inner_exception)
        nova.assert_not_called()

    def test_one_that_was_off_stays_off(self):
        self.stay(vm_state='stopped').assert_not_called()

    def test_disks_that_are_shared_do_not_leave(self):
        self.nova('_is_path_shared_with', return_value=True)
        self.nova('_get_instance_disk_info')
        self.driver._is_path_shared_with('dest', '/inst')
        self.driver._get_instance_disk_info('instance', None)
        self.fix.leaving.assert_not_called()


@ddt.ddt
class TestDisks(DriverTestCase):

    def test_what_was_pulled_is_not_left_to_nova(self):
        directory = self.useFixture(fixtures.TempDir()).path
        disks = [{'path': '/inst/disk'}, {'path': '/inst/disk.eph0'}]
        wanted = arrival.Wanted(
            '/inst/_base/eph', ('disk.eph0',),
            lambda copy: open(f'{directory}/disk.eph0', 'w').close())
        self.fix.files_to_pull.return_value = [wanted]
        nova = self.nova('_create_images_and_backing')
        with mock.patch.object(transfer, 'pull', autospec=True) as pull, (
                arrival.preparation()):
            self.driver._create_images_and_backing(
                'context', objects.Instance(uuid=uuids.instance), directory,
                disks, 'source')
        self.assertEqual('source', pull.call_args.args[0])
        self.assertEqual((disks[:1], 'source'), nova.call_args.args[4:])

    def test_a_hard_reboot_pulls_nothing(self):
        nova = self.nova('_create_images_and_backing')
        self.driver._create_images_and_backing(
            'context', 'instance', '/inst', 'disks')
        self.fix.files_to_pull.assert_not_called()
        self.assertEqual('disks', nova.call_args.args[4])

    def test_a_file_system_is_made_where_the_fix_says(self):
        self.fix.making.return_value = contextlib.nullcontext('/scratch')
        nova = self.nova('_create_ephemeral')
        self.driver._create_ephemeral(
            target=f'{cfg.CONF.instances_path}/base', ephemeral_size=1,
            fs_label='l', os_type=None)
        self.assertEqual('/scratch', nova.call_args.args[0])

    def test_swap_is_made_there_too(self):
        self.fix.making.return_value = contextlib.nullcontext('/scratch')
        nova = self.nova('_create_swap')
        self.driver._create_swap(f'{cfg.CONF.instances_path}/base', 64)
        self.assertEqual('/scratch', nova.call_args.args[0])

    @ddt.data(('_create_ephemeral', (1, 'l', None, True)),
              ('_create_swap', (64,)))
    @ddt.unpack
    def test_one_on_a_logical_volume_is_made_there(self, method, arguments):
        nova = self.nova(method)
        getattr(self.driver, method)('/dev/vg/volume', *arguments)
        self.fix.making.assert_not_called()
        self.assertEqual('/dev/vg/volume', nova.call_args.args[0])

    def create_image(self, **kwargs):
        nova = self.nova('_create_image')
        self.driver._create_image(
            'context', objects.Instance(uuid=uuids.instance), 'mapping',
            block_device_info='devices', **kwargs)
        nova.assert_called_once()

    def test_the_disks_that_nova_makes_are_looked_at(self):
        self.create_image()
        self.fix.creating_disks.assert_called_once_with(
            mock.ANY, mock.ANY, 'devices')

    def test_those_of_a_rescue_are_not(self):
        self.create_image(suffix='.rescue')
        self.fix.creating_disks.assert_not_called()

    def test_a_fix_may_refuse_to_stop_the_guest(self):
        nova = self.nova('_hard_reboot')
        self.fix.restarting.side_effect = exception.InvalidDiskInfo(
            reason='no base')
        positions = list(inspect.signature(
            libvirt_driver.LibvirtDriver._hard_reboot).parameters)[1:]
        arguments = [f'the {name}' for name in positions]
        self.assertRaises(exception.InvalidDiskInfo,
                          self.driver._hard_reboot, *arguments)
        self.fix.restarting.assert_called_once_with(
            self.driver, 'the context', 'the instance', 'the network_info',
            'the block_device_info')
        nova.assert_not_called()

    @ddt.data(('power_off', exception.MigrationError),
              ('suspend', exception.InstanceFaultRollback),
              ('_soft_reboot', exception.MigrationError),
              ('rescue', exception.MigrationError))
    @ddt.unpack
    def test_a_guest_that_stops_may_have_to_be_saved_before(
            self, method, error):
        self.assert_asked(method, error, self.fix.stopping,
                          'the instance', self.driver._host)

    @ddt.data(('resume', exception.InstanceFaultRollback, None),
              ('unrescue', exception.MigrationError, None),
              ('_create_guest', exception.MigrationError, 'the xml'))
    @ddt.unpack
    def test_a_guest_may_not_go_on_with_its_disks(self, method, error, xml):
        self.assert_asked(method, error, self.fix.powering_on,
                          'the instance', xml)

    @ddt.data((True, False, True), (False, False, False),
              (False, True, True))
    @ddt.unpack
    def test_one_that_is_only_defined_goes_on_with_nothing(
            self, power_on, pause, is_asked):
        nova = self.nova('_create_guest')
        self.driver._create_guest('context', 'xml', 'instance',
                                  power_on=power_on, pause=pause)
        self.assertEqual(is_asked, self.fix.powering_on.called)
        nova.assert_called_once()

    def test_a_rescued_guest_may_have_what_is_lost(self):
        self.nova('unrescue')
        self.driver.unrescue('context', 'instance')
        self.fix.stopping.assert_called_once_with(
            'instance', self.driver._host)

    def assert_asked(self, method, error, question, *of_what):
        """A fix is asked before Nova does something, and may refuse it.

        :param error: what Nova's manager goes by
        """
        arguments = [f'the {name}' for name in inspect.signature(getattr(
            libvirt_driver.LibvirtDriver, method)).parameters][1:]
        nova = self.nova(method)
        question.side_effect = exception.MigrationError(reason='no space')
        raised = self.assertRaises(
            error, getattr(self.driver, method), *arguments)
        self.assertIn('no space', str(raised))
        question.assert_called_once_with(*of_what)
        nova.assert_not_called()
        question.side_effect = None
        getattr(self.driver, method)(*arguments)
        self.assertEqual(arguments, list(nova.call_args.args[1:]))

    def test_a_block_migration_asks_before_it_describes_the_disks(self):
        nova = self.nova('get_instance_disk_info')
        self.fix.before_description.side_effect = exception.MigrationError(
            reason='no space')
        self.assertRaises(exception.MigrationError,
                          self.driver.get_instance_disk_info, 'instance')
        nova.assert_not_called()

    def test_and_adds_to_the_description(self):
        self.nova('get_instance_disk_info',
                  return_value='[{"path": "disk"}]')
        self.fix.describe_disks.side_effect = (
            lambda disks: disks[0].update(backing_path='/base'))
        self.assertEqual(
            [{'path': 'disk', 'backing_path': '/base'}],
            jsonutils.loads(self.driver.get_instance_disk_info('instance')))
