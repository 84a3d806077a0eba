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

"""The networks between the hosts, and packet captures on them."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import re
import signal

import fixtures

from lab import host
from lab import process
from lab import topology


class Fabric(fixtures.Fixture):
    """A bridge on the controller and a veth pair to each host, per network."""

    def __init__(self, hosts: Mapping[str, host.Host]) -> None:
        """:param hosts: the Host fixtures by name"""
        self.hosts = hosts
        self.controller = hosts[topology.CONTROLLER]

    def _setUp(self) -> None:
        for each in self.hosts.values():
            each.run('ip', 'link', 'set', 'lo', 'up')
        for network in topology.NETWORKS:
            self._bridge(network)
            for name in topology.COMPUTES:
                self._leg(network, self.hosts[name])
        self.controller.run('ip', 'address', 'add', topology.PINGER,
                            'dev', topology.PROVIDER.bridge)
        # Open vSwitch forwards packets without filling in their checksums.
        self.controller.run('ethtool', '--offload', topology.PROVIDER.bridge,
                            'tx', 'off')

    def _bridge(self, network: topology.Network) -> None:
        ip = self.controller.run
        ip('ip', 'link', 'add', network.bridge, 'type', 'bridge')
        ip('ip', 'link', 'set', network.bridge, 'up')
        self._address(self.controller, network, network.bridge)

    def _leg(self, network: topology.Network, host: host.Host) -> None:
        port = _port(network, host.name)
        ip = self.controller.run
        # ip resolves the peer's process id in its own PID namespace, so it
        # has to stay in the lab's and enters the network namespace only.
        process.run(['nsenter', '--target', str(self.controller.pid), '--net',
                     'ip', 'link', 'add', port, 'type', 'veth', 'peer',
                     'name', network.name, 'netns', str(host.pid)])
        ip('ip', 'link', 'set', port, 'master', network.bridge, 'up')
        host.run('ip', 'link', 'set', network.name, 'up')
        self._address(host, network, network.name)

    def _address(self, host: host.Host, network: topology.Network,
                 device: str) -> None:
        for address in network.addresses(host.name):
            # Without duplicate address detection the IPv6 address is usable
            # at once.
            nodad = ('nodad',) if ':' in address else ()
            host.run('ip', 'address', 'add', address, 'dev', device, *nodad)


class Link:
    """The controller's end of the veth pair from a network to a host."""

    def __init__(self, controller: host.Host, network: topology.Network,
                 host: str) -> None:
        self.controller = controller
        self.network = network
        self.port = _port(network, host)

    @contextlib.contextmanager
    def limited(self, rate: str) -> Iterator[None]:
        """Limit the traffic to the host.

        :param rate: as ``tc`` expects it, such as '20mbit'
        """
        device = ('dev', self.port, 'root')
        self.controller.run('tc', 'qdisc', 'add', *device, 'tbf', 'rate',
                            rate, 'burst', '64kb', 'latency', '400ms')
        try:
            yield
        finally:
            self.controller.run('tc', 'qdisc', 'del', *device)

    def cut(self) -> None:
        """Drop all packets; both hosts' interfaces stay up."""
        self.controller.run('ip', 'link', 'set', self.port, 'nomaster')

    def restore(self) -> None:
        """Let packets pass again after `cut`."""
        self.controller.run('ip', 'link', 'set', self.port, 'master',
                            self.network.bridge)


def _port(network: topology.Network, host: str) -> str:
    """Return the name of the veth end on the controller."""
    return f'{network.name}{topology.COMPUTES.index(host) + 1}'


class Capture(fixtures.Fixture):
    """A packet capture on a network for as long as the fixture is in use.

    Afterwards `connections` counts the packets to port 22 by
    ``(source, destination)`` address.
    """

    _PACKET = re.compile(r'IP6? (\S+)\.\d+ > (\S+)\.22: ')

    def __init__(self, controller: host.Host,
                 network: topology.Network) -> None:
        self.controller = controller
        self.network = network
        self.connections: dict[tuple[str, str], int] = {}

    def _setUp(self) -> None:
        name = f'tcpdump-{self.network.name}'
        self._output = self.controller.root / 'log' / f'{name}.out'
        self._output.unlink(missing_ok=True)
        self._tcpdump = self.controller.start(
            name, 'tcpdump', '--immediate-mode', '-nn', '-l', '-q', '-i',
            self.network.bridge, 'tcp', 'dst', 'port', '22')
        self.addCleanup(self._stop)
        self._tcpdump.wait_for(
            f'capture on {self.network.bridge}',
            lambda: 'listening on' in self._output.read_text(), timeout=20)

    def _stop(self) -> None:
        self._tcpdump.stop(signal.SIGINT)
        for match in self._PACKET.finditer(self._output.read_text()):
            pair = match[1], match[2]
            self.connections[pair] = self.connections.get(pair, 0) + 1
