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


"""Files missing in Glance come over the migration network: LP 1939869."""

import functools
import os

import fixtures
from nova import conf
from nova import exception
from nova.virt.libvirt import driver
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import imagecache
from oslo_concurrency import processutils

from nova_migfix import nova_release
from nova_migfix.tests.functional import base

CONF = conf.CONF
execute = processutils.execute
by_name = imagebackend.Backend.by_name
create_image = driver.LibvirtDriver._create_image

ADDRESS = '192.0.2.1'

#: the source's [libvirt] live_migration_inbound_addr, and the host that the
#: destination fetches from
ADDRESSES = (
    (ADDRESS, ADDRESS),
    ('2001:db8::1', '[2001:db8::1]'),
    ('src.migration.example', 'src.migration.example'),
    (None, 'src'),
)

#: [libvirt] remote_filesystem_transport, and its command
TRANSPORTS = {
    'ssh': lambda host, path: [
        'scp', '-C', '-r', f'{host}:{path}', path],
    'rsync': lambda host, path: [
        'rsync', '-r', '--sparse', f'{host}:{path}', path, '--compress'],
}

#: values that must never reach ssh as a host
BAD_ADDRESSES = (
    '-oProxyCommand=reboot',
    'two words',
    '/etc/shadow',
    'root@192.0.2.1',
    'host:/etc',
    'line\nbreak',
    '',
)


class LocalDisks(fixtures.Fixture):
    """Two hosts with disks of their own and a Glance without images.

    :ivar commands: each command that would have copied something between
        hosts, as a list of its arguments
    """

    #: of each disk its name, format and backing file
    DISKS = (('disk', 'qcow2', 'c0ffee'),)

    def _setUp(self):
        self.commands = []
        for where, mocked in (
            ('driver.LibvirtDriver._check_shared_storage_test_file',
             {'return_value': False}),
            ('driver.LibvirtDriver._is_path_shared_with',
             {'return_value': False}),
            ('driver.LibvirtDriver._live_migration_copy_disk_paths',
             {'return_value': ([], [])}),
            ('driver.LibvirtDriver._get_instance_disk_info',
             {'side_effect': self._disk_info}),
        ):
            self.useFixture(fixtures.MockPatch(
                f'nova.virt.libvirt.{where}', autospec=True, **mocked))
        for fetch in ('fetch_image', 'fetch_raw_image'):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova.virt.libvirt.utils.{fetch}', self._not_found))
        for name, replacement in (
            ('nova.virt.libvirt.imagebackend.Backend.by_name', self._by_name),
            ('oslo_concurrency.processutils.execute', self._execute),
        ):
            self.useFixture(fixtures.MonkeyPatch(name, replacement))

    def base_image(self):
        return self.base_path(self.DISKS[0][2])

    @staticmethod
    def base_path(name):
        return os.path.join(CONF.instances_path, '_base', name)

    def _disk_info(self, instance, _block_device_info):
        return [{
            'path': os.path.join(CONF.instances_path, instance.uuid, name),
            'backing_file': self.base_path(base) if base else '',
            'type': form, 'virt_disk_size': 1 << 20, 'disk_size': 1,
            'over_committed_disk_size': 0} for name, form, base in self.DISKS]

    def _by_name(self, backend, instance, name, *arguments, **options):
        disk = by_name(backend, instance, name, *arguments, **options)
        disk.SUPPORTS_CLONE = False
        disk.cache.side_effect = functools.partial(
            self._cache, os.path.join(
                CONF.instances_path, instance.uuid, name))
        return disk

    def _cache(self, path, fetch_func, filename, size=None, safe=False,
               **options):
        """Leave an existing disk on its existing base, as Nova does."""
        if os.path.exists(path):
            return
        fetch_func(target=os.path.join(
            CONF.instances_path, '_base', filename), **options)

    def _not_found(self, *_arguments, **_options):
        raise exception.ImageNotFound(image_id='gone')

    def _execute(self, *command, **options):
        if command[0] not in ('rsync', 'scp', 'ssh'):
            return execute(*command, **options)
        self.commands.append(list(command))
        return '', ''


class SourceAddressTestCase(base.MigrationTestCase):

    # The other fixes fetch files themselves, which Nova then does not fetch.
    enabled_fixes = ['rollback_state', 'source_address', 'vnic']

    def setUp(self):
        super().setUp()
        self.disks = self.useFixture(LocalDisks())

    def configure(self, address, transport='ssh'):
        self.flags(live_migration_inbound_addr=address,
                   remote_filesystem_transport=transport, group='libvirt')

    def instance_path(self, *names):
        return os.path.join(CONF.instances_path, self.server['id'], *names)


