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


"""A service of a cloud, in a process of its own: see test_rpc_matrix.

The Python of an environment with one release of Nova runs it. This Nova is
unmodified, has the plugin or is patched, so this module imports no other
module of this package. Hypervisor, network and database are replaced. Nova's
own code runs for the driver's part of a live migration, the manager, the
registry of objects, the serializer and the conductor's backport.

Each line of standard input calls one method of :class:`Peer` with its
arguments; standard output has the answer. The peer may call the conductor
before it answers.
"""

import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import sys
import traceback
import types
from unittest import mock

# Other output must not mix with the answers.
ANSWERS = os.fdopen(os.dup(1), 'w', buffering=1)
os.dup2(2, 1)

sys.modules['libvirt'] = mock.MagicMock()

import nova.conf  # noqa: E402

CONF = nova.conf.CONF
CONF(['--config-file', sys.argv[1]], project='nova')

from nova.compute import manager  # noqa: E402
from nova.conductor import manager as conductor_manager  # noqa: E402
from nova import context  # noqa: E402
from nova.network import model  # noqa: E402
from nova import objects  # noqa: E402
from nova.objects import base  # noqa: E402
from nova.virt.libvirt import driver  # noqa: E402
import os_vif  # noqa: E402
from oslo_utils import importutils  # noqa: E402

UUID = 'c5e4ba0e-2ed4-44b1-8f2a-6b1c4ac1a1d5'


class LibvirtDriver:
    """Replacements for Nova's methods that need a hypervisor."""

    fetched_from = None

    def init_host(self, host):
        self._host = types.SimpleNamespace(
            get_guest=lambda instance: types.SimpleNamespace(
                get_xml_desc=lambda **kwargs: '<domain/>'))
        self._network_api = types.SimpleNamespace(
            has_port_binding_extension=lambda context: True)
        # where a patched Nova calls it
        if hasattr(self, '_get_dest_capabilities'):
            self._dest_capabilities = self._get_dest_capabilities()

    # -- destination's precheck

    def _compare_cpu(self, guest_cpu, host_cpu_str, instance):
        pass

    def _create_shared_storage_test_file(self, instance):
        return 'tmpfile'

    def _host_can_support_mdev_live_migration(self):
        return False

    # -- source's precheck

    def _check_shared_storage_test_file(self, filename, instance):
        return False

    def _is_shared_block_storage(self, instance, data, block_device_info):
        return False

    def _assert_dest_node_has_enough_disk(self, *arguments):
        pass

    def _get_all_assigned_mediated_devices(self, instance=None):
        return {}

    # -- departure and arrival

    def _get_instance_disk_info(self, instance, block_device_info):
        return []

    def _create_images_and_backing(self, context, instance, instance_dir,
                                   disk_info, fallback_from_host=None):
        self.fetched_from = fallback_from_host

    def _pre_live_migration_plug_vifs(self, *arguments):
        pass


def stand_in():
    """Replace existing methods that need a hypervisor or a kernel."""
    for name, replacement in vars(LibvirtDriver).items():
        if not name.startswith('__') and (
                name == 'fetched_from' or hasattr(driver.LibvirtDriver, name)):
            setattr(driver.LibvirtDriver, name, replacement)
    for module, name in (('nova_migfix.abi.tap', 'max_queues'),
                         ('nova.privsep.linux_net', 'count_tap_queues')):
        with contextlib.suppress(ImportError, AttributeError):
            getattr(importlib.import_module(module), name)
            setattr(sys.modules[module], name, lambda *arguments: 256)


class Conductor:
    """The conductor's RPC API; the test forwards each call."""

    def object_backport_versions(self, context, objinst, versions):
        say(call='backport', objinst=SERIALIZER.serialize_entity(
            context, objinst), versions=versions)
        return SERIALIZER.deserialize_entity(context, hear())


class Peer:

    def __init__(self):
        self.context = context.RequestContext('user', 'project')
        self.instance = objects.Instance(
            uuid=UUID, host='src', image_ref='', vcpu_model=None,
            numa_topology=None,
            flavor=objects.Flavor(vcpus=1, extra_specs={}),
            system_metadata={}, info_cache=objects.InstanceInfoCache(
                network_info=model.NetworkInfo([model.VIF(
                    id=UUID, address='fa:16:3e:00:00:01', type='ovs')])))
        self.manager = manager.ComputeManager.__new__(manager.ComputeManager)
        self.manager.reportclient = None
        self.manager.compute_rpcapi = self
        self.manager.virtapi = manager.ComputeVirtAPI(self.manager)
        # in the order of nova-compute's main function
        os_vif.initialize()
        self.driver = self.manager.driver = importutils.import_class(
            f'nova.virt.{CONF.compute_driver}')(self.manager.virtapi)
        self.driver.init_host('host')
        self.manager._get_instance_block_device_info = (
            lambda *arguments, **options: {})

    def kind(self):
        """Return the kind of this service: stock, plugin or patched."""
        if importlib.util.find_spec('nova_migfix') is not None:
            return 'plugin'
        patched = hasattr(driver.LibvirtDriver, '_get_source_host')
        return 'patched' if patched else 'stock'

    def check_destination(self):
        return self.send(self.driver.check_can_live_migrate_destination(
            self.context, self.instance, {'cpu_info': '{}'},
            {'disk_available_least': 1}, block_migration=True))

    def check_source(self, migrate_data):
        return self.send(self.driver.check_can_live_migrate_source(
            self.context, self.instance, self.receive(migrate_data), None))

    def hand_on(self, migrate_data):
        return self.send(self.receive(migrate_data))

    def backport(self, objinst, versions):
        return self.send(
            conductor_manager.ConductorManager.object_backport_versions(
                None, self.context, self.receive(objinst), versions))

    def depart(self, migrate_data):
        self.manager._do_pre_live_migration_from_source(
            self.context, 'dest', self.instance, True, None,
            self.receive(migrate_data), [])
        return self.departed

    def pre_live_migration(self, context, instance, block_migration, disk,
                           host, migrate_data):
        """Replace the method of the manager's RPC API."""
        self.departed = self.send(migrate_data)
        return migrate_data

    def arrive(self, migrate_data):
        try:
            return self.send(self.driver.pre_live_migration(
                self.context, self.instance, {}, [], '[]',
                self.receive(migrate_data)))
        finally:
            shutil.rmtree(os.path.join(CONF.instances_path, UUID))

    def fetched_from(self):
        return self.driver.fetched_from

    def send(self, entity):
        return SERIALIZER.serialize_entity(self.context, entity)

    def receive(self, entity):
        return SERIALIZER.deserialize_entity(self.context, entity)


def say(**message):
    ANSWERS.write(json.dumps(message) + '\n')


def hear():
    return json.loads(sys.stdin.readline())


SERIALIZER = base.NovaObjectSerializer()
SERIALIZER._conductor = Conductor()


def main():
    objects.register_all()
    stand_in()
    peer = Peer()
    for line in iter(sys.stdin.readline, ''):
        request = json.loads(line)
        try:
            say(answer=getattr(peer, request.pop('method'))(**request))
        except Exception:
            say(error=traceback.format_exc())


if __name__ == '__main__':
    main()
