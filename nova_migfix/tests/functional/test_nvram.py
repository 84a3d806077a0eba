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

"""UEFI variables arrive with their guest, and stay nowhere else."""

import contextlib
import os

import fixtures
from lxml import etree
from nova.tests.fixtures import libvirt as fakelibvirt
from oslo_config import cfg

from nova_migfix.storage import nvram
from nova_migfix.tests.functional import storage

CONF = cfg.CONF

# Before the base class replaces them.
_REAL = {name: getattr(nvram, name) for name in ('save', 'restore', 'remove')}

TEMPLATE, VARIABLES, STALE = (
    text.encode().ljust(4096) for text in ('template', 'variables', 'stale'))

#: all but the fix for the variables
WITHOUT = ['arrival', 'config_drive', 'ephemeral', 'source_address']


class Firmware(fixtures.Fixture):
    """libvirt's files with UEFI variables, in a directory for each host."""

    def __init__(self, hosts):
        self._hosts = hosts

    def directory(self, host):
        return self._hosts.root / f'nvram-{host}'

    def template(self, host):
        return self._hosts.root / f'OVMF_VARS-{host}.fd'

    def variables(self, domain):
        """Return the path of the file of a domain; None without UEFI."""
        return domain.has_nvram and self.directory(
            domain._connection.hostname) / f'{domain.name()}_VARS.fd'

    def _setUp(self):
        for host in self._hosts.addresses:
            self.directory(host).mkdir()
            self.template(host).write_bytes(TEMPLATE)

        @contextlib.contextmanager
        def directory():
            descriptor = os.open(self.directory(CONF.host), os.O_DIRECTORY)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        replacements = {
            f'nova_migfix.storage.nvram.{name}': function
            for name, function in {**_REAL, '_directory': directory}.items()}
        replacements.update({
            f'nova.tests.fixtures.libvirt.Domain.{name}': function
            for name, function in self._domain_methods().items()})
        for where, function in replacements.items():
            self.useFixture(fixtures.MonkeyPatch(where, function))

    def _domain_methods(self):
        parse = fakelibvirt.Domain._parse_definition
        describe = fakelibvirt.Domain.XMLDesc
        start = fakelibvirt.Domain.createWithFlags
        undefine = fakelibvirt.Domain.undefineFlags

        def parse_definition(domain, xml):
            element = etree.fromstring(xml).find('./os')
            domain.has_nvram = (element.get('firmware') == 'efi'
                                or element.find('nvram') is not None)
            return parse(domain, xml)

        def xml_desc(domain, flags):
            document = etree.fromstring(describe(domain, flags))
            if domain.has_nvram:
                element = document.find('./os')
                for former in element.findall('nvram'):
                    element.remove(former)
                etree.SubElement(element, 'nvram', template=str(
                    self.template(domain._connection.hostname))).text = (
                        f'{nvram.DIRECTORY}/{domain.name()}_VARS.fd')
            return etree.tostring(document, encoding='unicode')

        def create(domain, flags):
            path = self.variables(domain)
            if path and not path.exists():
                path.write_bytes(self.template(
                    domain._connection.hostname).read_bytes())
            start(domain, flags)

        def undefine_flags(domain, flags):
            path = self.variables(domain)
            if path and flags & fakelibvirt.VIR_DOMAIN_UNDEFINE_NVRAM:
                path.unlink(missing_ok=True)
            undefine(domain, flags)
        return {'_parse_definition': parse_definition, 'XMLDesc': xml_desc,
                'createWithFlags': create, 'undefineFlags': undefine_flags}


class NvramTestCase(storage.StorageTestCase):
    """A UEFI guest that has set variables."""

    def setUp(self):
        super().setUp()
        self.firmware = self.useFixture(Firmware(self.hosts))
        self.boot(image=self.upload(
            hw_firmware_type='uefi', hw_machine_type='q35'))
        self.assertEqual(TEMPLATE, self.variables('src'))
        self.file('src').write_bytes(VARIABLES)

    def file(self, host):
        return self.firmware.directory(host) / (
            self.server['OS-EXT-SRV-ATTR:instance_name'] + '_VARS.fd')

    def variables(self, host):
        """Return the content of libvirt's file on a host; None without it."""
        self.server = self.api.get_server(self.server['id'])
        path = self.file(host)
        return path.read_bytes() if path.exists() else None

    def confirm(self):
        self.api.post_server_action(self.server['id'], {'confirmResize': None})
        self.server = self._wait_for_state_change(self.server, 'ACTIVE')

    def revert(self):
        self.api.post_server_action(self.server['id'], {'revertResize': None})
        self.server = self._wait_for_state_change(self.server, 'ACTIVE')

    def resize(self):
        self.move(resize={'flavorRef': self._create_flavor(
            disk=1, memory_mb=512)})

    def resize_on_the_same_host(self):
        self.flags(allow_resize_to_same_host=True)
        service, = self.api.get_services(host='dest', binary='nova-compute')
        self.api.put_service(service['id'], {'status': 'disabled'})
        self.resize()
        self.assertEqual('src', self.host())

    def _migrate_stub(self, domain, destination, params, flags):
        """Move the guest and its definition, as libvirt does.

        The new QEMU writes the variables from its memory.
        """
        super()._migrate_stub(domain, destination, params, flags)
        there = self.dest.driver._host.get_connection()
        there.lookupByUUIDString(self.server['id'])._transient = False
        variables = self.firmware.variables(domain)
        (self.firmware.directory(self.dest.host) / variables.name
         ).write_bytes(variables.read_bytes())
        del domain._connection._vms[domain.name()]

    def assert_no_copy_left(self):
        self.assertEqual([], [
            path for host in ('src', 'dest')
            for path in self.hosts.instances(host).glob('**/nvram.*')])

    def warnings(self):
        return self.log().count('are not carried to the new host')


