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

"""Measure the destination's XML for increasing numbers of vNICs and volumes.

Each round lets Nova compute the devices, and then the plugin keep those of the
running guest. Both have the same document, and the rounds alternate. The
processor time is measured, which other load of the machine changes little.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import functools
import statistics
import string
import sys
import time
from typing import Any
from typing import NamedTuple
from unittest import mock

from lxml import etree
import nova.conf
from nova.network import model
from nova import objects
from nova.virt.libvirt import migration
from nova.virt.libvirt import vif
from nova.virt.libvirt.volume import volume as libvirt_volume
import os_vif
import prettytable

import bench
from nova_migfix.abi import disk
from nova_migfix.abi import domain
from nova_migfix.abi import vnic

CONF = nova.conf.CONF
NUMBERS = (1, 4, 16, 64, 256)

# Requirements: Nova and the plugin against Nova, and the largest growth of the
# plugin's time for four times as many devices.
RATIO = 2.0
GROWTH = 5.0

# devices to compute in all rounds of a number
_COMPUTED = 4096

_UUID = '00000000-0000-4000-8000-{:012x}'
_INTERFACE = '''
<interface type="bridge"><mac address="{mac}"/><source bridge="br-int"/>
  <target dev="{tap}"/><model type="virtio"/>
  <driver name="vhost" queues="{value}" rx_queue_size="512"/>
  <mtu size="1450"/><alias name="net{number}"/>
  <address type="pci" domain="0x0000" bus="0x00" slot="0x03"/></interface>'''
_DISK = '''
<disk type="block" device="disk">
  <driver name="qemu" type="raw" cache="{value}"/>
  <source dev="/dev/source-{number}"/><target dev="{disk}" bus="virtio"/>
  <serial>{uuid}</serial><alias name="ua-{uuid}"/>
  <address type="pci" domain="0x0000" bus="0x00" slot="0x03"/></disk>'''


class Cost(NamedTuple):
    """Seconds of processor time, for all devices of a guest."""

    nova: float
    plugin: float

    @property
    def ratio(self) -> float:
        return (self.nova + self.plugin) / self.nova


class Device(NamedTuple):
    """A kind of device.

    :param xml: of a running device
    :param recompute: returns Nova's function, for a number of devices
    :param keep: the plugin's function
    :param same: the value that Nova computes, too
    :param other: another one
    """

    xml: str
    recompute: Callable[[int], Callable[[Any], Any]]
    keep: Callable[[str, str], Any]
    same: str
    other: str


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    objects.register_all()
    os_vif.initialize()
    CONF([], project='nova', default_config_files=[])
    CONF.set_override('rx_queue_size', 512, 'libvirt')
    problems = []
    table = prettytable.PrettyTable([
        'device', 'number', 'changed', 'Nova ms', 'plugin ms', 'both / Nova'])
    table.align = 'r'
    for name, device in DEVICES.items():
        for changed, value in (('no', device.same), ('yes', device.other)):
            found = {number: measure(device, number, value)
                     for number in NUMBERS}
            for number, cost in found.items():
                table.add_row([name, number, changed, *(
                    f'{seconds * 1000:.2f}' for seconds in cost),
                    f'{cost.ratio:.2f}'])
                if cost.ratio > RATIO:
                    problems.append(
                        f'{name}, {number}, changed: {changed}: '
                        f'{cost.ratio:.2f} times the time of Nova')
            problems += [
                f'{name}, {more}, changed: {changed}: '
                f'{found[more].plugin / found[less].plugin:.1f} times as long '
                f'as {less}' for less, more in zip(NUMBERS, NUMBERS[1:])
                if found[more].plugin > GROWTH * found[less].plugin]
    print(table)
    return bench.print_problems(problems)


def measure(device: Device, number: int, value: str) -> Cost:
    """Return the median cost of several rounds.

    :param number: of devices
    :param value: of the running devices
    """
    running = (f'<domain><uuid>{_UUID.format(0)}</uuid><devices>' + ''.join(
        device.xml.format(
            mac=_mac(index), tap=_tap(index), disk=_disk(index),
            uuid=_UUID.format(index), number=index, value=value)
        for index in range(number)) + '</devices></domain>')
    recompute = device.recompute(number)
    computed = etree.tostring(recompute(etree.fromstring(running)),
                              encoding='unicode')
    rounds = [(
        _seconds(recompute, etree.fromstring(running)),
        _seconds(device.keep, computed, running))
        for _round in range(max(5, _COMPUTED // number))]
    return Cost(*map(statistics.median, zip(*rounds)))


def _seconds(action: Callable[..., object], *arguments: object) -> float:
    begin = time.process_time()
    action(*arguments)
    return time.process_time() - begin


def _mac(number: int) -> str:
    return f'fa:16:3e:00:{number >> 8:02x}:{number & 255:02x}'


def _tap(number: int) -> str:
    return f'tap{number:08x}-00'


def _disk(number: int) -> str:
    letters = string.ascii_lowercase
    return f'vd{letters[number // 26]}{letters[number % 26]}'


def _recompute_vnics(number: int) -> Callable[[Any], Any]:
    network = model.Network(id=_UUID.format(1), bridge='br-int', mtu=1450,
                            subnets=[])
    data = objects.LibvirtLiveMigrateData(vifs=[
        objects.VIFMigrateData(
            port_id=_UUID.format(index), vnic_type='normal', vif_type='ovs',
            vif_details={'port_filter': True}, profile={}, host='destination',
            supports_os_vif_delegation=False,
            source_vif=model.VIF(
                id=_UUID.format(index), ovs_interfaceid=_UUID.format(index),
                address=_mac(index), devname=_tap(index), type='ovs',
                vnic_type='normal', network=network))
        for index in range(number)])
    get_config = functools.partial(
        vif.LibvirtGenericVIFDriver(mock.Mock()).get_config,
        instance=objects.Instance(display_name='guest'),
        image_meta=objects.ImageMeta(properties=objects.ImageMetaProps(
            hw_vif_multiqueue_enabled=True)),
        flavor=objects.Flavor(vcpus=4, extra_specs={}), virt_type='kvm')
    return functools.partial(migration._update_vif_xml, migrate_data=data,
                             get_vif_config=get_config)


def _recompute_volumes(number: int) -> Callable[[Any], Any]:
    volumes = [objects.LibvirtLiveMigrateBDMInfo(
        serial=_UUID.format(index), bus='virtio', dev=_disk(index),
        type='disk', format=None, boot_index=None) for index in range(number)]
    for index, connected in enumerate(volumes):
        connected.connection_info = {
            'driver_volume_type': 'local', 'serial': connected.serial,
            'data': {'device_path': f'/dev/destination-{index}'}}
    host = mock.Mock()
    host.find_secret.return_value = None
    return functools.partial(
        migration._update_volume_xml,
        migrate_data=objects.LibvirtLiveMigrateData(bdms=volumes),
        instance=None,
        get_volume_config=libvirt_volume.LibvirtVolumeDriver(host).get_config)


def _update(keep: Callable[..., Any]) -> Callable[[str, str], str]:
    """Return a function that does what the driver does with one table."""
    return lambda computed, running: domain.updated(
        computed, keep, domain.parse(running))


DEVICES = {
    'vNIC': Device(_INTERFACE, _recompute_vnics, _update(vnic.keep_vnics),
                   '4', '8'),
    'volume': Device(_DISK, _recompute_volumes, _update(disk.keep_disks),
                     'none', 'writethrough'),
}


if __name__ == '__main__':
    sys.exit(main())
