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

import os
from unittest import mock

import ddt
import fixtures
from nova import exception
from nova import objects
from nova.virt.libvirt import driver as nova_driver
from nova.virt.libvirt import guest as nova_guest
from nova.virt.libvirt import host as nova_host
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.fixes import nvram
from nova_migfix.storage import nvram as files
from nova_migfix.tests import fixtures as migfix_fixtures

NAME = 'instance-00000001_VARS.fd'
VARIABLES = b'variables' * 100


class NvramTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.dir = self.instances.path / uuids.instance
        self.template = self.instances.path / 'OVMF_VARS.fd'
        self.template.write_bytes(bytes(len(VARIABLES)))
        self.instance = objects.Instance(
            id=1, uuid=uuids.instance, image_ref='', system_metadata={},
            migration_context=objects.MigrationContext(migration_id=7),
            flavor=objects.Flavor(extra_specs={}),
            old_flavor=objects.Flavor(extra_specs={}))
        self.files = {name: self.useFixture(fixtures.MockPatchObject(
            files, name, autospec=True)).mock
            for name in ('save', 'restore', 'remove')}
        self.push = self.useFixture(fixtures.MockPatchObject(
            libvirt_utils, 'copy_image', autospec=True)).mock
        self.driver = mock.create_autospec(
            nova_driver.LibvirtDriver, instance=True)
        self.driver._host = mock.create_autospec(
            nova_host.Host, instance=True)
        self.guest = self.driver._host.get_guest.return_value = (
            mock.create_autospec(nova_guest.Guest, instance=True))
        self.define()
        self.nova = {name: mock.Mock(spec=[]) for name in (
            'migrate_disk_and_power_off', '_create_guest',
            'post_live_migration_at_source')}
        for name, method in self.nova.items():
            setattr(self.driver, name, method)
        nvram.Nvram().extend_driver(self.driver)

    def define(self, path=f'{files.DIRECTORY}/{NAME}', attributes=None):
        """Define the domain."""
        if attributes is None:
            attributes = f"template='{self.template}'"
        self.guest.get_xml_desc.return_value = (
            f'<domain><os><nvram {attributes}>{path}</nvram></os></domain>')

    def assert_warned(self, *parts):
        self.assertEqual(1, self.log.output.count('\n'), self.log.output)
        for part in ('are not carried to the new host', 'LP 1633447',
                     'revert the migration', *parts):
            self.assertIn(part, self.log.output)


@ddt.ddt
class TestSource(NvramTestCase):

    def migrate(self):
        """Migrate; Nova's method must have stopped the guest before."""
        self.files['save'].side_effect = lambda *args: self.assertTrue(
            self.nova['migrate_disk_and_power_off'].called)
        self.nova['migrate_disk_and_power_off'].return_value = '[]'
        self.assertEqual('[]', self.driver.migrate_disk_and_power_off(
            'context', self.instance, '192.0.2.12', 'flavor', 'network',
            timeout=60))
        self.nova['migrate_disk_and_power_off'].assert_called_once_with(
            'context', self.instance, '192.0.2.12', 'flavor', 'network',
            timeout=60)

    def test_variables_are_sent_to_the_address_that_nova_uses(self):
        self.migrate()
        copy = f'{self.dir}_resize/nvram.7'
        self.files['save'].assert_called_once_with(NAME, copy, os.geteuid())
        self.push.assert_called_once_with(
            copy, str(self.dir), host='192.0.2.12')
        self.assertEqual('', self.log.output)

    def test_variables_are_copied_locally_if_the_hosts_share_the_files(self):
        self.dir.mkdir()
        self.migrate()
        self.push.assert_called_once_with(mock.ANY, str(self.dir), host=None)

    def test_guest_without_variables_needs_no_copy(self):
        self.guest.get_xml_desc.return_value = '<domain><os/></domain>'
        self.migrate()
        self.files['save'].assert_not_called()
        self.assertEqual('', self.log.output)

    @ddt.data('/etc/shadow', f'{files.DIRECTORY}/../../../secret/{NAME}',
              f'{files.DIRECTORY}/deeper/{NAME}', '')
    def test_file_elsewhere_is_not_read(self, path):
        self.define(path)
        self.migrate()
        self.files['save'].assert_not_called()
        self.assert_warned(f'not in {files.DIRECTORY}')

    @ddt.data(('save', FileNotFoundError(2, 'No such file')),
              ('push', processutils.ProcessExecutionError(
                  stderr='No such file or directory')))
    @ddt.unpack
    def test_guest_migrates_with_a_warning_without_its_variables(
            self, step, error):
        {**self.files, 'push': self.push}[step].side_effect = error
        self.driver.migrate_disk_and_power_off(
            'context', self.instance, 'dest', 'flavor', 'network')
        self.assert_warned('No such file')

    def test_failed_migration_copies_nothing(self):
        self.nova['migrate_disk_and_power_off'].side_effect = (
            exception.ResizeError(reason='no'))
        self.assertRaises(
            exception.ResizeError, self.driver.migrate_disk_and_power_off,
            'context', self.instance, 'dest', 'flavor', 'network')
        self.files['save'].assert_not_called()


