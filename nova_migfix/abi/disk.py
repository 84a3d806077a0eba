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

"""The guest ABI of a disk: its attributes that must not change for a guest.

Nova takes over the disks of the running guest, except those of volumes. It
replaces the elements of these by those that it would configure for the volume
at present. The back end has to follow: a volume has another path on each host.
"""

from __future__ import annotations

from lxml import etree

from nova_migfix.abi import table

_KEEP, _FOLLOW = table.Rule.KEEP, table.Rule.FOLLOW

_ABI = 'libvirt refuses a migration that changes it'
_IDENTITY = 'identifies the disk for the guest'
_BACK_END = 'how the destination reaches the storage'
_HOST = 'a policy of the host; the guest does not see it'

#: https://libvirt.org/formatdomain.html#hard-drives-floppy-disks-cdroms
DISK = table.Table(
    ('@device', _KEEP, _ABI),
    ('@model', _KEEP, _ABI),
    ('target/@dev', _KEEP, _ABI),
    ('target/@bus', _KEEP, _ABI),
    ('target/@removable', _KEEP, 'the guest has read it'),
    ('target/@rotation_rate', _KEEP, 'the guest has read it'),
    ('driver/@cache', _KEEP,
     'whether the guest has to flush: one that did not see a write cache does '
     'not, and loses data when the host fails'),
    ('driver/@discard', _KEEP, 'whether the guest may discard blocks'),
    ('driver/@detect_zeroes', _KEEP,
     'with discard: what blocks of zeroes become'),
    ('driver/@io', _KEEP, 'libvirt allows native only with some caches'),
    ('driver/@iothread', _KEEP,
     'refers to an I/O thread of the running guest'),
    ('driver/@queues', _KEEP,
     'number of virtqueues and MSI-X vectors: QEMU refuses another one'),
    ('driver/@queue_size', _KEEP, 'size of the rings'),
    *table.VIRTIO,
    ('driver/iothreads', _KEEP,
     'refers to I/O threads of the running guest'),
    ('blockio', _KEEP,
     'block sizes, with which the guest has formatted and aligns its I/O'),
    ('geometry', _KEEP, 'the guest has read it'),
    ('readonly', _KEEP, _ABI),
    ('serial', _KEEP, _IDENTITY),
    ('wwn', _KEEP, _IDENTITY),
    ('vendor', _KEEP, _IDENTITY),
    ('product', _KEEP, _IDENTITY),
    ('boot', _KEEP, 'bootindex, as the firmware sees it after a reset'),
    ('acpi', _KEEP, 'acpi-index'),
    ('alias[starts-with(@name, "ua-")]', _KEEP,
     'the QEMU device id, with which a device is removed and events name it'),
    ('address', _FOLLOW, 'Nova itself keeps it'),
    ('@type', _FOLLOW, _BACK_END),
    ('source', _FOLLOW, _BACK_END),
    ('auth', _FOLLOW, _BACK_END),
    ('encryption', _FOLLOW, _BACK_END),
    ('driver/@type', _FOLLOW,
     'the format of the image, which a snapshot of the volume may change'),
    ('driver/@name', _FOLLOW, _BACK_END),
    ('driver/@copy_on_read', _FOLLOW, _BACK_END),
    ('driver/@discard_no_unmap', _FOLLOW, _BACK_END),
    ('driver/metadata_cache', _FOLLOW, _BACK_END),
    ('backingStore', _FOLLOW, _BACK_END),
    ('backenddomain', _FOLLOW, _BACK_END),
    ('mirror', _FOLLOW, 'a block job of the source'),
    ('driver/@error_policy', _FOLLOW, _HOST),
    ('driver/@rerror_policy', _FOLLOW, _HOST),
    ('driver/@ioeventfd', _FOLLOW, 'how the host is notified'),
    ('driver/statistics', _FOLLOW, _HOST),
    ('iotune', _FOLLOW, 'limits of the storage at present'),
    ('throttlefilters', _FOLLOW, _HOST),
    ('shareable', _FOLLOW, 'whether Cinder attaches the volume elsewhere'),
    ('transient', _FOLLOW, _BACK_END),
    ('target/@tray', _FOLLOW, 'a state of the running guest'),
    ('@snapshot', _FOLLOW, _HOST),
    ('@rawio', _FOLLOW, _HOST),
    ('@sgio', _FOLLOW, _HOST),
)


# of a volume that is connected to another host
_CONNECTION = [attribute for attribute in DISK.attributes if attribute.path in
               ('@type', 'source', 'auth', 'encryption')]


def connect(disk: etree._Element, configured: etree._Element) -> None:
    """Make a disk, changed in place, use the storage of a configured one."""
    for attribute in _CONNECTION:
        attribute.copy(configured, disk)


def keep_disks(document: etree._Element,
               running: etree._Element) -> list[table.Kept]:
    """Apply :data:`DISK` to each disk.

    Disks match by their order, which Nova does not change. If the documents
    have different numbers of disks, nothing changes.

    :param document: the domain as Nova computed it, changed in place
    :param running: the domain of the running guest
    :returns: the values that were kept
    """
    computed, present = (domain.findall('./devices/disk')
                         for domain in (document, running))
    if len(computed) != len(present):
        return []
    return [change for one, other in zip(present, computed)
            for change in DISK.keep(one.find('target').get('dev'), one, other)]
