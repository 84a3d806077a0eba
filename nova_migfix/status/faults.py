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
"""Why live migrations fail, and by which line of a log that is known.

:data:`FAULTS` is looked through from the top: a fault that is told by few
words comes after those that are told by more.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple


class Fault(NamedTuple):
    """A known reason.

    :ivar pattern: regular expression of what the deciding line has
    :ivar fix: name of the fix that mends it, '' for none
    :ivar page: in the documentation, '' for none
    """

    name: str
    pattern: str
    meaning: str
    fix: str
    remedy: str
    page: str


#: told also by what fails and arrives at once
SOURCE_DIED = 'source-died'

_ON_SOURCE = 'Put the plugin on this host and see "upgrade check"; or '
_ON_DESTINATION = 'Put the plugin on the destination; or '

FAULTS: tuple[Fault, ...] = tuple(itertools.starmap(Fault, (
    ('refused-queues',
     r'runs with \d+ queue.* on the vNIC',
     'The plugin has refused what would have failed: the destination cannot '
     'open the queues of the guest\'s vNIC as the guest has them.', '',
     'The message says what to do.', 'fixes/vnic'),
    ('vnic-queues',
     r'Failed to load virtio-net:virtio|virtio-net.*Invalid argument'
     r'|Bad config data: i=0x9a',
     'The vNIC on the destination has another number of queues than the '
     'guest, for which Nova has computed it anew.', 'vnic',
     f'{_ON_SOURCE}set max_queues of this host to what the guest has.',
     'fixes/vnic'),
    ('vnic-abi',
     r'Target (network card|NIC|interface) .*does not match source',
     'libvirt has refused a vNIC that is not the guest\'s: Nova has computed '
     'it anew.', 'vnic', f'{_ON_SOURCE}hard reboot the instance.',
     'fixes/vnic'),
    ('tap-queues',
     r'Unable to create tap device.*Argument list too long',
     'The kernel of the destination opens fewer queues of a tap device than '
     'the guest has.', 'vnic',
     'Choose another destination. The plugin refuses this before anything '
     'is moved.', 'fixes/vnic'),
    ('other-device',
     r'Failed to load \S+:\S+|error while loading state',
     'QEMU on the destination could not load the state of a device: it has '
     'another one, or is older.', '',
     'Compare machine type and devices of the two domains\' XML.', ''),
    ('ephemeral-label',
     r'mkfs\S*.* -(?:L|n) ephemeral_\d+_|[Ll]abel.*too long',
     'The destination has made a file system with the name of the backing '
     'file as label, which is too long for it (LP 2061701).', 'ephemeral',
     f'{_ON_DESTINATION}use ext4 for ephemeral disks.', 'fixes/ephemeral'),
    ('not-pulled',
     r'of instance \S+ (cannot be had|could not be fetched) from',
     'The destination could not fetch the guest\'s files from the source.',
     '', 'Let the destination log in on the source by ssh and make space '
     'there; the message says what was tried.', 'fixes/ephemeral'),
    ('not-complete',
     r'of instance \S+ cannot be made complete',
     'The source could not make a disk independent of its backing file.',
     '', 'The message says what to do.', 'fixes/ephemeral'),
    ('kernel-ramdisk',
     r'ImageUnacceptable|does not pass safety check',
     'The destination has taken the guest\'s kernel for a disk image, and '
     'refused it.', 'kernel_ramdisk', f'{_ON_DESTINATION}migrate cold.',
     'fixes/kernel_ramdisk'),
    ('image-lost',
     r'ssh: (?:connect to host|Could not resolve hostname) \S+'
     r'|Host key verification failed|Permission denied \(publickey',
     'The destination had to fetch from the source what Glance has lost, '
     'and could not log in there (LP 1939869).', 'source_address',
     'Put the plugin on both hosts and see "upgrade check"; or let sshd of '
     'the source answer at its host name.', 'fixes/source_address'),
    ('tls-keys',
     r'(?:[Cc]annot|Unable to) (?:read from|write to) TLS channel'
     r'|gnutls\S* .*failed',
     'The TLS session of the migration has broken: a change of keys does that '
     'to large guests (GnuTLS before 3.8.11).', '',
     'See "nova-migfix-tls audit" here, and give the destination a policy: '
     '"nova-migfix-tls generate".', 'tls/index'),
    (SOURCE_DIED,
     r'shutting down, reason=crashed'
     r'|Live Migration failure: .*domain is not running',
     'The guest\'s QEMU on the source has ended while it was migrated: a '
     'crash, as by a change of TLS keys, or it was killed or switched off. '
     'Nova may have taken that for an arrival, and then has deleted the disks '
     'on the source.', '',
     'Neither start, reboot nor delete the instance before its directory is '
     'saved on both hosts: what was copied to the destination may be all '
     'there is.', 'faults/others'),
    ('disk-full',
     r'No space left on device',
     'A disk was full.', '', 'Make space where the message says.', ''),
    ('vif-plug',
     r'Timed out waiting for .*(?:network-vif-plugged|events)',
     'Neutron has not said in time that the port is plugged on the '
     'destination.', '', 'See the log of the agent there.', ''),
    ('cpu',
     r'InvalidCPUInfo|Unacceptable CPU info|guest CPU doesn\'t match',
     'The destination has not the CPU that the guest was given.', '',
     'Choose another destination, or another cpu_mode.', ''),
    ('aborted',
     r'[Mm]igration operation was cancelled|Aborting live migration'
     r'|canceled by client|exceeded .*timeout|timed out.*live.migration',
     'It was aborted, by an operator or as it took too long.', '',
     'See live_migration_timeout_action and live_migration_permit_*.', ''),
    ('destination-lost',
     r'[Ll]ost connection to destination|unable to connect to server'
     r'|Cannot recv data|End of file while reading data'
     r'|client socket is closed|keepalive|No route to host'
     r'|Connection refused|Connection timed out',
     'The connection between the two hosts was lost, or could not be made.',
     '', 'See that libvirt of the destination answers at its '
     'live_migration_inbound_addr, and that its host is up.', ''),
)))
