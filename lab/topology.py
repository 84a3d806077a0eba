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

"""The hosts of the lab, its networks, and who has which address."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import ipaddress

CONTROLLER = 'controller'
COMPUTES = ('compute1', 'compute2')

# The host part of each address. The lab lives in network namespaces of its
# own, so none of these can collide with what the machine itself uses.
_NUMBER = {CONTROLLER: 1, 'compute1': 11, 'compute2': 12}

HOSTS = tuple(_NUMBER)


@dataclasses.dataclass(frozen=True)
class Network:
    """One layer 2 segment: a bridge on the controller, a leg on each host."""

    name: str
    ipv4: str = ''
    ipv6: str = ''

    @property
    def bridge(self) -> str:
        return f'br-{self.name}'

    def address(self, host: str, version: int = 4) -> str:
        """The address of *host* (its name) as a string without prefix."""
        subnet = self.ipv6 if version == 6 else self.ipv4
        return str(ipaddress.ip_network(subnet)[_NUMBER[host]])

    def addresses(self, host: str) -> Iterator[str]:
        """Every address of *host* here, each as ``address/prefix``."""
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
    """MAC and IP address of a guest, which knows the latter by the former."""
    subnet = ipaddress.ip_network(GUEST_SUBNET)
    return f'fa:16:3e:00:00:{number:02x}', str(subnet[number])


# What answers on the controller's management address.
PORTS = {
    'identity': 5000,
    'image': 9292,
    'placement': 8778,
    'compute': 8774,
    'network': 9696,
    'amqp': 5672,
}


def url(service: str, path: str = '') -> str:
    """Where the API of *service* (a key of PORTS) answers."""
    address = MANAGEMENT.address(CONTROLLER)
    return f'http://{address}:{PORTS[service]}{path}'


def owner(address: str) -> tuple[str, str] | None:
    """``(host, network)`` names of an IPv4 or IPv6 address, or None."""
    for network in NETWORKS:
        for host in HOSTS:
            if any(leg.split('/')[0] == address
                   for leg in network.addresses(host)):
                return host, network.name
    return None
