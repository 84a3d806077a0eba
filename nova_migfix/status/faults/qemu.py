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
"""Faults that QEMU reports, also through libvirt."""

from __future__ import annotations

from nova_migfix.status.faults.base import ALL
from nova_migfix.status.faults.base import Fault
from nova_migfix.status.faults.base import LIBVIRT
from nova_migfix.status.faults.base import ON_SOURCE
from nova_migfix.status.faults.base import QEMU

_CERTIFICATE = ('certificate', 'tls-session')

TLS = (
    Fault(
        'tls-credentials',
        (r"(?:Unable to access credentials |Cannot load (?:CA )?certificate "
         r"'(?=.*: Error while reading))(?P<thing>[^\s:']+)",),
        QEMU, 'start',
        'QEMU cannot read {thing}, or its key: it is missing, or belongs to '
        'another user, or QEMU runs since before it was created or replaced: '
        'libvirt shows a QEMU the files of its start.',
        'Check the file as QEMU\'s user, and in /proc/<PID of QEMU>/root. '
        'A guest that does not see it migrates after a hard reboot.',
        ALL, 'faults/tls'),
    Fault(
        'certificate-name',
        (r'(?:Certificate|owner) does not match the hostname '
         r'(?P<thing>[^\s,]+)',),
        QEMU, 'start',
        'The certificate of the destination does not contain {thing}, the '
        'name or address that the source asks for.',
        'Issue a certificate with this name or address as a subject '
        'alternative name (an address as IP, not as DNS), or set '
        'live_migration_inbound_addr of the destination to a name in it.',
        ALL, 'faults/tls', kind_of=_CERTIFICATE),
    Fault(
        'certificate-expired',
        (r'The (?:(?:server|client|CA) )?certificate (?:\S+ )?'
         r'(?:has expired|is not yet active)',),
        QEMU, 'start',
        'A certificate of one of the hosts has expired, or is not yet '
        'valid.',
        'Look at the dates with "openssl x509 -noout -dates": of server, '
        'client and CA, on both hosts. Guests that run since before the '
        'renewal may need a hard reboot.',
        ALL, 'faults/tls', kind_of=_CERTIFICATE),
    Fault(
        'certificate-untrusted',
        (r'The certificate (?:is not trusted|hasn\'t got a known issuer'
         r'|has been revoked|uses an insecure algorithm)'
         r'|Unable to verify (?:server|client) certificate \S+ against CA',),
        QEMU, 'start',
        'A host does not trust the certificate of the other one: their CAs '
        'differ, or the certificate was revoked.',
        'Compare the CA certificates of both hosts (/etc/pki/CA, '
        '/etc/pki/qemu).',
        ALL, 'faults/tls', kind_of=_CERTIFICATE),
    Fault(
        'certificate',
        (r'Failed to verify peer\'s certificate',),
        LIBVIRT, 'start',
        'libvirt of the source refused the certificate of the destination. '
        'Its own log has the reason.',
        'Run this command with libvirt\'s log of the source: --libvirt-log. '
        'Mostly the certificate lacks the address, or has expired.',
        ALL, 'faults/tls'),
    Fault(
        'tls-session',
        (r'(?:[Cc]annot|Unable to) (?:read from|write to) TLS channel',),
        QEMU, 'copy',
        'The TLS session between the two QEMUs ended. If it did so at once, '
        'one host refused the certificate of the other, or has none. If it '
        'did so after much data, a rekey is likely: with GnuTLS before '
        '3.8.11 it breaks the sessions of large guests.',
        'Read QEMU\'s logs of both hosts. Run "nova-migfix-tls audit" on this '
        'host; against rekeys, give the destination a policy: '
        '"nova-migfix-tls generate".',
        ALL, 'tls/index'),
)

