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
"""Faults of the scheduler and of Nova's prechecks: nothing was moved."""

from __future__ import annotations

from nova_migfix.status.faults.base import ALL
from nova_migfix.status.faults.base import Fault
from nova_migfix.status.faults.base import INSTANCE
from nova_migfix.status.faults.base import NOVA

FAULTS = (
    Fault(
        'refused-queues',
        (rf'{INSTANCE} runs with \d+ queue',),
        NOVA, 'precheck',
        'The plugin refused a migration that would have failed: the '
        'destination cannot open as many queues as the guest\'s vNIC has.',
        'Follow the message: it names the remedy.',
        ALL, 'fixes/vnic', kind_of=('precheck',)),
    Fault(
        'refused-volume',
        (rf'Disk \S+ of {INSTANCE} is of volume',),
        NOVA, 'precheck',
        'The plugin refused a migration in which the destination would have '
        'opened another disk: the guest has the disk of a volume that is not '
        'attached to it, for example since a swap of volumes (LP 2112187).',
        'Hard reboot the instance: its disks are then those of the attached '
        'volumes.',
        ALL, 'fixes/volume', kind_of=('precheck',)),
    Fault(
        'cpu',
        (r'Unacceptable CPU info: CPU doesn\'t have compatibility',),
        NOVA, 'precheck',
        'Nova compared the CPU of the source host, or the CPU model of the '
        'guest if cpu_models names one, with the destination, and refused it. '
        'With host-passthrough and host-model, Nova compares hosts, not '
        'guests: a guest that would fit is refused, too (LP 2039803).',
        'Compare "virsh capabilities" of both hosts: CPU model, microcode, '
        'kernel options. If only features differ that the guest does not '
        'have, set [workarounds] skip_cpu_compare_on_dest: libvirt compares '
        'the guest\'s own CPU later.',
        ALL, 'faults/prechecks', kind_of=('precheck', 'no-valid-host')),
    Fault(
        'storage-shared',
        (r'is not on local storage: Block migration can not be used',),
        NOVA, 'precheck',
        'The request wants a block migration, but the hosts share the '
        'instances\' storage.',
        'Migrate with block_migration "auto", or without --block-migration.',
        ALL, 'faults/prechecks'),
    Fault(
        'storage-not-shared',
        (r'is not on shared storage: Shared storage live-migration requires',),
        NOVA, 'precheck',
        'The request excludes a block migration, but the guest has local '
        'disks, and the hosts do not share the instances\' storage.',
        'Migrate with block_migration "auto", or with --block-migration. If '
        'the storage should be shared, look at the mounts of both hosts.',
        ALL, 'faults/prechecks'),
    Fault(
        'disk-too-large',
        (r'Disk of instance is too large ?\(available',),
        NOVA, 'precheck',
        'The destination has less free disk space than the sizes of the '
        'guest\'s disks.',
        'Free space there. If the disks are sparse, migrate with API version '
        '2.24 or older and disk_over_commit, which counts allocated blocks.',
        ALL, 'faults/prechecks', kind_of=('precheck', 'no-valid-host')),
    Fault(
        'memory-lack',
        (r'Unable to migrate \S+ to \S+: Lack of memory\(host:',),
        NOVA, 'precheck',
        'A forced destination has less free memory than the flavor needs.',
        'Choose another destination, or let the scheduler choose.',
        ALL, 'faults/prechecks', kind_of=('precheck',)),
    Fault(
        'hypervisor-older',
        (r'instance requires a newer hypervisor version',),
        NOVA, 'precheck',
        'The destination\'s QEMU is older than the source\'s, and Nova '
        'refuses such migrations. Only nova-conductor logs it, at DEBUG.',
        'Migrate to a host that is as new. If both QEMUs have the guest\'s '
        'machine type, [workarounds] skip_hypervisor_version_check_on_lm of '
        'nova-conductor switches the check off; QEMU does not support each '
        'migration to an older release.',
        ALL, 'faults/prechecks', kind_of=('no-valid-host',)),
    Fault(
        'port-binding',
        (r'Binding failed for port (?P<thing>[0-9a-f-]{36}), please check',),
        NOVA, 'precheck',
        'Neutron could not bind the port {thing} on the destination.',
        'Check that Neutron\'s agent there is up ("openstack network agent '
        'list"), and read the log of the Neutron server.',
        ALL, 'faults/prechecks', kind_of=('precheck', 'no-valid-host')),
    Fault(
        'precheck',
        (r'Migration pre-check error: (?P<thing>\S.{0,200})',),
        NOVA, 'precheck',
        'Nova\'s precheck refused the migration: {thing}',
        'Follow the message.',
        ALL, 'faults/prechecks', kind_of=('no-valid-host',)),
    Fault(
        'no-valid-host',
        (r'No valid host was found\. ',),
        NOVA, 'precheck',
        'No host passed the scheduler and the prechecks.',
        'Run this command with the log of nova-conductor, at DEBUG, and '
        '--request: "Skipping host" names the reason for each host. Without '
        'that line, read the log of nova-scheduler.',
        ALL, 'faults/prechecks'),
)
