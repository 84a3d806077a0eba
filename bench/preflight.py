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
"""Measure ``preflight`` for increasing numbers of guests.

The guests are those of libvirt's test driver; one in four has ephemeral disks.
Each number of guests is measured several times, and so is a call of qemu-img
for the backing file of each disk, for comparison. The requirements are about
processor time, which other load of the machine does not change; the table has
the elapsed time as well.

The measurement covers libvirt, guests, disks and Nova's computations, as do
the seconds that ``preflight`` itself reports. It excludes the start of Python
and the import of Nova's modules, which is printed as "import", and Neutron,
Glance and a destination, which this benchmark does not use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from lxml import etree
import nova.conf
from oslo_log import log as logging
import prettytable

import bench
from nova_migfix import conf
from nova_migfix.tests.unit.status import base

CONF = nova.conf.CONF
GUESTS = (50, 100, 200)
ROUNDS = 3

# Requirement: the largest growth of processor time for twice as many guests.
GROWTH = 2.6


def make(place: pathlib.Path, number: int) -> pathlib.Path:
    """Make a hypervisor with *number* guests of four kinds."""
    text = (base.DATA / 'hypervisor.xml').read_text().replace(
        '@INSTANCES@', str(place))
    kinds = etree.fromstring(text).findall('domain')[:4]
    node = etree.Element('node')
    for index in range(number):
        own = etree.tostring(kinds[index % 4], encoding='unicode').replace(
            base.uuid(index % 4 + 1), base.uuid(index + 16))
        guest = etree.fromstring(own)
        guest.find('name').text = f'instance-{index:08x}'
        for mac in guest.iter('mac'):
            mac.set('address', f'fa:16:3e:00:{index >> 8:02x}:'
                               f'{index & 255:02x}')
        node.append(guest)
        make_disks(place, guest)
    path = place / 'hypervisor.xml'
    path.write_bytes(etree.tostring(node))
    return path


def make_disks(place: pathlib.Path, guest: etree._Element) -> None:
    for source in guest.iterfind('devices/disk/source'):
        path = pathlib.Path(source.get('file'))
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, 'wb') as file:
            file.truncate(1 << 19)
    for source in guest.iterfind('devices/disk/backingStore/source'):
        base_file = pathlib.Path(source.get('file'))
        base_file.parent.mkdir(exist_ok=True)
        if not base_file.exists():
            with open(base_file, 'wb') as file:
                file.truncate(1 << 30)
            if 'ephemeral' in base_file.name:
                subprocess.run(['/sbin/mkfs.ext4', '-q', base_file],
                               check=True)


class Seconds(NamedTuple):
    processor: float        # children included
    clock: float


def seconds(action: Callable[..., object], *arguments: object) -> Seconds:
    before = os.times()
    action(*arguments)
    after = os.times()
    return Seconds(sum(after[:4]) - sum(before[:4]),
                   after.elapsed - before.elapsed)


def ask_qemu_img(place: pathlib.Path) -> None:
    """Run qemu-img for each disk."""
    for path in place.glob('*/disk*'):
        subprocess.run(['qemu-img', 'info', '--force-share', path],
                       check=True, stdout=subprocess.DEVNULL)


def measure(number: int,
            report: Callable[..., object]) -> list[tuple[Seconds, Seconds]]:
    """Return the Seconds of each round, by preflight and by qemu-img."""
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        make(place, number)
        CONF.set_override('instances_path', str(place))
        CONF.set_override('connection_uri',
                          f'test://{place}/hypervisor.xml', 'libvirt')
        return [(seconds(report, [], None), seconds(ask_qemu_img, place))
                for _round in range(ROUNDS)]


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    logging.register_options(CONF)
    conf.register_opts(CONF)
    CONF([], project='nova', default_config_files=[])
    CONF.set_override('compute_driver', 'migfix.LibvirtDriver')
    CONF.set_override('max_queues', 4, 'libvirt')
    begin = time.monotonic()
    from nova_migfix.status import preflight
    print(f'import: {time.monotonic() - begin:.2f} s')
    found = {number: measure(number, preflight.report) for number in GUESTS}
    table = prettytable.PrettyTable([
        'guests', *(f'{way}, {what} s' for way in ('preflight', 'qemu-img')
                    for what in ('processor', 'clock'))])
    table.align = 'r'
    best = {}
    for number, rounds in found.items():
        mine, other = (Seconds(*map(min, zip(*way))) for way in zip(*rounds))
        best[number] = mine.processor
        table.add_row([number, *(
            f'{value:.2f}' for value in (*mine, *other))])
    print(table)
    print(f'{GUESTS[-1]} guests take {best[GUESTS[-1]]:.2f} s of processor '
          'time (calm machine: less than 2 s)')
    return bench.print_problems(
        f'{more} guests take {best[more] / best[less]:.1f} times as long as '
        f'{less}' for less, more in zip(GUESTS, GUESTS[1:])
        if best[more] > GROWTH * best[less])


if __name__ == '__main__':
    sys.exit(main())
