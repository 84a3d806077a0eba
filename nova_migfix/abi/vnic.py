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
configuration, kernel and flavor, while the guest still has the device with
which it booted. For each attribute that libvirt knows of an interface,
:data:`VNIC` says whether the running guest or Nova decides. For a new
attribute of libvirt, add a row: the code reads, writes and logs it by its
path.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import copy
import dataclasses
import enum
import functools
import itertools
import re

from lxml import etree


class Rule(enum.Enum):
    KEEP = 'as in the running guest, absent if it is absent there'
    FOLLOW = 'as Nova computed it for the destination'


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One attribute of an interface in libvirt's domain XML.

    :ivar path: XPath from ``<interface>`` to one XML attribute, or to an
        element with all its contents
    :ivar rule: which of the two documents decides
    :ivar reason: why
    """

    path: str
    rule: Rule
    reason: str

    @property
    def child(self) -> str:
        """The name of a child of ``<interface>``; '' for its attributes."""
        return re.split(r'[/[@]', self.path)[0]

    @functools.cached_property
    def name(self) -> str:
        """The name of an attribute; '' for an element."""
        return self.path.partition('@')[2] if '/@' in self.path else ''

    @functools.cached_property
    def _find(self) -> etree.XPath:
        return etree.XPath(self.path)

    def read(self, interface: etree._Element) -> str | None:
        """Return the value, the canonical XML of an element, or None."""
        found = self._find(interface)
        if not found:
            return None
        if isinstance(found[0], str):
            return str(found[0])
        return etree.canonicalize(
            etree.tostring(found[0], encoding='unicode', with_tail=False),
            strip_text=True)

    def copy(self, source: etree._Element, target: etree._Element) -> None:
        """Copy the value of *source* to *target*, or remove it there."""
        parent_path, _, step = self.path.rpartition('/')
        parent = target.find(parent_path) if parent_path else target
        if parent is None:
            parent = etree.SubElement(target, parent_path)
        if step.startswith('@'):
            value = self.read(source)
            parent.attrib.pop(step[1:], None)
            if value is not None:
                parent.set(step[1:], value)
        else:
            tag = step.partition('[')[0]
            for element in parent.findall(tag):
                parent.remove(element)
            parent.extend(copy.deepcopy(self._find(source)))
        if parent is not target and not parent.attrib and not len(parent):
            target.remove(parent)


_FEATURE = 'a virtio feature that the guest has negotiated'
_BACK_END = 'the destination\'s network; the guest does not see it'

#: https://libvirt.org/formatdomain.html#network-interfaces
VNIC: tuple[Attribute, ...] = tuple(itertools.starmap(Attribute, (
    ('model/@type', Rule.KEEP, 'the device itself'),
    ('driver/@queues', Rule.KEEP,
     'number of virtqueues and MSI-X vectors: QEMU refuses another one with '
     '"Failed to load virtio-net:virtio"; libvirt compares it from 11.4 on'),
    ('driver/@rx_queue_size', Rule.KEEP, 'size of the receive ring'),
    ('driver/@tx_queue_size', Rule.KEEP, 'size of the transmit ring'),
    ('driver/@packed', Rule.KEEP, _FEATURE),
    ('driver/@iommu', Rule.KEEP, _FEATURE),
    ('driver/@ats', Rule.KEEP, 'a PCI capability of the device'),
    ('driver/@page_per_vq', Rule.KEEP, 'layout of the notification area'),
    ('driver/@event_idx', Rule.KEEP, _FEATURE),
    ('driver/@rss', Rule.KEEP, _FEATURE),
    ('driver/@rss_hash_report', Rule.KEEP, _FEATURE),
    ('driver/host', Rule.KEEP,
     'offloads that the device accepts from the guest'),
    ('driver/guest', Rule.KEEP,
     'offloads that the guest accepts from the device'),
    ('driver/@name', Rule.FOLLOW, 'vhost or not is the host\'s ability'),
    ('driver/@ioeventfd', Rule.FOLLOW, 'how the host is notified'),
    ('driver/@txmode', Rule.FOLLOW, 'how the host transmits'),
    ('mtu/@size', Rule.KEEP,
     'VIRTIO_NET_F_MTU and its value; part of libvirt\'s own ABI check. Nova '
     'may lose it with the network of its information cache (LP 2080531)'),
    ('link', Rule.KEEP, 'link state, as an administrator set it'),
    ('rom', Rule.KEEP, 'the option ROM is a region of the guest\'s memory'),
    ('boot', Rule.KEEP, 'bootindex, as the firmware sees it after a reset'),
    ('acpi', Rule.KEEP, 'acpi-index, from which guests derive the name'),
    ('teaming', Rule.KEEP, _FEATURE),
    ('alias[starts-with(@name, "ua-")]', Rule.KEEP,
     'the QEMU device id, with which a device is removed and events name it'),
    ('address', Rule.FOLLOW, 'Nova itself keeps it'),
    ('mac', Rule.FOLLOW, 'Nova itself keeps it'),
    ('@type', Rule.FOLLOW, _BACK_END),
    ('@managed', Rule.FOLLOW, _BACK_END),
    ('@trustGuestRxFilters', Rule.FOLLOW, _BACK_END),
    ('source', Rule.FOLLOW, _BACK_END),
    ('target', Rule.FOLLOW, _BACK_END),
    ('virtualport', Rule.FOLLOW, _BACK_END),
    ('backend', Rule.FOLLOW, _BACK_END),
    ('backenddomain', Rule.FOLLOW, _BACK_END),
    ('bandwidth', Rule.FOLLOW, _BACK_END),
    ('coalesce', Rule.FOLLOW, _BACK_END),
    ('downscript', Rule.FOLLOW, _BACK_END),
    ('filterref', Rule.FOLLOW, _BACK_END),
    ('guest', Rule.FOLLOW, _BACK_END),
    ('ip', Rule.FOLLOW, _BACK_END),
    ('port', Rule.FOLLOW, _BACK_END),
    ('portForward', Rule.FOLLOW, _BACK_END),
    ('route', Rule.FOLLOW, _BACK_END),
    ('script', Rule.FOLLOW, _BACK_END),
    ('tune', Rule.FOLLOW, _BACK_END),
    ('vlan', Rule.FOLLOW, _BACK_END),
)))

_MAC = etree.XPath('string(mac/@address)')

# Those to keep, by the child of <interface> that they belong to.
_KEPT: dict[str, list[Attribute]] = collections.defaultdict(list)
for _row in VNIC:
    if _row.rule is Rule.KEEP:
        _KEPT[_row.child].append(_row)

#: types of interface whose queues are queues of a tap device of the kernel
TAP_KINDS = frozenset(('bridge', 'direct', 'ethernet', 'network'))


@dataclasses.dataclass(frozen=True)
class Kept:
    """A value that Nova would have changed: for the log and for reports."""

    mac: str
    path: str
    #: value in the running guest, None if it has none
    running: str | None
    #: value that Nova computed for the destination, None for none
    computed: str | None


def keep_vnics(destination_xml: str, running_xml: str) -> tuple[
        str, list[Kept]]:
    """Apply :data:`VNIC` to each interface that both documents have.

    Interfaces match by MAC address. Several interfaces with one address match
    by their order, which Nova does not change. An interface without a
    counterpart does not change.

    :param destination_xml: the domain as Nova computed it
    :param running_xml: ``dumpxml --migratable`` of the running guest
    :returns: the corrected domain, and the values that were kept
    :raises ValueError: one of the documents is not well-formed
    """
    document = parse(destination_xml)
    running = dict(_interfaces(parse(running_xml)))
    kept = []
    for key, computed in _interfaces(document):
        if key not in running:
            continue
        for attribute in _may_differ(running[key], computed):
            change = Kept(key[0], attribute.path,
                          attribute.read(running[key]),
                          attribute.read(computed))
            if change.running != change.computed:
                attribute.copy(running[key], computed)
                kept.append(change)
    if not kept:
        return destination_xml, kept
    return etree.tostring(document, encoding='unicode'), kept


def _may_differ(running: etree._Element,
                computed: etree._Element) -> list[Attribute]:
    """Return the attributes to keep, without those that surely are the same.

    This comparison is cheap, and in most migrations nothing differs.
    """
    ones, others = ({child.tag: child for child in interface}
                    for interface in (running, computed))
    found = []
    for tag, attributes in _KEPT.items():
        one, other = ones.get(tag), others.get(tag)
        if one is None and other is None:
            continue
        mine, theirs = ({} if element is None else dict(element.items())
                        for element in (one, other))
        found += [attribute for attribute in attributes
                  if not attribute.name or
                  mine.get(attribute.name) != theirs.get(attribute.name)]
    return found


def tap_queues(running_xml: str) -> list[tuple[str, int]]:
    """Return MAC address and number of queues of each tap interface.

    :param running_xml: ``dumpxml --migratable`` of the running guest
    :raises ValueError: the document is not well-formed
    """
    return [
        (mac, int(interface.xpath('string(driver/@queues)') or 1))
        for (mac, _), interface in _interfaces(parse(running_xml))
        if interface.get('type') in TAP_KINDS]


def parse(xml: str) -> etree._Element:
    """Parse a domain's XML, without entities and without network access.

    :raises ValueError: the document is not well-formed, or has a DTD
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        document = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f'Not a domain\'s XML: {error}') from error
    if document.getroottree().docinfo.internalDTD is not None:
        # libvirt writes none. It could only define entities.
        raise ValueError('Not a domain\'s XML: it has a document type')
    return document


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
