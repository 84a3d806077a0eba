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

"""The complete lab: three hosts, their networks and all of OpenStack."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import ctypes
import functools
import itertools
import os
import pathlib
from typing import Any

import fixtures

from lab import compute
from lab import control_plane
from lab import environments
from lab import fabric
from lab import host
from lab import hypervisor
from lab import image
from lab import infrastructure
from lab import process
from lab import ssh
from lab import topology
from lab import workdir

# More virtual CPUs than the machine may have: for placement it is one.
FLAVOR: dict[str, Any] = {
    'name': 'four-cpus', 'ram': 192, 'vcpus': 4, 'disk': 1}
# Changes to the flavor that make it larger, for a resize.
LARGER = {'ram': 224}
FLAVOR_SPECS = {'resources:VCPU': '1'}

MULTIQUEUE: dict[str, Any] = {'hw_vif_multiqueue_enabled': 'true'}

_CLONE_NEWNET = 0x40000000


class NetworkOf(fixtures.Fixture):
    """Move the lab's process into the network namespace of a host.

    So the machine's network neither reaches nor sees anything of the lab.
    Only threads that are started afterwards are in the namespace as well.
    """

    def __init__(self, host: host.Host) -> None:
        self.host = host

    def _setUp(self) -> None:
        home = os.open('/proc/self/ns/net', os.O_RDONLY)
        self.addCleanup(os.close, home)
        there = os.open(f'/proc/{self.host.pid}/ns/net', os.O_RDONLY)
        self._enter(there)
        os.close(there)
        self.addCleanup(self._enter, home)

    @staticmethod
    def _enter(namespace: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), 'setns')


class Cloud(fixtures.Fixture):
    """All hosts and services, running; `api` is the SDK's connection.

    :param venvs: environments.Environments, made
    :param image: image.GuestImage, made
    :param progress: called with each step, as text
    """

    def __init__(self, directories: workdir.WorkDir,
                 venvs: environments.Environments, image: image.GuestImage,
                 keep: bool, progress: Callable[[str], object]) -> None:
        self.directories = directories
        self.venvs = venvs
        self.image = image
        self.keep = keep
        self.progress = progress
        self.hosts: dict[str, host.Host] = {}
        self.libvirt: dict[str, hypervisor.Libvirt] = {}
        self.ssh: dict[str, ssh.SshServer] = {}
        self.compute: dict[str, compute.Compute] = {}
        self._flavors: dict[str, Any] = {}
        self._enough_looks: dict[compute.Compute, int] = {}
        self._guest_numbers = itertools.cycle(
            range(topology.FIRST_GUEST, topology.LAST_GUEST + 1))

    @property
    def controller(self) -> host.Host:
        return self.hosts[topology.CONTROLLER]

    def _setUp(self) -> None:
        self.progress('hosts and networks')
        for name in topology.HOSTS:
            self.hosts[name] = self.useFixture(
                host.Host(name, self.directories, self.keep))
        self.useFixture(fabric.Fabric(self.hosts))
        self.useFixture(NetworkOf(self.controller))
        self.progress('databases, broker, libvirt and Open vSwitch')
        plane = control_plane.ControlPlane(self.controller, self.venvs,
                                           self.directories.cache)
        process.in_parallel(
            functools.partial(self.useFixture, plane),
            functools.partial(self.useFixture,
                              infrastructure.Broker(self.controller)),
            *[functools.partial(self._hypervisor, name)
              for name in topology.COMPUTES])
        self.progress('services of the control plane')
        control_plane.make_service_user()
        self.api = control_plane.connect()
        plane.start_workers()
        self.progress('nova-compute and the network agents')
        self.configure({name: compute.Settings()
                        for name in topology.COMPUTES})
        process.wait_for('network agents', self._agents_alive)
        plane.discover_computes()
        self._make_resources()

    def _hypervisor(self, name: str) -> None:
        host = self.hosts[name]
        tools = hypervisor.Tools(self.directories.cache)
        self.useFixture(hypervisor.Switch(host))
        self.libvirt[name] = self.useFixture(hypervisor.Libvirt(host, tools))
        self.ssh[name] = self.useFixture(ssh.SshServer(host, tools.key))

    def configure(self, settings: Mapping[str, compute.Settings]) -> None:
        """Apply ``{host name: compute.Settings}`` to compute hosts."""
        for name in settings:
            if name not in self.compute:
                self.compute[name] = self.useFixture(compute.Compute(
                    self.hosts[name], self.libvirt[name], self.venvs))
        changed = [self.compute[name] for name, wanted in settings.items()
                   if self.compute[name].apply(wanted)]
        for service in changed:
            service.wait()

    def ports_changed(self) -> None:
        """Note that ports have changed, for `wait_for_agents`."""
        # An iteration may be under way: the second one that ends from now on
        # has begun after the change.
        self._enough_looks = {service: service.agent_looks() + 2
                              for service in self.compute.values()}

    def wait_for_agents(self) -> None:
        """Wait until the Open vSwitch agents have processed the changes.

        An agent never sets up a port that appears, vanishes and appears again
        between two iterations, and deletes the flows of a new port together
        with those of an old one of the same number.
        """
        process.wait_for(
            'the Open vSwitch agents to process their ports',
            lambda: all(service.agent_looks() >= looks
                        for service, looks in self._enough_looks.items()))

    def wait_for_space(self, host: str) -> None:
        """Wait until Nova has reported disk space on *host* to placement."""
        placement = self.api.placement

        def known() -> bool:
            providers = placement.get(
                f'/resource_providers?name={host}').json()
            uuid = providers['resource_providers'][0]['uuid']
            inventories = placement.get(
                f'/resource_providers/{uuid}/inventories').json()
            return 'DISK_GB' in inventories['inventories']

        process.wait_for(f'disk space on {host}', known, timeout=180, poll=1,
                         log=self.compute[host].log)

    def allocations(self, consumer: str) -> list[str]:
        """Return the names of the hosts on which *consumer* has resources.

        :param consumer: the id of an instance or of a migration record
        """
        placement = self.api.placement
        providers = placement.get('/resource_providers').json()
        names = {provider['uuid']: provider['name']
                 for provider in providers['resource_providers']}
        found = placement.get(f'/allocations/{consumer}').json()
        return sorted(names[uuid] for uuid in found['allocations'])

    def _agents_alive(self) -> bool:
        alive = [agent for agent in self.api.network.agents()
                 if agent.is_alive]
        return len(alive) == len(topology.COMPUTES)

    def _make_resources(self) -> None:
        network = self.api.network.create_network(
            name='provider', provider_network_type='flat',
            provider_physical_network='physnet1', is_shared=True)
        self.api.network.create_subnet(
            name='guests', network_id=network.id, ip_version=4,
            cidr=topology.GUEST_SUBNET, enable_dhcp=False, gateway_ip=None)
        self.network = network
        self.multiqueue = self.upload('guest', **MULTIQUEUE)

    def flavor(self, **changes: int) -> Any:
        """Return FLAVOR with *changes*, created at the first call."""
        name = '-'.join([FLAVOR['name'], *[
            f'{key}-{value}' for key, value in sorted(changes.items())]])
        if name not in self._flavors:
            flavor = self.api.compute.create_flavor(
                **{**FLAVOR, **changes, 'name': name})
            self.api.compute.create_flavor_extra_specs(flavor, FLAVOR_SPECS)
            self._flavors[name] = flavor
        return self._flavors[name]

    def create_port(self) -> Any:
        """Create a port for another guest."""
        mac, address = topology.guest_addresses(next(self._guest_numbers))
        return self.api.network.create_port(
            network_id=self.network.id, mac_address=mac,
            fixed_ips=[{'ip_address': address}])

    def upload(self, name: str, file: pathlib.Path | None = None,
               disk_format: str = 'qcow2', container_format: str = 'bare',
               **properties: str) -> Any:
        """Upload a file, by default the guest's disk, to Glance."""
        return self.api.create_image(
            name, filename=str(file or self.image.disk),
            disk_format=disk_format, container_format=container_format,
            visibility='public', wait=True, **properties)