class FixTestCase(NvramTestCase):

    def test_cold_migration_keeps_the_variables(self):
        self.move(migrate=None)
        self.assertEqual(VARIABLES, self.variables('dest'))
        self.confirm()
        self.assertEqual(VARIABLES, self.variables('dest'))
        self.assertIsNone(self.variables('src'))
        self.assert_no_copy_left()
        self.assertEqual(0, self.warnings())

    def test_former_variables_of_the_destination_are_replaced(self):
        self.file('dest').write_bytes(STALE)
        self.move(migrate=None)
        self.assertEqual(VARIABLES, self.variables('dest'))

    def test_migration_of_a_stopped_guest_keeps_the_variables(self):
        self.server = self._stop_server(self.server)
        self.move(migrate=None)
        self.assertEqual(VARIABLES, self.variables('dest'))

    def test_reverted_migration_keeps_the_variables(self):
        self.move(migrate=None)
        self.file('dest').write_bytes(STALE)
        self.revert()
        self.assertEqual(VARIABLES, self.variables('src'))
        self.assert_no_copy_left()

    def test_resize_keeps_the_variables(self):
        self.resize()
        self.assertEqual(VARIABLES, self.variables('dest'))

    def test_resize_on_the_same_host_keeps_the_variables(self):
        self.resize_on_the_same_host()
        self.assertEqual(VARIABLES, self.variables('src'))
        self.confirm()
        self.assertEqual(VARIABLES, self.variables('src'))

    def test_reverted_resize_on_the_same_host_keeps_the_variables(self):
        self.resize_on_the_same_host()
        self.file('src').write_bytes(STALE)
        self.revert()
        self.assertEqual(VARIABLES, self.variables('src'))
        self.assert_no_copy_left()

    def test_live_migration_leaves_no_variables_on_the_source(self):
        self.live_migrate('completed')
        self.assertEqual(VARIABLES, self.variables('dest'))
        self.assertIsNone(self.variables('src'))

    def test_variables_are_kept_live_there_and_cold_back(self):
        self.live_migrate('completed')
        self.file('dest').write_bytes(VARIABLES[::-1])
        self.move(migrate=None)
        self.assertEqual(VARIABLES[::-1], self.variables('src'))

    def test_guest_migrates_with_unreachable_variables_and_a_warning(self):
        self.file('src').unlink()
        self.move(migrate=None)
        self.assertEqual(TEMPLATE, self.variables('dest'))
        self.assertEqual(1, self.warnings())

    def test_guest_migrates_with_variables_of_another_size(self):
        self.firmware.template('dest').write_bytes(TEMPLATE * 2)
        self.move(migrate=None)
        self.assertEqual(TEMPLATE * 2, self.variables('dest'))
        self.assertEqual(1, self.warnings())
        self.revert()
        self.assertEqual(VARIABLES, self.variables('src'))

    def test_copy_of_an_aborted_migration_is_not_used(self):
        self.file('src').unlink()
        self.directory('dest').mkdir()
        self.path('nvram.77', 'dest').write_bytes(STALE)
        self.move(migrate=None)
        self.assertEqual(TEMPLATE, self.variables('dest'))
        self.assert_no_copy_left()


class SharedStorageTestCase(NvramTestCase):
    """The hosts share the instances, but not libvirt's directory."""

    shared = True

    def test_variables_are_kept_there_and_back(self):
        self.move(migrate=None)
        self.assertEqual(VARIABLES, self.variables('dest'))
        self.revert()
        self.assertEqual(VARIABLES, self.variables('src'))
        self.assert_no_copy_left()


class UnpatchedDestinationTestCase(NvramTestCase):

    enabled_on = {'dest': WITHOUT}

    def test_destination_without_the_fix_ignores_the_copy(self):
        self.move(migrate=None)
        self.assertEqual(TEMPLATE, self.variables('dest'))
        self.revert()
        self.assertEqual(VARIABLES, self.variables('src'))


class UnpatchedSourceTestCase(NvramTestCase):

    enabled_on = {'src': WITHOUT}

    def test_destination_does_as_nova_without_a_copy(self):
        self.move(migrate=None)
        self.assertEqual(TEMPLATE, self.variables('dest'))
        self.assertEqual(0, self.warnings())


class WithoutFixTestCase(NvramTestCase):
    """The fault of Nova that the fix prevents."""

    enabled_fixes = WITHOUT

    def test_unmodified_nova_loses_the_variables_in_a_cold_migration(self):
        self.move(migrate=None)
        self.assertEqual(TEMPLATE, self.variables('dest'))
        self.confirm()
        self.assertIsNone(self.variables('src'))

    def test_unmodified_nova_revives_variables_of_a_former_stay(self):
        self.live_migrate('completed')
        self.file('dest').write_bytes(VARIABLES[::-1])
        self.move(migrate=None)
        self.assertEqual(VARIABLES, self.variables('src'))
