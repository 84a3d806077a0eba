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
"""Faults of a begun migration that Nova or the plugin reports."""

from __future__ import annotations

from nova_migfix.status.faults.base import ALL
from nova_migfix.status.faults.base import Fault
from nova_migfix.status.faults.base import INSTANCE
from nova_migfix.status.faults.base import NOVA
from nova_migfix.status.faults.base import ON_DESTINATION

_SSH = (r'Stderr: .{0,999}?(?:ssh: connect to host|Host key verification'
        r' failed|Could not resolve hostname|Permission denied \()')

PREPARATION = (
    Fault(
        'ephemeral-label',
        (r'Command: mkfs\S* (?:\S+ ){0,6}-(?:L|n) ephemeral_\d+_',),
        NOVA, 'preparation',
        'The destination tried to make a file system with the name of the '
        'backing file as its label, which is too long (LP 2061701).',
        f'{ON_DESTINATION}use ext4 for ephemeral disks.',
        'Nova 29; 30 before 30.3.0, 31 before 31.3.0', 'fixes/ephemeral',
        'ephemeral'),
    Fault(
        'not-pulled',
        (rf'of {INSTANCE} could not be fetched from',),
        NOVA, 'preparation',
        'The destination could not fetch the guest\'s files from the source.',
        'Let the destination log in on the source by ssh, and free space '
        'on the destination; the message names the attempts.',
        ALL, 'fixes/ephemeral', kind_of=('disk-full',)),
    Fault(
        'not-complete',
        (rf'of {INSTANCE} (?:cannot be made complete'
         r'|is being completed by another process)',),
        NOVA, 'preparation',
        'The source could not make a disk independent of its backing file.',
        'Follow the message: it names the remedy.',
        ALL, 'fixes/ephemeral'),
    Fault(
        'kernel-ramdisk',
        (r'Image \S+ is unacceptable: ', r'_fetch_instance_kernel_ramdisk'),
        NOVA, 'preparation',
        'The destination checked the guest\'s kernel as if it were a disk '
        'image, and refused it.',
        f'{ON_DESTINATION}use cold migration.',
        'Nova with OSSA-2024-001, 34 included', 'fixes/kernel_ramdisk',
        'kernel_ramdisk', ('image-refused',)),
    Fault(
        'image-refused',
        (r'Image (?P<thing>\S+) is unacceptable: ',),
        NOVA, 'preparation',
        'The destination checked the image {thing}, and refused it. If it is '
        'a kernel or ramdisk, this is the fault kernel-ramdisk.',
        'Compare the ID with image, kernel_id and ramdisk_id of the server. A '
        'disk image has to have the format that Glance records for it.',
        ALL, 'faults/images'),
    Fault(
        'ssh-sftp',
        (r'Command: scp ', r'subsystem request failed on channel 0'),
        NOVA, 'preparation',
        'The destination copies files by scp, which uses SFTP since OpenSSH '
        '9.0, and sshd of the source offers no SFTP (LP 2005119).',
        'Give sshd of the source "Subsystem sftp internal-sftp".',
        'OpenSSH from 9.0 on', 'faults/login', kind_of=('files-not-copied',)),
    Fault(
        'config-drive-copy',
        (r'Command: (?:scp|rsync) .{0,999}/disk\.config\b', _SSH),
        NOVA, 'preparation',
        'The destination could not copy the config drive from the source: '
        'it uses the source\'s host name, and could not log in there.',
        'Let nova-compute\'s user of the destination log in by ssh on the '
        'source, at its host name: name lookup, port, host key, user key.',
        'Nova before 30.1.0', 'faults/login', 'source_address',
        ('files-not-copied',)),
    Fault(
        'image-lost',
        (r'Command: (?:scp|rsync) .{0,999}/_base/', _SSH),
        NOVA, 'preparation',
        'Glance no longer has the image, so the destination had to fetch it '
        'from the source, and could not log in there (LP 1939869).',
        'Install the plugin on both hosts and run "upgrade check"; or make '
        'the source\'s sshd reachable at its host name.',
        ALL, 'fixes/source_address', 'source_address', ('files-not-copied',)),
    Fault(
        'files-not-copied',
        (r'Command: (?:scp|rsync) ', r'Stderr: ["\'].{0,999}?(?:ssh: |scp: |'
         r'rsync: |Host key|Permission denied|subsystem request)'),
        NOVA, 'preparation',
        'The destination could not copy a file of the guest from the source.',
        'Run the command of the message as nova-compute\'s user.',
        ALL, 'faults/login'),
    Fault(
        'destination-disk-exists',
        (r'The supplied disk path \((?P<thing>[^)]*)\) already exists',),
        NOVA, 'preparation',
        'The destination has {thing} already: an earlier migration left it '
        '(LP 1761062), or the hosts share the directory without Nova\'s '
        'knowledge.',
        'Check that the guest does not run there, and that the path is not '
        'on storage that both hosts share. Move the directory away; do not '
        'delete it before the guest has been found running elsewhere.',
        ALL, 'faults/preparation'),
    Fault(
        'service-unreachable',
        (r'Unable to establish connection to (?P<thing>https?://[^/\s]+)',),
        NOVA, 'preparation',
        'nova-compute could not reach the service at {thing}.',
        'Find the service with "openstack endpoint list"; check that it runs, '
        'and that this host reaches it.',
        ALL, 'faults/preparation'),
    Fault(
        'rpc-timeout',
        (r'Timed out waiting for a reply to message ID',
         r'Pre live migration failed at '
         r'|check_can_live_migrate|_live_migration'),
        NOVA, 'preparation',
        'The other host, or a service, did not answer in time; it may still '
        'be at work.',
        'Read the log of nova-compute on the other host at this time. If it '
        'was busy with a large image or many volumes, raise '
        'long_rpc_timeout.',
        ALL, 'faults/preparation'),
    Fault(
        'volume-device',
        (r'(?<!Ignoring )VolumeDeviceNotFound:? Volume device not found at '
         r'(?P<thing>[^\s\']+)',),
        NOVA, 'preparation',
        'The destination attached a volume, but its device {thing} did not '
        'appear.',
        'Check iSCSI, Fibre Channel and multipath of the destination, and '
        'that the storage exports the volume to it.',
        ALL, 'faults/preparation'),
    Fault(
        'vif-plug',
        (r'Timed out waiting for .{0,99}network-vif-plugged',),
        NOVA, 'preparation',
        'Neutron did not report in time that the port is plugged on the '
        'destination.',
        'Read the log of Neutron\'s agent there.',
        ALL, 'faults/preparation'),
)

