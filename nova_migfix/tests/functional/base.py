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

"""Two computes, 'src' and 'dest', under the driver of this package.

One process runs both computes and the conductor. They share one
configuration, one directory of instances and one registry of objects.
:mod:`nova_migfix.tests.functional.test_rpc_matrix` tests separate processes.
"""

import copy
import importlib
import time

import fixtures
from lxml import etree
from nova.compute import rpcapi
from nova import conf
from nova.objects import base as objects_base
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.tests.functional import integrated_helpers
from nova.tests.functional.libvirt import base
from oslo_utils import uuidutils

from nova_migfix import conf as migfix_conf
from nova_migfix import osvif

CONF = conf.CONF

# As nova-compute does; before Nova's fixtures replace the methods that the
# driver overrides, as the driver reads their signatures.
osvif.MigfixPlugin.load('migfix')
importlib.import_module(osvif.DRIVER)

#: Each RPC leg of the migrate_data of a live migration, in order.
LEGS = (
    'destination asks source',
    'source answers destination',
    'destination answers conductor',
    'conductor asks source',
    'source asks destination',
    'destination answers source',
)


class MigrationTestCase(base.LibvirtMigrationMixin, base.ServersTestBase,
                        integrated_helpers.InstanceHelperMixin):
    """A guest that migrates from 'src' to 'dest'.

    :ivar destination_xmls: the domain XML for the destination, one document
        for each call of libvirt's migrate function
    :ivar wire: the data of each LibvirtLiveMigrateData that crossed RPC
    """

    ADMIN_API = True
    # As in a real cloud: the API answers before the precheck.
    CAST_AS_CALL = False
    # the newest one that a test needs, for the details of action events
    microversion = '2.84'

    #: [migfix] enabled_fixes; None is the default, all fixes
    enabled_fixes = None

    def setUp(self):
        super().setUp()
        migfix_conf.register_opts(CONF)
        self.flags(enabled_fixes=self.enabled_fixes, group='migfix')
        # Other processes run tests too.
        self.flags(state_path=self.useFixture(fixtures.TempDir()).path)
        # Stands in for the kernel: the limit of a current one.
        self.max_tap_queues = self.useFixture(fixtures.MockPatch(
            'nova_migfix.abi.tap.max_queues', autospec=True,
            return_value=256)).mock
        # Stands in for QEMU: the images are in use.
        self.useFixture(fixtures.MockPatch(
            'nova_migfix.abi.image_lock.is_locked', autospec=True,
            return_value=True))
        # This machine may have files of guests that have the same names.
        for name in ('save', 'restore', 'remove'):
            self.useFixture(fixtures.MockPatch(
                f'nova_migfix.storage.nvram.{name}', autospec=True,
                return_value=None))
        self.useFixture(FaithfulLibvirt())
        self.useFixture(UnpatchedConductor())
        self.wire = self.useFixture(Wire()).sent
        self.destination_xmls = []
        self.start_compute(hostname='src')
        self.start_compute(hostname='dest')
        self.src, self.dest = self.computes['src'], self.computes['dest']

    def _setup_compute_service(self):
        self.flags(compute_driver='migfix.LibvirtDriver')

    # -- libvirt --------------------------------------------------------------

    def _migrate_stub(self, domain, destination, params, flags):
        self.destination_xmls.append(params['destination_xml'])
        super()._migrate_stub(domain, destination, params, flags)

    def source_domain(self):
        """Return the domain of the guest on its source."""
        return self.src.driver._host.get_connection().lookupByUUIDString(
            self.server['id'])

    # -- the operator ---------------------------------------------------------

    def create_image(self, **properties):
        """Return the ID of a new image."""
        return self.glance.create(None, {
            'id': uuidutils.generate_uuid(),
            'name': 'guest', 'status': 'active', 'size': 1,
            'container_format': 'bare', 'disk_format': 'qcow2',
            'min_ram': 0, 'min_disk': 0, 'visibility': 'public',
            'properties': properties})['id']

    def boot(self, **image_properties):
        """Boot a guest of four CPUs and one port on the source."""
        self.server = self._create_server(
            host=self.src.host,
            image_uuid=self.create_image(**image_properties),
            flavor_id=self._create_flavor(vcpu=4),
            networks=[{'port': self.neutron.port_1['id']}])

    def _wait_for_state_change(self, server, expected_status, **kwargs):
        # Nova's five seconds are too short on a busy machine.
        return super()._wait_for_state_change(
            server, expected_status, max_retries=120, **kwargs)

    def live_migrate(self, record, server='ACTIVE', host=None):
        """Live migrate the guest and wait for the end of the migration.

        :param record: status of the migration's record
        :param server: status of the server
        :param host: insist on this destination
        """
        before = len(self.migrations())
        self.api.post_server_action(self.server['id'], {
            'os-migrateLive': {'host': host, 'block_migration': 'auto'}})
        for _attempt in range(240):
            self.server = self.api.get_server(self.server['id'])
            found = [one['status'] for one in self.migrations()[before:]]
            if ([record], server, None) == (
                    found, self.server['status'],
                    self.server['OS-EXT-STS:task_state']):
                return
            time.sleep(0.5)
        self.fail(f'The migration is {found}, the server {self.server}')

    def migrations(self):
        """Return the records of the guest's migrations, oldest first."""
        records = self.api.api_get(
            f'/os-migrations?instance_uuid={self.server["id"]}')
        return sorted(records.body['migrations'], key=lambda one: one['id'])

    def host(self):
        return self.api.get_server(
            self.server['id'])['OS-EXT-SRV-ATTR:host']

    def failed_event(self, name):
        """Wait until this event of the migration fails; return the event."""
        return self._wait_for_action_fail_completion(
            self.server, 'live-migration', name)

    def announced(self, field):
        """Return the value of the field in each leg, None if unset."""
        return dict(zip(LEGS, (data.get(field) for data in self.wire)))


