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

"""The guest ABI of a vNIC: its attributes that must not change for a guest.

Nova rebuilds each ``<interface>`` for the destination from the present
configuration, kernel and flavor.
"""

from __future__ import annotations

from collections.abc import Iterator

from lxml import etree

from nova_migfix.abi import table

_KEEP, _FOLLOW = table.Rule.KEEP, table.Rule.FOLLOW

_BACK_END = 'the destination\'s network; the guest does not see it'

#: https://libvirt.org/formatdomain.html#network-interfaces
VNIC = table.Table(
    ('model/@type', _KEEP, 'the device itself'),
    ('driver/@queues', _KEEP,
     'number of virtqueues and MSI-X vectors: QEMU refuses another one with '
     '"Failed to load virtio-net:virtio"; libvirt compares it from 11.4 on'),
    ('driver/@rx_queue_size', _KEEP, 'size of the receive ring'),
    ('driver/@tx_queue_size', _KEEP, 'size of the transmit ring'),
    *table.VIRTIO,
    ('driver/@rss', _KEEP, table.FEATURE),
    ('driver/@rss_hash_report', _KEEP, table.FEATURE),
    ('driver/host', _KEEP,
     'offloads that the device accepts from the guest'),
    ('driver/guest', _KEEP,
     'offloads that the guest accepts from the device'),
    ('driver/@name', _FOLLOW, 'vhost or not is the host\'s ability'),
    ('driver/@ioeventfd', _FOLLOW, 'how the host is notified'),
    ('driver/@txmode', _FOLLOW, 'how the host transmits'),
    ('mtu/@size', _KEEP,
     'VIRTIO_NET_F_MTU and its value; part of libvirt\'s own ABI check. Nova '
     'may lose it with the network of its information cache (LP 2080531)'),
    ('link', _KEEP, 'link state, as an administrator set it'),
    ('rom', _KEEP, 'the option ROM is a region of the guest\'s memory'),
    ('boot', _KEEP, 'bootindex, as the firmware sees it after a reset'),
    ('acpi', _KEEP, 'acpi-index, from which guests derive the name'),
    ('teaming', _KEEP, table.FEATURE),
    ('alias[starts-with(@name, "ua-")]', _KEEP,
     'the QEMU device id, with which a device is removed and events name it'),
    ('address', _FOLLOW, 'Nova itself keeps it'),
    ('mac', _FOLLOW, 'Nova itself keeps it'),
    ('@type', _FOLLOW, _BACK_END),
    ('@managed', _FOLLOW, _BACK_END),
    ('@trustGuestRxFilters', _FOLLOW, _BACK_END),
    ('source', _FOLLOW, _BACK_END),
    ('target', _FOLLOW, _BACK_END),
    ('virtualport', _FOLLOW, _BACK_END),
    ('backend', _FOLLOW, _BACK_END),
    ('backenddomain', _FOLLOW, _BACK_END),
    ('bandwidth', _FOLLOW, _BACK_END),
    ('coalesce', _FOLLOW, _BACK_END),
    ('downscript', _FOLLOW, _BACK_END),
    ('filterref', _FOLLOW, _BACK_END),
    ('guest', _FOLLOW, _BACK_END),
    ('ip', _FOLLOW, _BACK_END),
    ('port', _FOLLOW, _BACK_END),
    ('portForward', _FOLLOW, _BACK_END),
    ('route', _FOLLOW, _BACK_END),
    ('script', _FOLLOW, _BACK_END),
    ('tune', _FOLLOW, _BACK_END),
    ('vlan', _FOLLOW, _BACK_END),
)

_MAC = etree.XPath('string(mac/@address)')

#: types of interface whose queues are queues of a tap device of the kernel
TAP_KINDS = frozenset(('bridge', 'direct', 'ethernet', 'network'))


def keep_vnics(document: etree._Element,
               running: etree._Element) -> list[table.Kept]:
    """Apply :data:`VNIC` to each interface that both documents have.

    Interfaces match by MAC address. Several interfaces with one address match
    by their order, which Nova does not change. An interface without a
    counterpart does not change.

    :param document: the domain as Nova computed it, changed in place
    :param running: the domain of the running guest
    :returns: the values that were kept
    """
    present = dict(_interfaces(running))
    return [change for key, computed in _interfaces(document)
            if key in present
            for change in VNIC.keep(key[0], present[key], computed)]


def tap_queues(running: etree._Element) -> list[tuple[str, int]]:
    """Return MAC address and number of queues of each tap interface.

    :param running: the domain of the running guest
    """
    return [
        (mac, int(interface.xpath('string(driver/@queues)') or 1))
        for (mac, _), interface in _interfaces(running)
        if interface.get('type') in TAP_KINDS]


def _interfaces(
    document: etree._Element,
) -> Iterator[tuple[tuple[str, int], etree._Element]]:
    """Yield (MAC, number of earlier interfaces with it) and interface."""
    seen: dict[str, int] = {}
    for interface in document.iterfind('./devices/interface'):
        mac = str(_MAC(interface)).strip().lower()
        if mac:
            yield (mac, seen.setdefault(mac, 0)), interface
            seen[mac] += 1
