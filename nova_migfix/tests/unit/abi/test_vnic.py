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

"""The fix keeps vNICs, in XML that libvirt 9 wrote and Nova recomputed.

``xml/<case>-source.xml`` is ``virsh dumpxml --migratable`` of a real domain.
``<case>-stock.xml`` is the XML that Nova computes from it for the destination
under the conditions of :data:`CASES`. ``<case>-kept.xml`` is the XML that the
fix computes from both, and that a patched Nova computes from the first.
"""

import functools
import pathlib
import unittest
from unittest import mock

import ddt
from lxml import etree
from nova.network import model as network_model
from nova import objects
from nova.tests import fixtures as nova_fixtures
from nova.virt.libvirt import migration
from nova.virt.libvirt import vif
import os_vif
from oslo_config import cfg
from oslo_config import fixture as config_fixture
import testtools

from nova_migfix.abi import domain
from nova_migfix.abi import table
from nova_migfix.abi import vnic as vnic_abi
from nova_migfix.fixes import vnic as fix
from nova_migfix import nova_release

XML = pathlib.Path(__file__).parent / 'xml'

MULTIQUEUE = {'hw_vif_multiqueue_enabled': True}
PACKED = {'hw_virtio_packed_ring': True}

#: [libvirt] options, image properties and network MTU when Nova recomputes
CASES = {
    'queues-grow': ({'max_queues': 4}, MULTIQUEUE, 1442),
    'queues-shrink': (
        {'max_queues': 2, 'rx_queue_size': 1024}, MULTIQUEUE, 1450),
    'single-queue': ({'max_queues': 4}, MULTIQUEUE, None),
    'mtu-and-model': ({}, {}, 1500),
    'features': ({'rx_queue_size': 512}, {}, 1500),
    'many-nics': ({'max_queues': 3}, {**MULTIQUEUE, **PACKED}, 1442),
    'duplicate-macs': ({'max_queues': 4}, MULTIQUEUE, None),
    'delegated': ({'max_queues': 4}, MULTIQUEUE, 1442),
    'upper-case-mac': ({'max_queues': 4}, MULTIQUEUE, None),
    'vhost-user': ({'max_queues': 4}, MULTIQUEUE, None),
    'macvtap': ({'max_queues': 4}, MULTIQUEUE, None),
    'sriov': ({'max_queues': 4}, MULTIQUEUE, None),
}

#: kind of interface: how Neutron would bind the port on the destination
BINDINGS = {
    'bridge': (network_model.VIF_TYPE_OVS,
               network_model.VNIC_TYPE_NORMAL, {}, {}),
    'vhostuser': (network_model.VIF_TYPE_VHOSTUSER,
                  network_model.VNIC_TYPE_NORMAL,
                  {'vhostuser_mode': 'server',
                   'vhostuser_socket': '/run/libvirt/vhu-dest'}, {}),
    'direct': (network_model.VIF_TYPE_HW_VEB,
               network_model.VNIC_TYPE_MACVTAP,
               {'vlan': '7'}, {'pci_slot': '0000:04:10.2'}),
    'hostdev': (network_model.VIF_TYPE_HW_VEB,
                network_model.VNIC_TYPE_DIRECT,
                {'vlan': '7'}, {'pci_slot': '0000:04:10.1'}),
}


def golden(case, kind):
    return (XML / f'{case}-{kind}.xml').read_text()


def canonical(xml):
    return etree.canonicalize(xml, strip_text=True)


