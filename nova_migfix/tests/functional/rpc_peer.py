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

It is run by the Python of an environment that has one release of Nova, and
the plugin or not, so it imports nothing of this package itself. Of Nova it
leaves out what needs a hypervisor, a network or a database; what remains
between the driver and the wire is Nova's: the manager, the registry of
objects, the serializer and the conductor's backport.

Each line of standard input asks for one method of :class:`Peer` with its
arguments; standard output has the answer. The peer itself may have to ask the
conductor before it can answer.
"""

import contextlib
import importlib.util
import json
import os
import sys
import traceback
import types

# What anything prints must not get between the answers.
ANSWERS = os.fdopen(os.dup(1), 'w', buffering=1)
os.dup2(2, 1)

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
    """What stands in for those of Nova's methods that the plugin extends."""

    def __init__(self, virtapi, read_only=False):
        self.virtapi = virtapi
        self.fetched_from = None
        self._host = types.SimpleNamespace(
            get_guest=lambda instance: types.SimpleNamespace(
                get_xml_desc=lambda **kwargs: '<domain/>'))

    def init_host(self, host):
        pass

    def check_can_live_migrate_destination(self, *arguments):
        return objects.LibvirtLiveMigrateData(
            filename='tmpfile', image_type='qcow2', block_migration=False,
            disk_available_mb=1, dst_wants_file_backed_memory=False,
            serial_listen_addr=None,
            vifs=[objects.VIFMigrateData(
                port_id=UUID, vnic_type='normal', vif_type='ovs',
                supports_os_vif_delegation=True)])

    def check_can_live_migrate_source(self, context, instance, data, bdms):
        data.is_shared_instance_path = False
        data.is_shared_block_storage = True
        return data

    def pre_live_migration(self, context, instance, block_device_info,
                           network_info, disk_info, data):
        self._try_fetch_image_cache(
            None, None, context, 'base', UUID, instance, 1,
            fallback_from_host=instance.host)
        data.target_connect_addr = CONF.libvirt.live_migration_inbound_addr
        return data

    def _try_fetch_image_cache(self, image, fetch_func, context, filename,
                               image_id, instance, size,
                               fallback_from_host=None):
        self.fetched_from = fallback_from_host


class Conductor:
    """The conductor's RPC API: the test hands on what is asked."""

    def object_backport_versions(self, context, objinst, versions):
        say(call='backport', objinst=SERIALIZER.serialize_entity(
            context, objinst), versions=versions)
        return SERIALIZER.deserialize_entity(context, hear())


class Peer:

    def __init__(self):
        self.context = context.RequestContext('user', 'project')
        self.instance = objects.Instance(
            uuid=UUID, host='src', info_cache=objects.InstanceInfoCache(
                network_info=model.NetworkInfo()))
        self.manager = manager.ComputeManager.__new__(manager.ComputeManager)
        self.manager.reportclient = None
        self.manager.compute_rpcapi = self
        self.manager.virtapi = manager.ComputeVirtAPI(self.manager)
        # in the order of nova-compute's main function
        os_vif.initialize()
        self.driver = importutils.import_class(
            f'nova.virt.{CONF.compute_driver}')(self.manager.virtapi)
        self.driver.init_host('host')

    def has_plugin(self):
        return importlib.util.find_spec('nova_migfix') is not None

    def check_destination(self):
        return self.send(self.driver.check_can_live_migrate_destination(
            self.context, self.instance, {}, {}))

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
            self.context, 'dest', self.instance, False, None,
            self.receive(migrate_data), [])
        return self.departed

    def pre_live_migration(self, context, instance, block_migration, disk,
                           host, migrate_data):
        """Take the place of the manager's RPC API."""
        self.departed = self.send(migrate_data)
        return migrate_data

    def arrive(self, migrate_data):
        return self.send(self.driver.pre_live_migration(
            self.context, self.instance, {}, [], None,
            self.receive(migrate_data)))

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
    for name, replacement in vars(LibvirtDriver).items():
        if isinstance(replacement, types.FunctionType):
            setattr(driver.LibvirtDriver, name, replacement)
    with contextlib.suppress(ImportError):
        # There is no kernel here that could be asked.
        from nova_migfix import tap
        tap.max_queues = lambda: 256
    peer = Peer()
    for line in iter(sys.stdin.readline, ''):
        request = json.loads(line)
        try:
            say(answer=getattr(peer, request.pop('method'))(**request))
        except Exception:
            say(error=traceback.format_exc())


if __name__ == '__main__':
    main()
