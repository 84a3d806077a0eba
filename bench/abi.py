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

"""Measure the destination's XML for increasing numbers of vNICs.

Each round lets Nova compute the interfaces, and then the plugin keep those of
the running guest. Both have the same document, and the rounds alternate. The
processor time is measured, which other load of the machine changes little.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import functools
import statistics
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
import os_vif
import prettytable

import bench
from nova_migfix.abi import vnic

CONF = nova.conf.CONF
NUMBERS = (1, 4, 16, 64, 256)

# Requirements: Nova and the plugin against Nova, and the largest growth of the
# plugin's time for four times as many vNICs.
RATIO = 2.0
GROWTH = 5.0

# vNICs to compute in all rounds of a number
_COMPUTED = 4096

_UUID = '00000000-0000-4000-8000-{:012x}'
_RUNNING = '''
<interface type="bridge"><mac address="{mac}"/><source bridge="br-int"/>
  <target dev="{tap}"/><model type="virtio"/>
  <driver name="vhost" queues="{queues}" rx_queue_size="512"/>
  <mtu size="1450"/><alias name="net{number}"/>
  <address type="pci" domain="0x0000" bus="0x00" slot="0x03"/></interface>'''


class Cost(NamedTuple):
    """Seconds of processor time, for all vNICs of a guest."""

    nova: float
    plugin: float

    @property
    def ratio(self) -> float:
        return (self.nova + self.plugin) / self.nova


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    objects.register_all()
    os_vif.initialize()
    CONF([], project='nova', default_config_files=[])
    CONF.set_override('rx_queue_size', 512, 'libvirt')
    problems = []
    table = prettytable.PrettyTable([
        'vNICs', 'change', 'Nova ms', 'plugin ms', 'both / Nova'])
    table.align = 'r'
    for change, queues in (('none', 4), ('queues', 8)):
        found = {number: measure(number, queues) for number in NUMBERS}
        for number, cost in found.items():
            table.add_row([number, change, *(
                f'{value * 1000:.2f}' for value in cost),
                f'{cost.ratio:.2f}'])
            if cost.ratio > RATIO:
                problems.append(f'{number} vNICs, change {change}: '
                                f'{cost.ratio:.2f} times the time of Nova')
        problems += [
            f'{more} vNICs, change {change}, take '
            f'{found[more].plugin / found[less].plugin:.1f} times as long as '
            f'{less}' for less, more in zip(NUMBERS, NUMBERS[1:])
            if found[more].plugin > GROWTH * found[less].plugin]
    print(table)
    return bench.print_problems(problems)


def measure(number: int, queues: int) -> Cost:
    """Return the median cost of several rounds.

    :param number: of vNICs
    :param queues: of each in the running guest; Nova computes 4
    """
    running = (f'<domain><uuid>{_UUID.format(0)}</uuid><devices>' + ''.join(
        _RUNNING.format(mac=_mac(index), tap=_tap(index), queues=queues,
                        number=index)
        for index in range(number)) + '</devices></domain>')
    recompute = functools.partial(
        migration._update_vif_xml, migrate_data=_migrate_data(number),
        get_vif_config=_get_config())
    computed = etree.tostring(recompute(etree.fromstring(running)),
                              encoding='unicode')
    rounds = [(
        _seconds(recompute, etree.fromstring(running)),
        _seconds(vnic.keep_vnics, computed, running))
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


def _migrate_data(number: int) -> Any:
    network = model.Network(id=_UUID.format(1), bridge='br-int', mtu=1450,
                            subnets=[])
    return objects.LibvirtLiveMigrateData(vifs=[
        objects.VIFMigrateData(
            port_id=_UUID.format(index), vnic_type='normal', vif_type='ovs',
            vif_details={'port_filter': True}, profile={}, host='destination',
            supports_os_vif_delegation=False,
            source_vif=model.VIF(
                id=_UUID.format(index), ovs_interfaceid=_UUID.format(index),
                address=_mac(index), devname=_tap(index), type='ovs',
                vnic_type='normal', network=network))
        for index in range(number)])


def _get_config() -> Any:
    return functools.partial(
        vif.LibvirtGenericVIFDriver(mock.Mock()).get_config,
        instance=objects.Instance(display_name='guest'),
        image_meta=objects.ImageMeta(properties=objects.ImageMetaProps(
            hw_vif_multiqueue_enabled=True)),
        flavor=objects.Flavor(vcpus=4, extra_specs={}), virt_type='kvm')


if __name__ == '__main__':
    sys.exit(main())