DEVICES = (
    Fault(
        'vnic-queues',
        (r'Bad config data: i=0x9a |virtio-net: curr_queue',
         r'virtio-net'),
        QEMU, 'switch-over',
        'The vNIC on the destination does not have the guest\'s number of '
        'queues: Nova recomputed the number.',
        f'{ON_SOURCE}set max_queues of this host to the guest\'s number.',
        ALL, 'fixes/vnic', 'vnic', ('other-device',)),
    Fault(
        'vnic-offloads',
        (r'Features 0x[0-9a-f]+ unsupported\. Allowed features: 0x',
         r'Failed to load virtio-net:virtio'),
        QEMU, 'switch-over',
        'The guest uses features of its vNIC, mostly segmentation offloads '
        '(USO), that kernel or QEMU of the destination do not offer. The '
        'number of queues is not the cause.',
        'Migrate to a host with the same kernel and QEMU. The guest can go '
        'elsewhere after a hard reboot on a host without these features.',
        'USO: kernels from 6.2, QEMU from 8.1 on, and some builds of EL 9',
        'faults/vnic', kind_of=('other-device',)),
    Fault(
        'video-model',
        (r'Unknown ramblock "[^"]{1,99}/vga\.vram"'
         r'|Bad config data: i=0xa read: 80 device: 0 ',
         r'Unknown ramblock "[^"]{1,99}/vga\.vram"'
         r'|Failed to load virtio-gpu:virtio'),
        QEMU, 'switch-over',
        'The guest\'s video device is virtio-vga on one host and virtio-gpu '
        'on the other: libvirt chooses by the modules of QEMU that a host '
        'has, and before 12.5.0 does not record its choice.',
        'Install the same display modules of QEMU on both hosts. libvirt '
        '12.5.0 on both hosts records the choice, also of running guests.',
        'libvirt before 12.5.0', 'faults/hardware',
        kind_of=('other-device',)),
    Fault(
        'reenlightenment',
        (r're-enlightenment notifications, \'tsc-frequency=\' has to be',),
        QEMU, 'switch-over',
        'A Windows guest with Hyper-V uses re-enlightenment, and QEMU '
        'migrates such a guest only with a fixed TSC frequency.',
        'Use cold migration. For new guests, set the TSC frequency, or do not '
        'give them the Hyper-V feature reenlightenment.',
        ALL, 'faults/hardware', kind_of=('other-device',)),
    Fault(
        'tpm',
        (r'tpm-emulator: |swtpm (?:died|didn\'t show up'
         r'|socket did not show up)|running swtpm does not support migration',
         ),
        QEMU, 'switch-over',
        'The emulated TPM of the guest could not be moved.',
        'Read the log of swtpm on the destination (/var/log/swtpm/libvirt/'
        'qemu): its version, the state directory and its lock.',
        ALL, 'faults/hardware', kind_of=('other-device',)),
    Fault(
        'other-device',
        (r'(?:error while loading state (?:for instance \S+ of device \''
         r'|section id \d+\()|Unknown savevm section or instance \')'
         r'(?P<thing>[^\')]+)',),
        QEMU, 'switch-over',
        'QEMU on the destination could not load the state of {thing}: its '
        'device is a different one, or QEMU is older.',
        'Compare machine type and devices in the XML of the two domains.',
        ALL, 'faults/hardware'),
)

PROCESS = (
    Fault(
        'machine-type',
        (r'does not support machine type|unsupported machine type',),
        QEMU, 'start',
        'QEMU of the destination does not have the machine type of the guest: '
        'it is newer and dropped it, or older and lacks it.',
        'Migrate to a host whose QEMU has it ("virsh domcapabilities '
        '--machine"). Otherwise restart the guest with another type: see '
        '"nova-manage libvirt update_machine_type".',
        ALL, 'faults/hardware'),
    Fault(
        'post-copy',
        (r'[Uu]serfaultfd not available: ',),
        QEMU, 'start',
        'The destination may not use post-copy: QEMU is not root, and the '
        'kernel denies userfaultfd to other users.',
        'Set the sysctl vm.unprivileged_userfaultfd to 1 on the destination, '
        'or live_migration_permit_post_copy to false on the source.',
        'Linux from 5.11 on', 'faults/copy'),
    Fault(
        'image-lock',
        (r'Failed to get (?:shared )?"(?:write|consistent read)" lock',),
        QEMU, 'start',
        'Another process has a disk of the guest open, so that QEMU on the '
        'destination could not open it.',
        'Look for a QEMU of this guest, or qemu-img or qemu-nbd, on all '
        'hosts that share the storage. On NFS a lock may outlive a crashed '
        'host.',
        ALL, 'faults/storage'),
    Fault(
        'rbd-monitors',
        (r': error connecting: ',
         r'driver\\?"?[=:]\\?"?rbd|file=rbd:'),
        QEMU, 'start',
        'QEMU on the destination could not connect to Ceph. Up to Nova 33 the '
        'guest keeps the monitors of its start, which may be gone '
        '(LP 1741364).',
        'Compare the <host> elements of the guest\'s disks with ceph.conf. '
        'Hard reboot the instance to give it the present monitors.',
        'Nova up to 33', 'faults/storage', 'rbd_monitors'),
    Fault(
        'qemu-died',
        (r'shutting down, reason=crashed',
         r'Live Migration failure|Live migration failed'),
        QEMU, 'copy',
        'The guest\'s QEMU on this host crashed. If this host is the source, '
        'the guest has stopped.',
        'See the journal of this host for the kernel\'s messages about QEMU '
        '(out of memory, segmentation fault). On the source, save '
        'the data before you start the guest: see source-died.',
        ALL, 'faults/copy'),
    Fault(
        'disk-full',
        (r'No space left on device',),
        QEMU, 'any',
        'A disk was full.',
        'Free space at the path in the message.',
        ALL, 'faults/disks'),
)

FAULTS = TLS + DEVICES + PROCESS