START = (
    Fault(
        'iothread-pin',
        (r'\biothreadpin\.set\(',
         r'\'NoneType\' object has no attribute \'set\''),
        NOVA, 'start',
        'The guest has dedicated CPUs, and runs since before Nova was updated '
        'to 33 (2026.1): its XML lacks the pinning of an I/O thread, which '
        'that Nova expects (LP 2152697).',
        'Hard reboot the instance, or use cold migration: both write the XML '
        'again. Nova 34 on this host migrates it as it is.',
        'Nova 33', 'faults/hardware', 'iothread_pin'),
    Fault(
        'serial-console',
        (r', in set_listen_addr_and_port', r'TypeError: .{0,99}\'NoneType\''),
        NOVA, 'start',
        'The guest was started with a serial console on TCP, which '
        '[serial_console] enabled has switched off since: Nova has no address '
        'to write into its XML.',
        'Hard reboot the instance, or enable [serial_console] on both hosts '
        'for the migration.',
        'all; only Nova from 32 on logs the lines that show it',
        'faults/hardware', 'serial_console'),
)

COPY = (
    Fault(
        'source-died',
        (r'Live Migration failure: .{0,400}domain is not running',),
        NOVA, 'copy',
        'The guest\'s QEMU on the source ended during the migration: it '
        'crashed, for example at a TLS rekey, or was killed or shut down. '
        'Nova may have treated the migration as complete; then it deleted the '
        'disks on the source.',
        'Back up the instance\'s directory on both hosts before you start, '
        'reboot or delete the instance: the copy on the destination may be '
        'the only one.',
        ALL, 'faults/copy', 'arrival', ('qemu-died', 'tls-session')),
    Fault(
        'too-slow',
        (r'Live migration not completed after (?P<thing>\d+) sec',
         r'Migration operation was cancelled|canceled by client'),
        NOVA, 'copy',
        'The migration took longer than {thing} seconds, and was aborted: '
        'the guest writes memory faster than the network copies it.',
        'Migrate when the guest is less busy, or set '
        'live_migration_permit_auto_converge, live_migration_permit_post_copy '
        'or live_migration_timeout_action = force_complete.',
        ALL, 'faults/copy', kind_of=('aborted',)),
    Fault(
        'aborted',
        (r'Migration operation was cancelled|Live Migration failure: .{0,200}'
         r'canceled by client',),
        NOVA, 'copy',
        'The migration was aborted, mostly by an operator.',
        'See the server\'s actions: "openstack server event list".',
        ALL, 'faults/copy'),
    Fault(
        'state-change-lock',
        (r'Live Migration failure: .{0,200}'
         r'cannot acquire state change lock',),
        NOVA, 'start',
        'Another job holds the guest in libvirt: a snapshot, a backup, or '
        'another migration. The message names it.',
        'Wait for the job ("virsh domjobinfo"). If there is none, libvirt '
        'waits for a QEMU that does not answer.',
        ALL, 'faults/copy'),
    Fault(
        'libvirt-connection',
        (r'(?:Live Migration failure|Error monitoring migration): .{0,200}(?:'
         r'client socket is closed|Unable to read from socket'
         r'|Cannot recv data: (?:Connection reset by peer|Input/output error)'
         r'|Cannot write data)',),
        NOVA, 'any',
        'A connection to a libvirt daemon was closed: nova-compute\'s to its '
        'own, or that one\'s to the destination\'s. The message does not say '
        'which.',
        'See in the journals of both hosts whether libvirtd or virtqemud was '
        'restarted or killed. Find the guest with "virsh list --all" on '
        'both hosts.',
        ALL, 'faults/copy'),
)

ARRIVAL = (
    Fault(
        'post-copy-interrupted',
        (r'[Ll]ive migration (?:to \S{1,255} )?is interrupted in post-copy',),
        NOVA, 'arrival',
        'The connection between the two QEMUs broke in post-copy, so that '
        'each host has a part of the memory. The plugin resumes the migration '
        'when the network is back, unless it says "cannot".',
        'Restore the migration network. Do not destroy the domain on either '
        'host, and do not reset the state of the server.',
        ALL, 'fixes/post_copy'),
    Fault(
        'place-unknown',
        (rf'unknown whether {INSTANCE} has arrived on',),
        NOVA, 'arrival',
        'Neither host could say where the guest is. The plugin kept all files '
        'on both hosts.',
        'Find the guest with "virsh list --all" on both hosts, then correct '
        'the host and the state of the instance.',
        ALL, 'admin/repair'),
)

FAULTS = PREPARATION + START + COPY + ARRIVAL
