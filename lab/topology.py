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

"""The hosts of the lab, its networks and all addresses."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import ipaddress

CONTROLLER = 'controller'
COMPUTES = ('compute1', 'compute2')

# The host part of each address. The lab has its own network namespaces, so no
# address can collide with one of the machine.
_NUMBER = {CONTROLLER: 1, 'compute1': 11, 'compute2': 12}

HOSTS = tuple(_NUMBER)


@dataclasses.dataclass(frozen=True)
class Network:
    """One layer 2 segment, a bridge on the controller."""

    name: str
    ipv4: str = ''
    ipv6: str = ''

    @property
    def bridge(self) -> str:
        return f'br-{self.name}'

    def address(self, host: str, version: int = 4) -> str:
        """Return the address of *host* (its name) without the prefix."""
        subnet = self.ipv6 if version == 6 else self.ipv4
        return str(ipaddress.ip_network(subnet)[_NUMBER[host]])

    def addresses(self, host: str) -> Iterator[str]:
        """Yield each address of *host* here as ``address/prefix``."""
        for subnet in filter(None, (self.ipv4, self.ipv6)):
            network = ipaddress.ip_network(subnet)
            yield f'{network[_NUMBER[host]]}/{network.prefixlen}'


MANAGEMENT = Network('management', '10.0.1.0/24')
MIGRATION = Network('migration', '10.0.2.0/24', 'fd00:0:0:2::/64')
PROVIDER = Network('provider')

NETWORKS = (MANAGEMENT, MIGRATION, PROVIDER)

# The guests' subnet on the provider network, and the address from which the
# controller pings them.
GUEST_SUBNET = '192.168.50.0/24'
PINGER = '192.168.50.1/24'
FIRST_GUEST, LAST_GUEST = 10, 254


def guest_addresses(number: int) -> tuple[str, str]:
    """Return MAC and IP address of a guest; it derives the IP from the MAC."""
    subnet = ipaddress.ip_network(GUEST_SUBNET)
    return f'fa:16:3e:00:00:{number:02x}', str(subnet[number])


# Ports on the controller's management address.
PORTS = {
    'identity': 5000,
    'image': 9292,
    'placement': 8778,
    'compute': 8774,
    'network': 9696,
    'amqp': 5672,
}


def url(service: str, path: str = '') -> str:
    """Return the URL of the API of *service* (a key of PORTS)."""
    address = MANAGEMENT.address(CONTROLLER)
    return f'http://{address}:{PORTS[service]}{path}'


def owner(address: str) -> tuple[str, str] | None:
    """Return the names ``(host, network)`` of an IP address, or None."""
    for network in NETWORKS:
        for host in HOSTS:
            if any(leg.split('/')[0] == address
                   for leg in network.addresses(host)):
                return host, network.name
    return None
