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
"""Faults that libvirt reports."""

from __future__ import annotations

from nova_migfix.status.faults.base import ALL
from nova_migfix.status.faults.base import Fault
from nova_migfix.status.faults.base import LIBVIRT
from nova_migfix.status.faults.base import ON_SOURCE

CONNECTION = (
    Fault(
        'name-lookup',
        (r'Unable to resolve address \'(?P<thing>[^\']*)\' service \'\d+\'',),
        LIBVIRT, 'start',
        'libvirt of the source cannot resolve the name {thing}.',
        'Make the name known on the source, or set [libvirt] '
        'live_migration_inbound_addr of the destination to an address.',
        ALL, 'faults/connection'),
    Fault(
        'libvirt-ssh',
        (r'(?:Cannot recv data|End of file while reading data): .{0,999}?(?:'
         r'Host key verification failed|Permission denied'
         r'|account is currently not available|ssh: )',),
        LIBVIRT, 'start',
        'libvirt of the source uses ssh (qemu+ssh), and could not log in on '
        'the destination.',
        'As root of the source, log in by ssh on the host of the message '
        'with BatchMode: known_hosts, key and shell of the user in '
        'live_migration_uri have to be right. libvirt connects as its own '
        'user, not as nova-compute\'s.',
        ALL, 'faults/login'),
    Fault(
        'sasl',
        (r'Failed to (?:start|step) SASL negotiation'
         r'|SASL mechanism \S+ not supported by server'
         r'|no SASL mechanisms are available',),
        LIBVIRT, 'start',
        'libvirt of the source could not authenticate by SASL at the '
        'destination.',
        'Compare auth.conf of the source with the SASL users of the '
        'destination ("sasldblistusers2"), and the mechanisms of both.',
        ALL, 'faults/connection'),
    Fault(
        'destination-unreachable',
        (r'(?:unable to connect to server at|Failed to connect to)'
         r' \'(?P<thing>[^\'/]*:\d+)\': ',),
        LIBVIRT, 'start',
        'The source cannot connect to {thing}: ports 16509 and 16514 are '
        'libvirt\'s, 49152 to 49215 are QEMU\'s.',
        'Check that the destination is up, that its libvirt listens there, '
        'and that no firewall blocks the port.',
        ALL, 'faults/connection'),
    Fault(
        'libvirtd-busy',
        (r'Client hit max requests limit \d+',
         r'connection closed due to keepalive timeout'),
        LIBVIRT, 'any',
        'libvirt processed no more requests of a client, keepalives included, '
        'and the connection ended. On the source that client is nova-compute: '
        'its own libvirt is busy, not the network.',
        'Raise max_client_requests and max_workers in libvirtd.conf or '
        'virtqemud.conf, and migrate fewer guests at the same time.',
        ALL, 'faults/connection', kind_of=('keepalive',)),
    Fault(
        'keepalive',
        (r'connection closed due to keepalive timeout',),
        LIBVIRT, 'any',
        'A connection to a libvirt daemon ended, because its other side did '
        'not answer keepalives: it was busy, or the network failed. It is '
        'nova-compute\'s to the local libvirt, or that one\'s to the '
        'destination.',
        'Look for "Client hit max requests limit" in libvirt\'s log: then the '
        'local libvirt is busy. Otherwise check the other host.',
        ALL, 'faults/connection'),
    Fault(
        'destination-lost',
        (r'Lost connection to destination host',),
        LIBVIRT, 'copy',
        'libvirt of the source lost its connection to the destination\'s.',
        'Check that the destination is up, and whether its libvirt was '
        'restarted.',
        ALL, 'faults/connection'),
)

