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

"""The driver calls the hooks of the fixes, and Nova's own methods.

Recorders with the same signatures replace Nova's methods. Nova's own suites,
which run against this driver, test the methods themselves.
"""

import inspect
import os
import queue
import threading
import types
from unittest import mock

import ddt
import fixtures
from lxml import etree
from nova import exception
from nova import objects
from nova.tests import fixtures as nova_fixtures
from nova.virt import fake
from nova.virt.libvirt import driver as libvirt_driver
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_serialization import jsonutils
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix import driver
from nova_migfix import fixes
from nova_migfix.fixes import base
from nova_migfix import migration
from nova_migfix import peer
from nova_migfix.storage import completion
from nova_migfix.storage import scratch
from nova_migfix.tests import fixtures as migfix_fixtures
from nova_migfix.transport import fetch
from nova_migfix.transport import transfer


class DriverTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.useFixture(nova_fixtures.LibvirtFixture())
        self.useFixture(migfix_fixtures.PatchedMigrateData())
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))
        self.fix = mock.create_autospec(base.Fix, instance=True)
        self.fix.live_migration_failed.return_value = False
        self.fix.migrate_failed.return_value = False
        self.useFixture(fixtures.MockPatchObject(
            fixes, 'load', autospec=True, return_value=(self.fix,)))
        self.virtapi = fake.FakeVirtAPI()
        self.driver = driver.LibvirtDriver(self.virtapi)

    def nova(self, method, **behaviour):
        """Replace one of Nova's methods by a recorder."""
        return self.useFixture(fixtures.MockPatchObject(
            libvirt_driver.LibvirtDriver, method, autospec=True,
            **behaviour)).mock


class TestDriverStart(DriverTestCase):

    def test_enabled_fixes_are_loaded(self):
        self.config.config(enabled_fixes=['vnic'], group='migfix')
        driver.LibvirtDriver(fake.FakeVirtAPI())
        fixes.load.assert_called_with(['vnic'])

    def test_unsupported_nova_does_not_start(self):
        with mock.patch('nova_migfix.nova_release.major', autospec=True,
                        return_value=26):
            self.assertRaises(exception.InvalidConfiguration,
                              driver.LibvirtDriver, fake.FakeVirtAPI())

    def test_overrides_have_the_signatures_of_nova(self):
        for name, stock, override in self.overrides():
            self.assertEqual(
                inspect.getfullargspec(stock)[:-1],
                inspect.getfullargspec(override)[:-1], name)

    def test_overrides_accept_the_arguments_of_nova(self):
        for name, stock, override in self.overrides():
            given = list(inspect.signature(stock).parameters)
            # the parameters of the code, not those of a wrapper's signature
            taken = inspect.signature(types.FunctionType(
                override.__code__, {}, closure=override.__closure__))
            taken.bind(*given)
            taken.bind(**dict.fromkeys(given, name))

    def overrides(self):
        """Yield name, Nova's method and override of each overridden method."""
        for name, ours in vars(driver.LibvirtDriver).items():
            stock = getattr(libvirt_driver.LibvirtDriver, name, None)
            ours = getattr(ours, '__func__', ours)      # of a static method
            if inspect.isfunction(ours) and name != '__init__' and stock:
                yield name, stock, ours

    def test_leftovers_are_removed_in_the_background(self):
        nova = self.nova('init_host')
        answers, done = threading.Event(), queue.Queue()

        def tidy_up(*args):
            # storage that does not respond
            answers.wait(10)
            done.put(threading.get_ident())
        with mock.patch.object(scratch, 'sweep', tidy_up), \
                mock.patch.object(completion, 'go_on', tidy_up):
            self.driver.init_host('compute1')
        nova.assert_called_once_with(self.driver, 'compute1')
        self.assertTrue(done.empty())
        answers.set()
        self.assertNotIn(threading.get_ident(), [
            done.get(timeout=10) for _job in range(2)])

    def test_fixes_extend_the_driver_after_nova_has_built_it(self):
        self.fix.extend_driver.assert_called_once_with(self.driver)
        self.assertIsNotNone(self.driver.image_backend)

    def test_fixes_write_into_migrate_data_on_departure(self):
        self.fix.set_source_fields.side_effect = (
            lambda migrate_data, disks: disks[0].update(source=migrate_data))
        prepare = mock.Mock(spec=[])
        manager = mock.Mock(
            compute_rpcapi=types.SimpleNamespace(pre_live_migration=prepare))
        driver.LibvirtDriver(mock.Mock(_compute=manager))
        manager._do_pre_live_migration_from_source()
        manager.compute_rpcapi.pre_live_migration(
            'context', 'instance', True, '[{}]', 'dest', 'data')
        prepare.assert_called_once_with(
            'context', 'instance', True, '[{"source": "data"}]', 'dest',
            'data')

    def test_shared_disks_are_not_described(self):
        self.assertIsNone(self.driver._set_source_fields('data', None))
        self.fix.set_source_fields.assert_called_once_with('data', [])


