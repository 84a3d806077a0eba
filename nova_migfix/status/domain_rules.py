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
"""Properties of a guest's XML with which a migration may fail.

Whether a migration fails depends on the destination or on the guest, so that a
finding says "not known" if no fix of the plugin prevents the failure.
:data:`RULES` has the data, and ``status/guests`` of the documentation the
sources.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import ipaddress
import pathlib
import re
import socket
from typing import NamedTuple

from lxml import etree
import nova.conf

from nova_migfix.fixes import base
from nova_migfix.fixes import rbd_monitors
from nova_migfix.status import hypervisor

CONF = nova.conf.CONF

#: page of the documentation
PAGE = 'status/guests'
#: highest CPU weight in cgroup v2; see cpu.weight in the kernel's cgroup-v2
MAX_WEIGHT = 10000
# CPU shares that Nova gave to each vCPU until 26 (Zed); later it removes them.
_SHARES = 1024
# Extra specs that give a guest devices of the host.
_DEVICE_SPECS = frozenset(('pci_passthrough:alias', 'accel:device_profile'))

_CEPH_CONF = '/etc/ceph/ceph.conf'


class Known(NamedTuple):
    """Facts of this host.

    :param machines: architecture and name of deprecated machine types
    :param monitors: addresses in ceph.conf; empty: not known
    """

    machines: frozenset[tuple[str, str]] = frozenset()
    monitors: frozenset[str] = frozenset()


#: device, value in the running guest, reason for this guest or None
Row = tuple[str, 'str | None', 'str | None']


class Rule(NamedTuple):
    """A kind of finding."""

    kind: str
    #: why a migration may fail
    reason: str
    remedy: str
    find: Callable[[hypervisor.Domain, Known], Iterator[Row]]
    #: the fix of the source that prevents the failure
    fix: type[base.Fix] | None = None


def _reenlightenment(domain: hypervisor.Domain, known: Known) -> Iterator[Row]:
    """QEMU: hyperv_reenlightenment_post_load in target/i386/machine.c."""
    feature = './features/hyperv/reenlightenment[@state="on"]'
    frequency = './clock/timer[@name="tsc"][@frequency]'
    if domain.document.xpath(feature) and not domain.document.xpath(frequency):
        yield 'hyperv', 'reenlightenment', 'refused if the guest enabled it'


def _hostdev(domain: hypervisor.Domain, known: Known) -> Iterator[Row]:
    """Nova: _check_can_migrate_pci in conductor/tasks/live_migrate.py.

    Nova detaches and attaches the devices of ports, which are mostly elements
    ``interface``.
    """
    specs = _extra_specs(domain)
    if specs is not None and not _DEVICE_SPECS & set(specs):
        return
    then = ('refused by Nova, unless the device is of a port'
            if specs is None else 'refused by Nova, unless live_migratable')
    for device in domain.document.iterfind(
            './devices/hostdev[@type="pci"]/source/address'):
        yield _pci_address(device), 'PCI device', then


def _pci_address(element: etree._Element) -> str:
    domain, bus, slot, function = (
        element.get(name, '').removeprefix('0x')
        for name in ('domain', 'bus', 'slot', 'function'))
    return f'{domain}:{bus}:{slot}.{function}'


def _mdev(domain: hypervisor.Domain, known: Known) -> Iterator[Row]:
    """Nova: _assert_source_can_live_migrate_mdevs in virt/libvirt/driver.py.

    QEMU refuses a driver without VFIO migration.
    """
    for device in domain.document.iterfind(
            './devices/hostdev[@type="mdev"]/source/address'):
        yield (device.get('uuid', ''), 'mediated device',
               'refused by QEMU, unless its driver can migrate')


def _cpu_shares(domain: hypervisor.Domain, known: Known) -> Iterator[Row]:
    """libvirt: virCgroupV2SetCpuShares in src/util/vircgroupv2.c.

    Nova removes shares that no flavor has: _update_quota_xml in
    virt/libvirt/migration.py.
    """
    shares = int(domain.document.findtext('./cputune/shares') or 0)
    specs = _extra_specs(domain)
    is_removed = ('quota:cpu_shares' not in specs if specs is not None
                  else shares == _SHARES * _vcpus(domain))
    if shares > MAX_WEIGHT and not is_removed:
        yield ('cputune/shares', str(shares),
               f'refused with cgroup v2: more than {MAX_WEIGHT}')


def _machine(domain: hypervisor.Domain, known: Known) -> Iterator[Row]:
    """QEMU: docs/about/deprecated.rst, reported in libvirt's capabilities."""
    for element in domain.document.iterfind('./os/type'):
        machine = element.get('machine', '')
        if (element.get('arch', ''), machine) in known.machines:
            yield 'machine', machine, 'refused by a QEMU that has dropped it'