GUEST = (
    Fault(
        'vnic-abi',
        (r'Target (?:network card|virtio network) .{0,200}? does not match '
         r'source',),
        LIBVIRT, 'start',
        'libvirt refused a vNIC that differs from the guest\'s: Nova '
        'recomputed it.',
        f'{ON_SOURCE}hard reboot the instance.',
        ALL, 'fixes/vnic', 'vnic', ('guest-abi',)),
    Fault(
        'guest-abi',
        (r'(?P<thing>(?:Target|(?:Size|Processor mask) of target) .{1,200}?'
         r'(?= ?(?:does not|do not|doesn\'t|don\'t) match (?:the )?source)'
         r'|State of feature \'[^\']*\'(?= differs: source: ))',),
        LIBVIRT, 'start',
        'libvirt refused the guest, because the destination would give it '
        'other hardware: "{thing}" differs from the source.',
        'Compare that device in "virsh dumpxml --migratable" of the guest '
        'with its flavor, image and the configuration of Nova: one of them '
        'changed since the guest was started. A hard reboot gives the guest '
        'the present values.',
        ALL, 'faults/hardware'),
    Fault(
        'cpu-pdcm',
        (r'doesn\'t match specification: missing features: pdcm(?![\w,-])',),
        LIBVIRT, 'start',
        'The guest has the CPU feature pdcm, which the QEMU of the '
        'destination no longer offers without a PMU. It is a change of the '
        'packages, not of the CPU.',
        'Update qemu-kvm of the destination: EL 9.7 had a corrected build in '
        'February 2026.',
        'QEMU packages of EL 9.7 and others of that time', 'faults/hardware',
        kind_of=('cpu-features',)),
    Fault(
        'cpu-ht',
        (r'doesn\'t match specification: extra features: ht(?![\w,-])',),
        LIBVIRT, 'start',
        'QEMU 10.0 reports the CPU feature ht in another way, which libvirt '
        'of the destination does not know. The CPUs do not differ.',
        'Update libvirt of the destination to a release that notes "Fix '
        'incoming migration to QEMU 10.0.0 and newer".',
        'libvirt without that correction, with QEMU from 10.0 on',
        'faults/hardware', kind_of=('cpu-features',)),
    Fault(
        'cpu-features',
        (r'guest CPU doesn\'t match specification'
         r'|the CPU is incompatible with host CPU',),
        LIBVIRT, 'start',
        'The destination cannot give the guest the same CPU: the message '
        'names the features.',
        'Compare CPU model, microcode, kernel options, and the versions of '
        'QEMU and libvirt of both hosts: an update may add or remove a '
        'feature. Otherwise choose a destination of the same kind; for new '
        'guests, set cpu_models to the oldest CPU.',
        ALL, 'faults/hardware'),
    Fault(
        'cpu-name',
        (r'(?:Unknown|unknown) CPU (?P<thing>(?:feature|model):? [\w.\'-]+)',),
        LIBVIRT, 'start',
        'libvirt of the destination does not know the CPU {thing}: it is '
        'older than the source\'s, or the name was dropped.',
        'Update libvirt of the destination; otherwise restart the guest with '
        'a CPU model that both know.',
        ALL, 'faults/hardware'),
    Fault(
        'cpu-shares',
        (r'Value specified in CPUWeight is out of range'
         r'|Value of cputune \'shares\' must be in range',),
        LIBVIRT, 'start',
        'The guest has more CPU shares than cgroup v2 of the destination '
        'permits: 10000.',
        'Set quota:cpu_shares of the flavor to 10000 or less and resize, or '
        'update Nova: from 2023.1 on it sets no shares by default.',
        ALL, 'faults/hardware'),
    Fault(
        'hostdev',
        (r'cannot migrate (?:a domain with <hostdev|domain: .{0,200}VFIO)'
         r'|VFIO (?:device doesn\'t support migration'
         r'|migration is not supported)',),
        LIBVIRT, 'start',
        'The guest has a device of the host (VFIO), whose driver cannot '
        'migrate it.',
        'Use cold migration; a vNIC of type direct is detached and attached '
        'again by Nova.',
        ALL, 'faults/hardware', kind_of=('not-migratable',)),
    Fault(
        'not-migratable',
        (r'(?P<thing>cannot migrate (?:a |this )?domain\b.{0,200}'
         r'|domain has active block job)',),
        LIBVIRT, 'start',
        'libvirt does not migrate this guest: {thing}',
        'Remove the obstacle that the message names, or use cold migration.',
        ALL, 'faults/hardware'),
    Fault(
        'domain-exists',
        (r'domain \'(?P<thing>[^\']*)\' already exists with uuid',),
        LIBVIRT, 'start',
        'libvirt of the destination has a domain {thing} already, with '
        'another UUID or name.',
        'See "virsh list --all" there: it is left from another cloud or an '
        'earlier migration. Undefine it if it does not run.',
        ALL, 'faults/hardware'),
    Fault(
        'tap-queues',
        (r'Unable to create tap device.{0,99}Argument list too long',),
        LIBVIRT, 'start',
        'The kernel of the destination opens fewer queues of a tap device '
        'than the guest has.',
        'Choose another destination. The plugin refuses such a migration '
        'before it starts.',
        ALL, 'fixes/vnic', 'vnic'),
    Fault(
        'bridge-missing',
        (r'Cannot get interface MTU on \'(?P<thing>[^\']*)\': No such device',
         ),
        LIBVIRT, 'start',
        'The destination has no bridge {thing}.',
        'Read the log of Neutron\'s agent there, which creates it.',
        ALL, 'faults/hardware'),
    Fault(
        'qemu-binary',
        (r'Cannot check QEMU binary (?P<thing>[^\s:]+)',),
        LIBVIRT, 'start',
        'The destination has no {thing}, or libvirt cannot run it.',
        'Install the same emulator; its path is in the guest\'s XML.',
        ALL, 'faults/hardware'),
)

STORAGE = (
    Fault(
        'secret-missing',
        (r'no secret (?:with matching|matches) uuid \'(?P<thing>[^\']*)\'',),
        LIBVIRT, 'start',
        'libvirt of the destination has no secret {thing}, which the guest\'s '
        'Ceph or encrypted disk needs.',
        'Define it as on the other hosts: "virsh secret-list". With Kolla '
        'deploy nova-cell on this host.',
        ALL, 'faults/storage'),
    Fault(
        'storage-denied',
        (r'Cannot access (?:storage|backing) file \'(?P<thing>[^\']*)\''
         r'.{0,400}: Permission denied',),
        LIBVIRT, 'start',
        'The destination may not open {thing}: owner and mode are wrong, or '
        'NFS maps root to another user (root_squash).',
        'Compare owner and mode with the numbers in the message, on both '
        'hosts; the IDs of the users have to be equal.',
        ALL, 'faults/storage'),
    Fault(
        'storage-missing',
        (r'Cannot access (?:storage|backing) file \'(?P<thing>[^\']*)\''
         r'.{0,400}: No such file or directory',),
        LIBVIRT, 'start',
        'The destination does not have {thing}.',
        'Check the mounts of the destination, and that the storage is '
        'shared as Nova believes.',
        ALL, 'faults/storage'),
    Fault(
        'cache-mode',
        (r'Migration without shared storage is unsafe'
         r'|Migration may lead to data corruption if disks use cache',),
        LIBVIRT, 'start',
        'libvirt refused a disk whose cache mode is not safe: it has another '
        'mode than none or directsync on storage that libvirt does not '
        'regard as shared between hosts.',
        'Set disk_cachemodes to none for this kind of disk and hard reboot '
        'the instance, or migrate its disks, too (block migration).',
        ALL, 'faults/storage'),
)

FAULTS = CONNECTION + GUEST + STORAGE