class TestLiveMigrationPrecheck(DriverTestCase):

    def test_destination_sends_its_capabilities(self):
        data = peer.LibvirtLiveMigrateData()
        self.nova('check_can_live_migrate_destination', return_value=data)
        self.nova('init_host')
        self.fix.dest_capabilities.return_value = {'max_tap_queues': '8'}
        self.driver.init_host('compute1')
        returned = self.driver.check_can_live_migrate_destination(
            'context', 'instance', 'source info', 'destination info')
        self.assertIs(data, returned)
        self.assertEqual({'max_tap_queues': '8'}, returned.dest_capabilities)

    def test_destination_sends_capabilities_as_of_the_precheck(self):
        data = peer.LibvirtLiveMigrateData()
        self.nova('check_can_live_migrate_destination', return_value=data)
        self.nova('init_host')
        self.fix.dest_capabilities.side_effect = [
            {'tls': 'safe'}, {'tls': 'rekeys'}]
        self.driver.init_host('compute1')
        self.driver.check_can_live_migrate_destination(
            'context', 'instance', 'source info', 'destination info')
        self.assertEqual({'tls': 'rekeys'}, data.dest_capabilities)

    def test_fix_can_refuse_the_migration_on_the_source(self):
        self.nova('check_can_live_migrate_source', return_value='data')
        self.fix.check_can_live_migrate_source.side_effect = (
            exception.MigrationPreCheckError(reason='it cannot be kept'))
        self.assertRaises(
            exception.MigrationPreCheckError,
            self.driver.check_can_live_migrate_source,
            'context', 'instance', 'data')
        self.fix.check_can_live_migrate_source.assert_called_once_with(
            'instance', self.driver._host, 'data')


class TestMigrationDestination(DriverTestCase):

    def setUp(self):
        super().setUp()
        self.fix.source_address.return_value = '10.0.2.11'
        self.fetched_from = []
        self.instance = objects.Instance(uuid=uuids.instance)
        self.data = peer.LibvirtLiveMigrateData(
            instance_relative_path='instance')
        self.directory = self.useFixture(
            migfix_fixtures.Instances()).path / 'instance'

    def prepare(self):
        self.driver.pre_live_migration(
            'context', self.instance, 'devices', 'network', 'disks',
            self.data)

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

    def test_live_migration_fetches_from_the_address_of_the_source(self):
        self.record()
        self.nova('pre_live_migration', side_effect=self.fetch)
        self.prepare()
        self.assertEqual(['10.0.2.11'] * 2, self.fetched_from)
        self.fix.source_address.assert_called_once_with(
            self.instance, self.data, ())

    def test_cold_migration_fetches_from_the_address_of_the_source(self):
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
        self.fix.source_address.assert_called_once_with(
            instance, None, [{'path': 'disk'}])
        self.fix.finish_migration.assert_called_once_with(
            instance, mock.ANY, '10.0.2.11')

    def test_disks_on_shared_storage_are_not_completed(self):
        instances = self.useFixture(migfix_fixtures.Instances())
        (instances.path / f'{uuids.instance}_resize').mkdir()
        self.nova('_create_image')
        self.driver._create_image(
            'context', objects.Instance(uuid=uuids.instance), 'mapping',
            fallback_from_host='compute1')
        self.fix.finish_migration.assert_not_called()

    def test_disks_are_fetched_from_the_address_of_a_patched_nova(self):
        self.nova('_create_image')
        instance = objects.Instance(uuid=uuids.instance)
        self.driver._create_image(
            'context', instance, 'mapping', fallback_from_host='10.0.2.11')
        self.fix.finish_migration.assert_called_once_with(
            instance, mock.ANY, '10.0.2.11')

    def test_new_guest_fetches_no_disks(self):
        self.nova('_create_image')
        self.driver._create_image(
            'context', objects.Instance(uuid=uuids.instance), 'mapping')
        self.fix.finish_migration.assert_not_called()

    def test_failed_preparation_closes_the_arrival_context(self):
        self.nova('pre_live_migration', side_effect=OSError)
        self.assertRaises(OSError, self.prepare)
        self.assertEqual('src', migration.source('src'))

    def fail_with_a_directory(self, *args):
        self.directory.mkdir(exist_ok=True)
        (self.directory / 'disk').touch()
        raise OSError

    def test_directory_of_a_failed_attempt_is_removed(self):
        # Nova would treat it as another instance's in the next attempt.
        self.nova('pre_live_migration', side_effect=self.fail_with_a_directory)
        self.assertRaises(OSError, self.prepare)
        self.assertFalse(self.directory.exists())

    def test_directory_that_existed_before_the_attempt_stays(self):
        self.directory.mkdir()
        self.nova('pre_live_migration', side_effect=self.fail_with_a_directory)
        self.assertRaises(OSError, self.prepare)
        self.assertTrue((self.directory / 'disk').exists())

    def test_directory_of_a_successful_attempt_stays(self):
        self.nova('pre_live_migration',
                  side_effect=lambda *args: self.directory.mkdir())
        self.prepare()
        self.assertTrue(self.directory.exists())