class FaithfulLibvirt(fixtures.Fixture):
    """Correct Nova's fake libvirt where it differs from libvirt.

    The fake keeps only the type, MAC and source of an interface, treats a
    paused domain as inactive, has no reason for a state, reports a job of an
    inactive domain, and has vCPUs that never run.
    """

    def _setUp(self):
        parse = fakelibvirt.Domain._parse_definition
        describe = fakelibvirt.Domain.XMLDesc

        def parse_definition(domain, xml):
            domain.interfaces = etree.fromstring(xml).findall(
                './devices/interface')
            return parse(domain, xml)

        def xml_desc(domain, flags):
            document = etree.fromstring(describe(domain, flags))
            for shown, given in zip(
                    document.findall('./devices/interface'),
                    domain.interfaces):
                shown.extend(
                    copy.deepcopy(element) for element in given
                    if shown.find(element.tag) is None)
                # libvirt omits the attribute for a single queue
                for driver in shown.findall('driver[@queues="1"]'):
                    del driver.attrib['queues']
            return etree.tostring(document, encoding='unicode')

        def is_active(domain):
            return int(domain._state in (
                fakelibvirt.VIR_DOMAIN_RUNNING,
                fakelibvirt.VIR_DOMAIN_PAUSED))

        def state(domain, flags=0):
            return [domain._state, getattr(domain, 'reason', 1)]

        def job_stats(domain, flags=0):
            if not domain.isActive():
                raise fakelibvirt.make_libvirtError(
                    fakelibvirt.libvirtError, 'domain is not running',
                    error_code=fakelibvirt.VIR_ERR_OPERATION_INVALID)
            return {'type': domain._job_type}

        def vcpus(domain):
            # a second of CPU time each
            return ([(number, 1, 10 ** 9, number) for number in range(
                domain._def['vcpu']['number'])], [])

        for name, replacement in (('_parse_definition', parse_definition),
                                  ('XMLDesc', xml_desc),
                                  ('isActive', is_active),
                                  ('jobStats', job_stats),
                                  ('state', state),
                                  ('vcpus', vcpus)):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova.tests.fixtures.libvirt.Domain.{name}', replacement))


class UnpatchedConductor(fixtures.Fixture):
    """A conductor that does not know the plugin's fields and drops them.

    It shares its registry, which has the plugin's object, with the computes.
    """

    OURS = ('source_connect_addr', 'dest_capabilities')

    def _setUp(self):
        live_migration = rpcapi.ComputeAPI.live_migration

        def without_ours(api, context, *, migrate_data, **others):
            for name in self.OURS:
                if migrate_data.obj_attr_is_set(name):
                    delattr(migrate_data, objects_base.get_attrname(name))
            return live_migration(
                api, context, migrate_data=migrate_data, **others)

        self.useFixture(fixtures.MonkeyPatch(
            'nova.compute.rpcapi.ComputeAPI.live_migration', without_ours))


class Wire(fixtures.Fixture):
    """Record every LibvirtLiveMigrateData that the RPC serializer wrote."""

    def _setUp(self):
        self.sent = []
        serialize_entity = objects_base.NovaObjectSerializer.serialize_entity

        def recording(serializer, context, entity):
            primitive = serialize_entity(serializer, context, entity)
            if isinstance(primitive, dict) and primitive.get(
                    'nova_object.name') == 'LibvirtLiveMigrateData':
                self.sent.append(
                    copy.deepcopy(primitive['nova_object.data']))
            return primitive

        self.useFixture(fixtures.MonkeyPatch(
            'nova.objects.base.NovaObjectSerializer.serialize_entity',
            recording))