class RecomputedByNova(testtools.TestCase):
    """The golden files match Nova; otherwise they prove nothing."""

    def setUp(self):
        super().setUp()
        os_vif.initialize()
        objects.register_all()
        self.useFixture(nova_fixtures.LibvirtFixture())
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))
        self.config.config(virt_type='kvm', group='libvirt')

    def recompute(self, case):
        options, properties, mtu = CASES[case]
        self.config.config(group='libvirt', **options)
        document = etree.fromstring(golden(case, 'source'))
        data = objects.LibvirtLiveMigrateData(vifs=[
            self.bound_on_destination(case, number, interface, mtu)
            for number, interface in enumerate(
                document.findall('./devices/interface'))])
        get_config = functools.partial(
            vif.LibvirtGenericVIFDriver(mock.Mock()).get_config,
            instance=objects.Instance(display_name='guest'),
            image_meta=objects.ImageMeta(
                properties=objects.ImageMetaProps(**properties)),
            flavor=objects.Flavor(vcpus=4, extra_specs={}),
            virt_type='kvm')
        return etree.tostring(
            migration._update_vif_xml(document, data, get_config),
            encoding='unicode')

    def bound_on_destination(self, case, number, interface, mtu):
        vif_type, vnic_type, details, profile = BINDINGS[
            interface.get('type')]
        port = f'00000000-0000-4000-8000-{number:012x}'
        source = network_model.VIF(
            id=port, ovs_interfaceid=port,
            address=interface.find('mac').get('address'),
            devname=f'tap{number:08x}-00', type=vif_type, vnic_type=vnic_type,
            network=network_model.Network(
                id='00000000-0000-4000-8000-0000000000ff',
                bridge='br-int', mtu=mtu, subnets=[]))
        bound = objects.VIFMigrateData(
            port_id=port, vnic_type=vnic_type, vif_type=vif_type,
            vif_details=details, profile=profile, host='dest',
            source_vif=source)
        # os-vif adds the port to Open vSwitch, not libvirt
        bound.supports_os_vif_delegation = case == 'delegated'
        return bound


PATCHED = nova_release.has(fix.Vnic.fixed_upstream_marker)


@ddt.ddt
class TestStockXML(RecomputedByNova):

    @ddt.data(*CASES)
    @unittest.skipIf(PATCHED, 'this Nova has the fix')
    def test_stock_xml_matches_unmodified_nova(self, case):
        self.assertEqual(canonical(golden(case, 'stock')),
                         canonical(self.recompute(case)))


@ddt.ddt
class TestPatchedNova(RecomputedByNova):

    @ddt.data(*CASES)
    @unittest.skipUnless(PATCHED, 'this Nova does not have the fix')
    def test_kept_xml_matches_a_patched_nova(self, case):
        self.assertEqual(canonical(golden(case, 'kept')),
                         canonical(self.recompute(case)))

    @unittest.skipUnless(PATCHED, 'this Nova does not have the fix')
    def test_patched_nova_keeps_the_same_attributes(self):
        self.assertEqual(
            [attribute.path for attribute in vnic_abi.VNIC.attributes
             if attribute.rule is table.Rule.KEEP],
            list(migration.VNIC_GUEST_ABI))


def keep(stock, source):
    """Return the corrected domain, and the values that were kept."""
    document = domain.parse(stock)
    kept = vnic_abi.keep_vnics(document, domain.parse(source))
    return etree.tostring(document, encoding='unicode'), kept


@ddt.ddt
class TestKeepVnics(testtools.TestCase):

    @ddt.data(*CASES)
    def test_running_vnics_are_kept(self, case):
        document, _ = keep(golden(case, 'stock'), golden(case, 'source'))
        self.assertEqual(canonical(golden(case, 'kept')), canonical(document))

    @ddt.data(*CASES)
    def test_second_pass_keeps_no_more_attributes(self, case):
        document, kept = keep(golden(case, 'kept'), golden(case, 'source'))
        self.assertEqual([], kept)
        self.assertEqual(canonical(golden(case, 'kept')), canonical(document))

    def test_kept_attributes_are_returned(self):
        _, kept = keep(
            golden('queues-grow', 'stock'), golden('queues-grow', 'source'))
        self.assertEqual([table.Kept(
            'fa:16:3e:00:00:01', 'driver/@queues', '2', '4')], kept)

    def test_interface_without_counterpart_stays_as_nova_computed(self):
        source = golden('queues-grow', 'source').replace(
            'fa:16:3e:00:00:01', 'fa:16:3e:ff:ff:ff')
        stock = golden('queues-grow', 'stock')
        document, kept = keep(stock, source)
        self.assertEqual([], kept)
        self.assertEqual(canonical(stock), canonical(document))


def tap_queues(case):
    return vnic_abi.tap_queues(domain.parse(golden(case, 'source')))


class TestTapQueues(testtools.TestCase):

    def test_queues_of_each_tap_interface_are_counted(self):
        self.assertEqual(
            [('fa:16:3e:00:00:01', 2), ('fa:16:3e:00:00:01', 3)],
            tap_queues('duplicate-macs'))

    def test_interface_without_queues_attribute_has_one_queue(self):
        self.assertEqual(
            [('fa:16:3e:00:00:01', 1)],
            tap_queues('single-queue'))

    def test_other_interface_types_have_no_tap(self):
        self.assertEqual([], tap_queues('vhost-user'))
        self.assertEqual(
            [('fa:16:3e:00:00:02', 2)], tap_queues('sriov'))