class TestMigrationOperation(DriverTestCase):

    def setUp(self):
        super().setUp()
        self.arguments = ('context', objects.Instance(uuid=uuids.instance),
                          'dest', True, 'data')
        self.guest = mock.Mock()
        self.fix.update_running_xml.side_effect = (
            lambda migrate_data, running: running.set('for', 'Nova'))
        self.fix.update_destination_xml.side_effect = (
            lambda driver, instance, migrate_data, destination, running:
            destination.set('as', etree.tostring(running).decode()))

    def operate(self, computed='<computed/>', reads=({},)):
        def operation(driver, context, instance, dest, block, data, guest,
                      names):
            self.assertEqual(self.guest, guest)
            for flags in reads:
                xml = guest.get_xml_desc(**flags)
                self.assertEqual('dump_migratable' in flags,
                                 ' for="Nova"' in xml)
            guest.migrate(
                'uri', migrate_uri='tcp', destination_xml=computed, flags=2)
        self.guest.get_xml_desc.side_effect = (
            lambda dump_migratable=False:
            '<running/>' if dump_migratable else '<not-migratable/>')
        self.nova('_live_migration_operation', side_effect=operation)
        self.driver._live_migration_operation(
            *self.arguments, self.guest, ['vda'])

    def assert_libvirt_gets(self, xml):
        self.guest.migrate.assert_called_once_with(
            'uri', migrate_uri='tcp', destination_xml=xml, flags=2)

    def test_libvirt_gets_the_xml_of_the_fixes(self):
        self.operate(reads=[{'dump_migratable': True}])
        self.assert_libvirt_gets('<computed as="&lt;running/&gt;"/>')
        self.assertEqual(1, self.guest.get_xml_desc.call_count)

    def test_only_migratable_xml_counts_as_the_running_xml(self):
        # with serial consoles Nova reads their ports from the XML
        self.operate(reads=[{'dump_migratable': True}, {}])
        self.assert_libvirt_gets('<computed as="&lt;running/&gt;"/>')

    def test_xml_that_nova_does_not_compute_stays_unset(self):
        self.operate(computed=None)
        self.fix.update_destination_xml.assert_not_called()
        self.assert_libvirt_gets(None)

    def test_fix_repeats_a_call_that_fails(self):
        self.guest.migrate.side_effect = OSError()
        again = mock.Mock()

        def migrate_failed(driver, context, instance, data, uri, migrate):
            migrate(again, 64)
            return True
        self.fix.migrate_failed.side_effect = migrate_failed
        self.operate(reads=[{'dump_migratable': True}])
        self.fix.migrate_failed.assert_called_once_with(
            self.driver, 'context', self.arguments[1], 'data', 'uri', mock.ANY)
        again.migrate.assert_called_once_with(
            'uri', migrate_uri='tcp', flags=66,
            destination_xml='<computed as="&lt;running/&gt;"/>')

    def test_failure_that_no_fix_handles_goes_to_nova(self):
        self.guest.migrate.side_effect = OSError()
        self.assertRaises(OSError, self.operate)


