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
"""Compute the vNICs that unmodified Nova would give to a migrated guest.

Nova's own code of a live migration computes them. This module supplies its
arguments on a hypervisor. Flavor and image come from the domain's metadata,
which has them completely since Nova 32. For an older domain, multiple queues,
packed rings and the device model are derived from the running guest. Port
bindings and the MTU of networks come from Neutron; without Neutron, they are
derived from the running guest.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

from lxml import etree
import nova.conf
from nova.network import model
from nova import objects
from nova.virt.libvirt import migration
from nova.virt.libvirt import vif
import os_vif

from nova_migfix.abi import domain as domain_xml
from nova_migfix.abi import table
from nova_migfix.abi import vnic as vnic_abi
from nova_migfix.status import hypervisor

CONF = nova.conf.CONF


class Binding(NamedTuple):
    """The binding of a port, as Neutron returns it."""

    vif_type: str
    vnic_type: str
    details: Mapping[str, Any]
    profile: Mapping[str, Any]
    mtu: int | None


# Type of interface: the binding that results in such an interface.
_DELEGATED = {'os_vif_delegation': True}
_KINDS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    'bridge': (model.VIF_TYPE_OVS, model.VNIC_TYPE_NORMAL, {}, {}),
    'ethernet': (model.VIF_TYPE_OVS, model.VNIC_TYPE_NORMAL, {}, _DELEGATED),
    'vhostuser': (
        model.VIF_TYPE_VHOSTUSER, model.VNIC_TYPE_NORMAL,
        {model.VIF_DETAILS_VHOSTUSER_MODE: 'server',
         model.VIF_DETAILS_VHOSTUSER_SOCKET: '/run/vhost-user'}, {}),
    'direct': (model.VIF_TYPE_MACVTAP, model.VNIC_TYPE_NORMAL,
               {model.VIF_DETAILS_MACVTAP_SOURCE: 'eth0',
                model.VIF_DETAILS_MACVTAP_MODE: 'bridge',
                model.VIF_DETAILS_PHYS_INTERFACE: 'eth0'}, {}),
    'hostdev': (model.VIF_TYPE_HW_VEB, model.VNIC_TYPE_DIRECT,
                {model.VIF_DETAILS_VLAN: '0'}, {'pci_slot': '0000:00:00.0'}),
}


def initialize() -> None:
    """Register the objects that Nova's code needs."""
    os_vif.objects.register_all()
    objects.register_all()


def changed_vnics(
    domain: hypervisor.Domain, ports: Mapping[str, Binding],
) -> list[table.Kept]:
    """Return the changes that unmodified Nova would make to a guest's vNICs.

    :param ports: by MAC address in lower case; the binding of a missing one
        is derived from the interface
    :raises Exception: any exception of Nova's code
    """
    get_config = functools.partial(
        vif.LibvirtGenericVIFDriver(None).get_config,
        instance=objects.Instance(uuid=domain.uuid, display_name=domain.name),
        image_meta=_image(domain), flavor=_flavor(domain),
        virt_type=CONF.libvirt.virt_type)
    document = domain_xml.parse(domain.xml)
    data = objects.LibvirtLiveMigrateData(vifs=[
        _bound(interface, ports)
        for interface in document.iterfind('./devices/interface')])
    computed = migration._update_vif_xml(document, data, get_config)
    return [change for change in vnic_abi.keep_vnics(
                computed, domain_xml.parse(domain.xml))
            if (change.path, change.running, change.computed) not in _SAME]


# libvirt omits a default value.
_SAME = frozenset([('driver/@queues', None, '1')])


def _bound(interface: etree._Element,
           ports: Mapping[str, Binding]) -> objects.VIFMigrateData:
    """Return the migration data of a port for Nova's code."""
    mac = str(interface.xpath('string(mac/@address)')).lower()
    binding = ports.get(mac) or _binding(interface)
    port = f'00000000-0000-4000-8000-{mac.replace(":", "")}'
    return objects.VIFMigrateData(
        port_id=port, vif_type=binding.vif_type, vnic_type=binding.vnic_type,
        vif_details=binding.details, profile=binding.profile, host=CONF.host,
        source_vif=model.VIF(
            id=port, ovs_interfaceid=port, address=mac,
            devname=str(interface.xpath('string(target/@dev)')),
            network=model.Network(
                id=port, bridge='br-int', mtu=binding.mtu, subnets=[])))


def _binding(interface: etree._Element) -> Binding:
    kind = interface.get('type') or ''
    if kind not in _KINDS:
        raise ValueError(f'only Neutron has the binding of an interface of '
                         f'type {kind}')
    mtu = str(interface.xpath('string(mtu/@size)'))
    return Binding(*_KINDS[kind], mtu=int(mtu) if mtu else None)


def is_approximated(domain: hypervisor.Domain) -> bool:
    """Return whether the metadata lack the flavor's and image's properties."""
    return not domain.metadata('flavor/extraSpecs')


def _flavor(domain: hypervisor.Domain) -> objects.Flavor:
    vcpus = domain.metadata('flavor/vcpus')
    return objects.Flavor(
        vcpus=int(vcpus[0].text if vcpus
                  else domain.document.findtext('./vcpu')),
        extra_specs={spec.get('name'): spec.text or ''
                     for spec in domain.metadata(
                         'flavor/extraSpecs/extraSpec')})


def _image(domain: hypervisor.Domain) -> objects.ImageMeta:
    properties = dict(
        _guessed(domain) if is_approximated(domain) else (
            (element.get('name'), element.text)
            for element in domain.metadata('image/properties/property')))
    return objects.ImageMeta.from_dict({'properties': properties})


def _guessed(domain: hypervisor.Domain) -> Iterator[tuple[str, str]]:
    """Yield the image properties that result in such vNICs."""
    for interface in domain.document.iterfind('./devices/interface'):
        yield 'hw_vif_model', str(interface.xpath('string(model/@type)'))
        driver = interface.find('driver')
        if driver is None:
            continue
        # Nova sets name='vhost' only with several queues or a ring size.
        if driver.get('queues') or (
                driver.get('name') == 'vhost'
                and not driver.get('rx_queue_size')):
            yield 'hw_vif_multiqueue_enabled', 'true'
        if driver.get('packed') == 'on':
            yield 'hw_virtio_packed_ring', 'true'