class SentAddressTestCase(SourceAddressTestCase):
    """The address crosses RPC in the legs of a live migration."""

    ANNOUNCED = dict(zip(base.LEGS, (
        None, ADDRESS, ADDRESS, None, ADDRESS, ADDRESS)))

    def test_address_is_sent_again_after_the_conductor(self):
        self.configure(ADDRESS)
        self.boot()
        self.live_migrate('completed')
        self.assertEqual(self.ANNOUNCED, self.announced('source_connect_addr'))

    def test_address_is_sent_after_a_reset_of_the_manager(self):
        self.configure(ADDRESS)
        self.boot()
        for compute in (self.src, self.dest):
            compute.manager.reset()
        self.live_migrate('completed')
        self.assertEqual(self.ANNOUNCED, self.announced('source_connect_addr'))

    def test_unset_option_leaves_the_field_unset(self):
        self.configure(None)
        self.boot()
        self.live_migrate('completed')
        self.assertEqual(len(base.LEGS), len(self.wire))
        for data in self.wire:
            self.assertNotIn('source_connect_addr', data)


class FetchAddressTestCase(SourceAddressTestCase):
    """The destination fetches from the address in each operation."""

    def test_live_migration_fetches_from_the_address_of_the_source(self):
        for transport, command in TRANSPORTS.items():
            for address, host in ADDRESSES:
                self.configure(address, transport)
                self.boot(kernel_id=self.glance.image1['id'],
                          ramdisk_id=self.glance.image2['id'])
                self.live_migrate('completed')
                self.assertEqual(
                    [command(host, path) for path in (
                        self.disks.base_image(),
                        self.instance_path('kernel'),
                        self.instance_path('ramdisk'))],
                    self.disks.commands)
                self.disks.commands.clear()
                self._delete_server(self.server)

    def test_cold_migration_fetches_from_the_address_of_the_source(self):
        for address, host in ADDRESSES:
            self.configure(address)
            self.assert_fetched_cold(host, self._migrate_server)

    def test_resize_fetches_from_the_address_of_the_source(self):
        flavor = self._create_flavor(vcpu=2)
        for address, host in ADDRESSES:
            self.configure(address, 'rsync')
            self.assert_fetched_cold(
                host, lambda server: self._resize_server(server, flavor),
                transport='rsync')

    def assert_fetched_cold(self, host, move, transport='ssh'):
        self.boot()
        os.mkdir(self.instance_path())
        with fixtures.MonkeyPatch(
                'nova.virt.libvirt.driver.LibvirtDriver._create_image',
                create_image):
            move(self.server)
        base_image = os.path.join(
            CONF.instances_path, '_base',
            imagecache.get_cache_fname(self.server['image']['id']))
        self.assertEqual(
            [TRANSPORTS[transport](host, base_image)],
            [command for command in self.disks.commands
             if base_image in command])
        self.disks.commands.clear()
        self._delete_server(self.server)

    def test_iso_config_drive_is_fetched_from_the_address_of_the_source(self):
        if nova_release.major() > 29:
            self.skipTest('this Nova does not copy an ISO config drive')
        for address, host in ADDRESSES:
            self.configure(address)
            self.boot(img_config_drive='mandatory')
            self.live_migrate('completed')
            self.assertIn(
                ['scp', '-C', '-r',
                 f'{host}:{self.instance_path("disk.config")}',
                 self.instance_path()],
                self.disks.commands)
            self._delete_server(self.server)


class InvalidAddressTestCase(SourceAddressTestCase):
    """A source sends an invalid address.

    The option accepts no such value, so only a compromised peer can send it.
    """

    def test_invalid_address_is_refused_before_it_reaches_a_command_line(self):
        self.boot()
        for value in BAD_ADDRESSES:
            with fixtures.MockPatch(
                    'nova_migfix.fixes.source_address.SourceAddress.set_source_fields',
                    autospec=True,
                    side_effect=lambda data, disks, value=value: setattr(
                        data, 'source_connect_addr', value)):
                self.live_migrate('failed')
            self.assertEqual([], self.disks.commands, value)
            self.assertEqual([], self.destination_xmls, value)
            self.assertEqual('src', self.host(), value)
            event = self.failed_event('compute_pre_live_migration')
            self.assertIn('cannot be used to fetch files', event['details'])


class WithoutFixTestCase(SourceAddressTestCase):
    """Without the fix Nova only knows the host name."""

    enabled_fixes = ['rollback_state', 'vnic']

    def test_unmodified_nova_fetches_from_the_host_name(self):
        self.configure(ADDRESS)
        self.boot()
        self.live_migrate('completed')
        for data in self.wire:
            self.assertNotIn('source_connect_addr', data)
        self.assertEqual(
            [TRANSPORTS['ssh']('src', self.disks.base_image())],
            self.disks.commands)
