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
"""Known reasons why live migrations fail, and the log lines that show them.

``explain`` takes the first match in :data:`FAULTS`: specific patterns come
before general ones.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple


class Fault(NamedTuple):
    """A known reason.

    :ivar pattern: regular expression that is found in the deciding line
    :ivar fix: name of the fix that prevents the fault, '' for none
    :ivar page: of the documentation, without suffix, '' for none
    """

    name: str
    pattern: str
    meaning: str
    fix: str
    remedy: str
    page: str


#: also the fault if Nova logs both a failure and an arrival
SOURCE_DIED = 'source-died'

_ON_SOURCE = 'Install the plugin on this host and run "upgrade check"; or '
_ON_DESTINATION = 'Install the plugin on the destination; or '

FAULTS: tuple[Fault, ...] = tuple(itertools.starmap(Fault, (
    ('refused-queues',
     r'runs with \d+ queue.* on the vNIC',
     'The plugin refused a migration that would have failed: the destination '
     'cannot open as many queues as the guest\'s vNIC has.', '',
     'Follow the message: it names the remedy.', 'fixes/vnic'),
    ('vnic-queues',
     r'Failed to load virtio-net:virtio|virtio-net.*Invalid argument'
     r'|Bad config data: i=0x9a',
     'The vNIC on the destination does not have the guest\'s number of '
     'queues: Nova recomputed the number.', 'vnic',
     f'{_ON_SOURCE}set max_queues of this host to the guest\'s number.',
     'fixes/vnic'),
    ('vnic-abi',
     r'Target (network card|NIC|interface) .*does not match source',
     'libvirt refused a vNIC that differs from the guest\'s: Nova recomputed '
     'it.', 'vnic', f'{_ON_SOURCE}hard reboot the instance.',
     'fixes/vnic'),
    ('tap-queues',
     r'Unable to create tap device.*Argument list too long',
     'The kernel of the destination opens fewer queues of a tap device than '
     'the guest has.', 'vnic',
     'Choose another destination. The plugin refuses such a migration before '
     'it starts.', 'fixes/vnic'),
    ('other-device',
     r'Failed to load \S+:\S+|error while loading state',
     'QEMU on the destination could not load the state of a device: its '
     'device is a different one, or QEMU is older.', '',
     'Compare machine type and devices in the XML of the two domains.', ''),
    ('ephemeral-label',
     r'mkfs\S*.* -(?:L|n) ephemeral_\d+_|[Ll]abel.*too long',
     'The destination tried to make a file system with the name of the '
     'backing file as its label, which is too long (LP 2061701).',
     'ephemeral',
     f'{_ON_DESTINATION}use ext4 for ephemeral disks.', 'fixes/ephemeral'),
    ('not-pulled',
     r'of instance \S+ (cannot be had|could not be fetched) from',
     'The destination could not fetch the guest\'s files from the source.',
     '', 'Let the destination log in on the source by ssh, and free space '
     'on the destination; the message names the attempts.',
     'fixes/ephemeral'),
    ('not-complete',
     r'of instance \S+ (cannot be made complete'
     r'|is being completed by another process)',
     'The source could not make a disk independent of its backing file.',
     '', 'Follow the message: it names the remedy.', 'fixes/ephemeral'),
    ('kernel-ramdisk',
     r'ImageUnacceptable|does not pass safety check',
     'The destination checked the guest\'s kernel as if it were a disk image, '
     'and refused it.', 'kernel_ramdisk',
     f'{_ON_DESTINATION}use cold migration.', 'fixes/kernel_ramdisk'),
    ('image-lost',
     r'ssh: (?:connect to host|Could not resolve hostname) \S+'
     r'|Host key verification failed|Permission denied \(publickey',
     'Glance no longer has the image, so the destination had to fetch it '
     'from the source, and could not log in there (LP 1939869).',
     'source_address',
     'Install the plugin on both hosts and run "upgrade check"; or make the '
     'source\'s sshd reachable at its host name.', 'fixes/source_address'),
    ('tls-keys',
     r'(?:[Cc]annot|Unable to) (?:read from|write to) TLS channel'
     r'|gnutls\S* .*failed',
     'The TLS session of the migration broke: with GnuTLS before 3.8.11 a '
     'rekey breaks the sessions of large guests.', '',
     'Run "nova-migfix-tls audit" on this host, and give the destination a '
     'policy: "nova-migfix-tls generate".', 'tls/index'),
    ('place-unknown',
     r'unknown whether instance \S+ has arrived on',
     'Neither host could say where the guest is. The plugin kept all files on '
     'both hosts.', '',
     'Find the guest with "virsh list --all" on both hosts, then correct the '
     'host and the state of the instance.', 'admin/repair'),
    (SOURCE_DIED,
     r'shutting down, reason=crashed'
     r'|Live Migration failure: .*domain is not running',
     'The guest\'s QEMU on the source ended during the migration: it '
     'crashed, for example at a TLS rekey, or was killed or shut down. '
     'Nova may have treated the migration as complete; then it deleted the '
     'disks on the source.', 'arrival',
     'Back up the instance\'s directory on both hosts before you start, '
     'reboot or delete the instance: the copy on the destination may be the '
     'only one.', 'faults/others'),
    ('disk-full',
     r'No space left on device',
     'A disk was full.', '', 'Free space at the path in the message.', ''),
    ('vif-plug',
     r'Timed out waiting for .*(?:network-vif-plugged|events)',
     'Neutron did not report in time that the port is plugged on the '
     'destination.', '', 'Read the log of Neutron\'s agent there.', ''),
    ('cpu',
     r'InvalidCPUInfo|Unacceptable CPU info|guest CPU doesn\'t match',
     'The destination\'s CPU does not have all features of the guest\'s CPU.',
     '', 'Choose another destination, or another cpu_mode.', ''),
    ('aborted',
     r'[Mm]igration operation was cancelled|Aborting live migration'
     r'|canceled by client|exceeded .*timeout|timed out.*live.migration',
     'An operator aborted the migration, or it took too long.', '',
     'See live_migration_timeout_action and live_migration_permit_*.', ''),
    ('destination-lost',
     r'[Ll]ost connection to destination|unable to connect to server'
     r'|Cannot recv data|End of file while reading data'
     r'|client socket is closed|keepalive|No route to host'
     r'|Connection refused|Connection timed out',
     'The connection between the two hosts failed or was lost.',
     '', 'Check that the destination is up, and that its libvirt answers at '
     'its live_migration_inbound_addr.', ''),
)))