@ddt.ddt
class TestDestination(NvramTestCase):

    def setUp(self):
        super().setUp()
        self.dir.mkdir()
        self.copy = self.dir / 'nvram.7'
        self.copy.write_bytes(VARIABLES)
        self.callback = mock.Mock(spec=[])

    def start(self):
        """Start the guest; Nova calls back between definition and start."""
        def create(context, xml, instance, power_on, post_xml_callback=None):
            self.files['restore'].assert_not_called()
            if post_xml_callback:
                post_xml_callback()
            return self.guest
        self.nova['_create_guest'].side_effect = create
        self.assertIs(self.guest, self.driver._create_guest(
            'context', 'xml', self.instance, power_on=True,
            post_xml_callback=self.callback))
        self.callback.assert_called_once_with()
        self.assertEqual([], list(self.dir.glob('nvram.*')))

    def assert_not_restored(self, reason):
        self.start()
        self.files['restore'].assert_not_called()
        self.assert_warned(reason)

    def test_variables_are_restored_before_the_guest_starts(self):
        self.start()
        self.files['restore'].assert_called_once_with(str(self.copy), NAME)
        self.assertIn('Kept the UEFI variables', self.log.output)

    def test_nova_is_called_as_before_without_a_copy(self):
        self.copy.unlink()
        self.driver._create_guest('context', 'xml', self.instance)
        self.nova['_create_guest'].assert_called_once_with(
            'context', 'xml', self.instance)

    def test_copies_of_other_migrations_are_removed_and_not_used(self):
        self.copy.rename(self.dir / 'nvram.6')
        self.start()
        self.files['restore'].assert_not_called()
        self.assertEqual('', self.log.output)

    def test_copy_stays_for_a_hard_reboot_if_the_domain_is_not_defined(self):
        self.nova['_create_guest'].side_effect = exception.NovaException
        self.assertRaises(
            exception.NovaException, self.driver._create_guest, 'context',
            'xml', self.instance, power_on=True)
        self.assertEqual(VARIABLES, self.copy.read_bytes())

    def test_variables_of_another_size_are_not_restored(self):
        self.template.write_bytes(bytes(len(VARIABLES) + 1))
        self.assert_not_restored(f'{len(VARIABLES)} bytes, while those of '
                                 f'{self.template}')

    def test_variables_are_not_restored_without_a_known_template(self):
        self.define(attributes='')
        self.assert_not_restored('names no template')

    def test_variables_are_not_restored_without_a_readable_template(self):
        self.template.unlink()
        self.assert_not_restored('No such file')

    def test_guest_that_gets_secure_boot_gets_its_keys(self):
        self.instance.flavor.extra_specs = {'os:secure_boot': 'required'}
        self.assert_not_restored('changes Secure Boot')

    def test_failed_restoration_leaves_the_guest_to_nova(self):
        self.files['restore'].side_effect = PermissionError(13, 'Denied')
        self.start()
        self.assert_warned('Denied')

    @ddt.data('symlink_to', 'mkfifo')
    def test_copy_that_is_not_a_regular_file_is_not_opened(self, way):
        self.copy.unlink()
        if way == 'mkfifo':
            os.mkfifo(self.copy)
        else:
            self.copy.symlink_to(self.template)
        self.assert_not_restored('is not a regular file')

    def test_copy_with_a_name_of_the_peer_is_not_used(self):
        (self.dir / 'nvram.7..').write_bytes(VARIABLES)
        self.start()
        self.files['restore'].assert_called_once_with(str(self.copy), NAME)

    def qcow2(self, path, *options, size='1M'):
        path.unlink(missing_ok=True)
        processutils.execute(
            'qemu-img', 'create', '-f', 'qcow2', *options, path, size)

    def define_qcow2(self):
        self.qcow2(self.template)
        self.define(attributes=f"template='{self.template}' format='qcow2'")

    def test_image_of_the_same_virtual_size_is_restored(self):
        self.define_qcow2()
        self.qcow2(self.copy)
        self.start()
        self.files['restore'].assert_called_once_with(str(self.copy), NAME)

    def test_image_of_another_virtual_size_is_not_restored(self):
        self.define_qcow2()
        self.qcow2(self.copy, size='2M')
        self.assert_not_restored('2097152 bytes')

    @ddt.data('backing', 'data')
    def test_image_that_names_another_file_is_not_restored(self, kind):
        self.define_qcow2()
        self.qcow2(self.copy, *{
            'backing': ('-F', 'raw', '-b', '/etc/passwd', '-u'),
            'data': ('-o', f'data_file={self.instances.path}/data')}[kind])
        self.assert_not_restored('without other files')

    def test_raw_variables_are_not_restored_as_an_image(self):
        self.define_qcow2()
        self.assert_not_restored('not a qcow2 image')


@ddt.ddt
class TestLiveMigration(NvramTestCase):

    def leave(self):
        self.driver.post_live_migration_at_source(
            'context', self.instance, 'network')
        self.nova['post_live_migration_at_source'].assert_called_once_with(
            'context', self.instance, 'network')

    def test_variables_of_a_guest_that_has_left_are_removed(self):
        self.driver._host.get_guest.side_effect = (
            exception.InstanceNotFound(instance_id=uuids.instance))
        self.files['remove'].side_effect = [True, False]
        self.leave()
        self.assertEqual(
            [mock.call(NAME), mock.call('instance-00000001_VARS.qcow2')],
            self.files['remove'].mock_calls)
        self.assertEqual(1, self.log.output.count('Removed the UEFI'))

    def test_variables_of_a_domain_that_is_still_here_are_kept(self):
        self.leave()
        self.files['remove'].assert_not_called()

    def test_variables_are_kept_if_libvirt_does_not_answer(self):
        self.driver._host.get_guest.side_effect = (
            exception.HypervisorUnavailable())
        self.leave()
        self.files['remove'].assert_not_called()

    def test_migration_ends_well_if_the_variables_cannot_be_removed(self):
        self.driver._host.get_guest.side_effect = (
            exception.InstanceNotFound(instance_id=uuids.instance))
        self.files['remove'].side_effect = PermissionError(13, 'Denied')
        self.leave()
        for part in ('could not be removed', 'Denied', files.DIRECTORY):
            self.assertIn(part, self.log.output)