class TestMigrationMonitor(DriverTestCase):
    """One thread calls libvirt, another one monitors the migration."""

    def setUp(self):
        super().setUp()
        self.instance = objects.Instance(uuid=uuids.instance)
        self.guest = mock.Mock()
        self.monitor = self.nova('_live_migration_monitor')
        self.nova('_live_migration', side_effect=self.operate_and_monitor)
        self.nova('_live_migration_operation', side_effect=(
            lambda driver, *args: args[5].migrate('uri')))

    def operate_and_monitor(self, driver, *arguments):
        context, instance, dest, post, recover, block, data = arguments
        try:
            driver._live_migration_operation(
                context, instance, dest, block, data, self.guest, ['vda'])
        except OSError:
            pass
        driver._live_migration_monitor(
            context, instance, self.guest, dest, post, recover, block, data,
            'end', ['/disk'])

    def migrate(self):
        """Migrate; return the Outgoing that the fixes get."""
        self.driver._live_migration(
            'context', self.instance, 'dest', 'post', 'recover', True, 'data')
        (_driver, outgoing), _kw = self.fix.live_migration_monitor.call_args
        return outgoing

    def test_monitor_knows_that_the_call_has_succeeded(self):
        operation = self.migrate().operation
        self.assertTrue(operation.has_started)
        self.assertTrue(operation.has_ended)
        self.assertIsNone(operation.error)

    def test_monitor_knows_the_error_of_the_call(self):
        error = self.guest.migrate.side_effect = OSError()
        operation = self.migrate().operation
        self.assertTrue(operation.has_ended)
        self.assertIs(error, operation.error)

    def test_call_for_a_guest_that_is_off_starts_nothing(self):
        self.guest.is_active.return_value = False
        self.assertFalse(self.migrate().operation.has_started)

    def test_nova_monitors_the_guest_of_the_fixes(self):
        def replace(driver, outgoing):
            outgoing.guest, outgoing.post_method = 'proxy', 'our post'
            outgoing.recover_method = 'our recover'
        self.fix.live_migration_monitor.side_effect = replace
        self.migrate()
        self.monitor.assert_called_once_with(
            self.driver, 'context', self.instance, 'proxy', 'dest',
            'our post', 'our recover', True, 'data', 'end', ['/disk'])

    def test_operation_is_forgotten_at_the_end(self):
        self.migrate()
        self.assertEqual({}, self.driver._operations)


class TestMigrationFailure(DriverTestCase):

    def migrate(self, error):
        self.nova('_live_migration', side_effect=error)
        self.driver._live_migration(
            'context', objects.Instance(uuid=uuids.instance), 'dest', 'post',
            'recover', True, 'data')

    def test_unsettled_failure_goes_to_nova(self):
        self.assertRaises(OSError, self.migrate, OSError())

    def test_settled_failure_is_not_raised(self):
        self.fix.live_migration_failed.return_value = True
        error = OSError()
        self.migrate(error)
        self.fix.live_migration_failed.assert_called_once_with(
            'context', mock.ANY, self.driver._host, 'data', error,
            migration.Operation())


class TestColdMigrationSource(DriverTestCase):

    def test_fixes_add_to_the_disk_info_of_a_cold_migration(self):
        self.nova('migrate_disk_and_power_off',
                  return_value='[{"path": "disk"}]')
        self.fix.set_source_fields.side_effect = (
            lambda migrate_data, disks: disks[0].update(
                source_connect_addr='10.0.2.11'))
        disk_info = self.driver.migrate_disk_and_power_off(
            'context', 'instance', 'dest', 'flavor', 'network', timeout=7)
        self.assertEqual(
            [{'path': 'disk', 'source_connect_addr': '10.0.2.11'}],
            jsonutils.loads(disk_info))

    def test_guest_that_a_fix_refuses_to_move_is_not_stopped(self):
        nova = self.nova('migrate_disk_and_power_off')
        error = OSError('no space')
        self.fix.migrate_disk_and_power_off.side_effect = error
        raised = self.assertRaises(
            exception.InstanceFaultRollback,
            self.driver.migrate_disk_and_power_off, 'context', 'instance',
            'dest', 'flavor', 'network', 'devices')
        self.assertIs(error, raised.inner_exception)
        self.fix.migrate_disk_and_power_off.assert_called_once_with(
            self.driver, 'instance', 'dest', 'devices')
        nova.assert_not_called()