def _monitors(domain: hypervisor.Domain, known: Known) -> Iterator[Row]:
    """Nova: _update_rbd_xml in virt/libvirt/migration.py, if it has that.

    Cinder supplies the monitors of volumes, which have a serial.
    """
    if not known.monitors or rbd_monitors.RbdMonitors.not_needed():
        return
    for source in domain.document.xpath(rbd_monitors.SOURCES):
        hosts = source.xpath('host/@name')
        if hosts and known.monitors.isdisjoint(hosts):
            yield (str(source.xpath('string(../target/@dev)')),
                   ','.join(hosts),
                   'kept; ceph.conf has ' + ','.join(sorted(known.monitors)))


RULES: tuple[Rule, ...] = (
    Rule('reenlightenment',
         'QEMU needs a TSC frequency for re-enlightenment (LP 2046549)',
         'If the migration fails, hard-reboot the instance: Nova does not set '
         'this feature any more.', _reenlightenment),
    Rule('hostdev', 'PCI devices need live_migratable in their alias',
         'Use cold migration; or, from Nova 31 (2025.1) on, set '
         'live_migratable in [pci] alias for new instances.', _hostdev),
    Rule('mdev', 'mediated devices need VFIO migration',
         'Use cold migration, unless both hosts have QEMU 8.1, libvirt 8.6 '
         'and a driver that can migrate.', _mdev),
    Rule('cpu-shares', 'cgroup v2 has no CPU weight above 10000',
         'Migrate to a host with cgroup v1, or resize to a flavor with '
         'quota:cpu_shares up to 10000.', _cpu_shares),
    Rule('machine-type', 'QEMU is going to drop the machine type',
         'Migrate to hosts whose QEMU has it. Later shut the instance off and '
         'run "nova-manage libvirt update_machine_type".', _machine),
    Rule('rbd-monitors', 'Nova keeps the monitors of local RBD disks',
         'Hard-reboot the instance, which then gets the current monitors.',
         _monitors, rbd_monitors.RbdMonitors),
)


def _extra_specs(domain: hypervisor.Domain) -> list[str] | None:
    """Return the names of the flavor's extra specs.

    :returns: None: not known, as a Nova before 32 started the guest
    """
    if not domain.metadata('flavor/extraSpecs'):
        return None
    return [spec.get('name', '')
            for spec in domain.metadata('flavor/extraSpecs/extraSpec')]


def _vcpus(domain: hypervisor.Domain) -> int:
    found = domain.metadata('flavor/vcpus')
    return int(found[0].text if found else
               domain.document.findtext('./vcpu') or 0)


# -- monitors ----------------------------------------------------------------

def has_local_rbd(domain: hypervisor.Domain) -> bool:
    """Return whether a guest has an RBD disk that is not a volume."""
    return bool(domain.document.xpath(rbd_monitors.SOURCES))


def monitors() -> frozenset[str]:
    """Return the addresses of the monitors in ceph.conf.

    :returns: empty if it names none
    :raises OSError: it cannot be read, or a name cannot be resolved
    """
    path = pathlib.Path(CONF.libvirt.images_rbd_ceph_conf or _CEPH_CONF)
    found: set[str] = set()
    for name in parse_monitors(path.read_text(errors='replace')):
        found.update(str(info[4][0]) for info in socket.getaddrinfo(
            name, None, type=socket.SOCK_STREAM))
        found.add(name)
    return frozenset(found)


def parse_monitors(text: str) -> list[str]:
    """Return the hosts in ``mon_host`` of a ceph.conf.

    See "Monitor address formats" in Ceph's messenger v2: names or addresses,
    with a port or not, as ``[v2:192.0.2.1:3300,v1:192.0.2.1:6789]``.
    """
    match = re.search(
        r'^[ \t]*mon[ _-]host[ \t]*=([^#\n]*)', text, re.MULTILINE)
    return list(filter(None, map(
        _monitor, re.split(r'[,;\s]+', match[1] if match else ''))))


def _monitor(entry: str) -> str:
    entry = re.sub(r'^\[?v[12]:', '', entry).partition('/')[0]
    if match := re.match(r'\[([0-9A-Fa-f:.]+)\]', entry):
        return match[1]
    entry = entry.strip('[]')
    try:
        return str(ipaddress.ip_address(entry))
    except ValueError:
        return entry.partition(':')[0]