@ddt.ddt
class TestDisks(DriverTestCase):

    def test_files_are_pulled_before_nova_creates_other_disks(self):
        directory = self.useFixture(fixtures.TempDir()).path
        disks = [{'path': path, 'type': 'qcow2', 'virt_disk_size': 1,
                  'backing_file': ''}
                 for path in ('/inst/disk', '/inst/disk.eph0')]
        wanted = fetch.FileRequest(
            '/inst/_base/eph', ('disk.eph0',),
            lambda copy: open(f'{directory}/disk.eph0', 'w').close())
        self.fix.files_to_fetch.return_value = [wanted]
        nova = self.nova('_create_images_and_backing', side_effect=(
            lambda *args: self.assertEqual(
                ['disk.eph0'], os.listdir(directory))))
        with mock.patch.object(transfer, 'fetch', autospec=True) as pull, (
                migration.incoming(None, is_live=True)):
            self.driver._create_images_and_backing(
                'context', objects.Instance(uuid=uuids.instance), directory,
                disks, 'source')
        self.assertEqual('source', pull.call_args.args[0])
        self.assertEqual((disks, 'source'), nova.call_args.args[4:])

    def test_disk_info_without_a_value_is_refused_before_anything_is_pulled(
            self):
        nova = self.nova('_create_images_and_backing')
        with migration.incoming(None, is_live=True):
            self.assertRaises(
                exception.MigrationError,
                self.driver._create_images_and_backing, 'context',
                objects.Instance(uuid=uuids.instance), '/inst',
                [{'path': '/inst/disk'}])
        self.fix.files_to_fetch.assert_not_called()
        nova.assert_not_called()

    def test_fix_changes_disks_after_nova_has_created_them(self):
        nova = self.nova('_create_images_and_backing')
        self.fix.images_created.side_effect = (
            lambda *args: nova.assert_called_once())
        self.driver._create_images_and_backing(
            'context', 'instance', '/inst', ['disk'])
        self.fix.images_created.assert_called_once_with(
            self.driver, 'instance', '/inst', ['disk'])

    def test_hard_reboot_pulls_no_files(self):
        nova = self.nova('_create_images_and_backing')
        self.driver._create_images_and_backing(
            'context', 'instance', '/inst', 'disks')
        self.fix.files_to_fetch.assert_not_called()
        self.assertEqual('disks', nova.call_args.args[4])

    def test_fix_can_refuse_a_hard_reboot(self):
        nova = self.nova('_hard_reboot')
        self.fix.hard_reboot.side_effect = exception.InvalidDiskInfo(
            reason='no base')
        positions = list(inspect.signature(
            libvirt_driver.LibvirtDriver._hard_reboot).parameters)[1:]
        arguments = [f'the {name}' for name in positions]
        self.assertRaises(exception.InvalidDiskInfo,
                          self.driver._hard_reboot, *arguments)
        self.fix.hard_reboot.assert_called_once_with(
            self.driver, 'the context', 'the instance', 'the network_info',
            'the block_device_info')
        nova.assert_not_called()

    def test_fix_can_refuse_to_stop_the_guest(self):
        self.assert_may_refuse(
            'power_off', exception.MigrationError, self.fix.power_off,
            'the instance', self.driver._host)

    def test_destination_gets_a_second_attempt_after_a_fix_acted(self):
        self.fix.prepare_disks.return_value = True
        self.assertTrue(self.driver._can_retry('instance'))
        self.fix.prepare_disks.assert_called_once_with(
            'instance', self.driver._host, has_failed=True)

    def test_destination_gets_one_attempt_if_no_fix_acted(self):
        self.fix.prepare_disks.return_value = False
        self.assertFalse(self.driver._can_retry('instance'))

    def assert_may_refuse(self, method, error, hook, *hook_arguments):
        """Assert that a hook runs before Nova's method and can refuse it.

        :param error: the exception that Nova's manager handles
        """
        arguments = [f'the {name}' for name in inspect.signature(getattr(
            libvirt_driver.LibvirtDriver, method)).parameters][1:]
        nova = self.nova(method)
        hook.side_effect = exception.MigrationError(reason='no space')
        raised = self.assertRaises(
            error, getattr(self.driver, method), *arguments)
        self.assertIn('no space', str(raised))
        hook.assert_called_once_with(*hook_arguments)
        nova.assert_not_called()
        hook.side_effect = None
        getattr(self.driver, method)(*arguments)
        self.assertEqual(arguments, list(nova.call_args.args[1:]))

    def test_fix_can_refuse_before_disks_are_described(self):
        nova = self.nova('get_instance_disk_info')
        self.fix.prepare_disks.side_effect = exception.MigrationError(
            reason='no space')
        self.assertRaises(exception.MigrationError,
                          self.driver.get_instance_disk_info, 'instance')
        nova.assert_not_called()
