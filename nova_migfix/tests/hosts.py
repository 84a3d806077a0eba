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

"""Fake results of hosts, as input of ``nova-migfix-status report``."""

import json
import random
import uuid

UNREACHABLE = {'unreachable': True, 'msg': (
    'Failed to connect to the host via ssh: ssh: connect to host '
    '192.0.2.7 port 22: No route to host')}
NO_CONTAINER = {'rc': 1, 'stdout': '', 'stderr': (
    'Error response from daemon: No such container: nova_compute')}

# Findings of preflight: finding, device, running value, value that Nova
# computes, bug, fix, covered with the plugin, result without the plugin.
KINDS = (
    ('vnic', 'fa:16:3e:00:00:01 driver/@queues', '2', '4',
     'the vNIC is recomputed instead of kept on live migration', 'vnic',
     'yes', 2),
    ('vnic-ring', 'fa:16:3e:00:00:01 driver/@rx_queue_size', '256', '512',
     'the vNIC is recomputed instead of kept on live migration', 'vnic',
     'yes', 1),
    ('ephemeral', 'vdb disk.eph0', 'ephemeral_20_40d1d2c ext4 ephemeral0',
     'the destination\'s file system',
     'LP 2061701: ephemeral disks get another file system',
     'ephemeral', 'yes', 2),
    ('config-drive', 'hda disk.config', 'ISO', 'all zeros',
     'the config drive arrives as zeros', 'config_drive',
     'if on the destination', 1),
    ('kernel-ramdisk', 'kernel', '/var/lib/nova/instances/kernel',
     'fetched as a disk image: ImageUnacceptable',
     'kernels are taken for disk images', 'kernel_ramdisk',
     'if on the destination', 1),
    ('tls', 'rekeys', 'libgnutls30 3.7.9-2', 'memory is written to quickly',
     'a change of TLS keys ends the migration', 'tls_rekey', 'no', 2),
)
FIXES = ('arrival', 'config_drive', 'ephemeral', 'iothread_pin',
         'kernel_ramdisk', 'libvirt_events', 'nvram', 'outage', 'paused',
         'post_copy', 'rbd_monitors', 'restart', 'rollback_state',
         'serial_console', 'source_address', 'tls_rekey', 'vnic', 'volume')
EMULATOR = '/usr/bin/qemu-system-x86_64'
CPU = {'arch': 'x86_64', 'model': 'Skylake-Server', 'vendor': 'Intel',
       'features': ['avx2', 'avx512f', 'sse2']}
OLD_CPU = {**CPU, 'model': 'Broadwell', 'features': ['avx2', 'sse2']}
REMEDY = 'Reboot the instance hard, at a time of its owner\'s choosing.'


def finding(kind, guest, plugin=True, domain='instance-00000001', **changes):
    """Return a row of preflight.

    :param kind: the first column of one of KINDS
    :param plugin: whether the fixes are active
    :param changes: other values for some keys of the row
    """
    name, device, running, computed, bug, fix, covered, harm = next(
        row for row in KINDS if row[0] == kind)
    if not plugin and covered == 'yes':
        covered = 'no'
    return {
        'instance': guest, 'domain': domain, 'finding': name,
        'device': device, 'running': running, 'computed': computed,
        'bug': bug, 'fix': fix, 'covered': covered,
        'result': {'yes': 0, 'no': harm}.get(covered, 1),
        'otherwise': '' if covered == 'yes' else REMEDY, **changes}


def checks(plugin=True, **results):
    """Return the output of ``upgrade check --json``.

    :param results: ``Name_of_a_check=(result, details)``
    """
    found = {
        'Plugin': (0, 'nova-compute is configured to load the plugin.')
        if plugin else (2, 'compute_driver is libvirt.LibvirtDriver: guests '
                        'are migrated as Nova does it.'),
        'Release of Nova': (0, 'Nova 34.0.0.'),
        'Migration address': (0, '192.0.2.1 is an address of this host.'),
        'ssh to the migration address': (0, 'sshd answers.'),
        'TLS': (0, 'Not used: [libvirt] live_migration_with_native_tls.'),
        **{name.replace('_', ' '): result
           for name, result in results.items()}}
    return {'name': 'nova_migfix on this host', 'checks': [
        {'check': name, 'result': result, 'details': details}
        for name, (result, details) in found.items()]}


def capabilities(**changes):
    """Return the capabilities of a host, as preflight prints them."""
    return {
        'hypervisor': 8002002, 'libvirt': 10000000, 'emulators': [
            {'path': EMULATOR, 'arch': 'x86_64', 'virt_types': ['kvm'],
             'machines': ['pc-q35-7.2', 'pc-q35-8.2']}],
        'cpus': {'kvm': CPU}, 'secrets': [], 'queues': 256,
        'offloads': ['UDP tunnel', 'USO'], 'post_copy': True, **changes}


def needs(instances, machine='pc-q35-8.2', **changes):
    """Return guests with equal needs, as preflight prints them."""
    return {'instances': list(instances), 'needs': {
        'machine': {'emulator': EMULATOR, 'arch': 'x86_64',
                    'machine': machine, 'virt_type': 'kvm'},
        'cpu': CPU, 'is_passthrough': False, 'secrets': [], 'queues': 1,
        'offloads': [], 'post_copy': True, 'hypervisor': 8002002,
        'skips_version': False, 'libvirt': 10000000, **changes}}


def preflight(host, findings, guests=50, plugin=True, notes=(), **other):
    """Return the output of ``preflight --json``.

    :param other: other values; by default all guests run on all hosts
    """
    known = list(dict.fromkeys(row['instance'] for row in findings))
    known += [str(uuid.uuid5(uuid.NAMESPACE_DNS, f'{host}-{number}'))
              for number in range(len(known), guests)]
    return {'host': host, 'destination': '',
            'fixes': list(FIXES if plugin else ()), 'guests': guests,
            'seconds': 0.21, 'findings': findings, 'notes': list(notes),
            'address': None, 'checks': [], 'capabilities': capabilities(),
            'needs': [needs(known)] if guests else [], **other}


def registered(printed, rc=0):
    """Return Ansible's result of a command that has printed JSON."""
    return {'rc': rc, 'stdout': json.dumps(printed), 'stderr': ''}


def write(directory, name, upgrade, preflight):
    """Write the results of one host, such as from registered()."""
    (directory / f'{name}.json').write_text(json.dumps(
        {'upgrade': upgrade, 'preflight': preflight}))


def write_many(directory, hosts, guests, often=.25):
    """Write the results of a fleet, which are the same each time.

    It has unreachable hosts, hosts without the plugin, and all findings.

    :param often: probability of each finding in a guest
    """
    chance = random.Random(6)   # noqa: S311
    for number in range(hosts):
        name = f'compute{number + 1:04}'
        if number % 200 == 7:
            write(directory, name, UNREACHABLE, {})
        elif number % 200 == 77:
            write(directory, name, NO_CONTAINER, NO_CONTAINER)
        else:
            _write_one(directory, name, number, guests, often, chance)
    (directory / 'hosts').write_text(''.join(
        f'compute{number + 1:04}\n' for number in range(hosts)))


def _write_one(directory, name, number, guests, often, chance):
    plugin = number % 4 != 3
    kinds = [row[0] for row in KINDS if row[0] != 'tls' or number % 50 == 9]
    rows, uuids = [], []
    for index in range(guests):
        guest = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        uuids.append(guest)
        if number % 5 == 0:
            continue
        rows += [finding(kind, guest, plugin,
                         f'instance-{number * guests + index:08x}')
                 for kind in kinds if chance.random() < often]
    write(directory, name, registered(checks(plugin), 0 if plugin else 2),
          registered(preflight(name, rows, guests, plugin,
                               **_facts(number, uuids))))


def _facts(number, uuids):
    """Return capabilities and needs of a host of a fleet.

    One in 100 has an older plugin. Of the others one in ten has an older QEMU,
    one in ten an older CPU, one in 50 a kernel without offloads. Guests have
    three machine types or numbers of queues.
    """
    if number % 100 == 50:
        return {'capabilities': None, 'needs': []}
    has_old_qemu, has_old_cpu = number % 10 == 1, number % 10 == 2
    cpu = OLD_CPU if has_old_cpu else CPU
    able, common = {'cpus': {'kvm': cpu}}, {'cpu': cpu}
    if has_old_qemu:
        able.update(hypervisor=7002000, libvirt=9000000, emulators=[
            {**capabilities()['emulators'][0], 'machines': ['pc-q35-7.2']}])
        common.update(hypervisor=7002000, libvirt=9000000)
    if number % 50 == 3:
        able['offloads'] = []
    new = 'pc-q35-7.2' if has_old_qemu else 'pc-q35-8.2'
    return {'capabilities': capabilities(**able), 'needs': [
        needs(uuids[::3], 'pc-q35-7.2', **common),
        needs(uuids[1::3], new, **common, offloads=(
            [] if has_old_qemu or number % 50 == 3 else ['USO'])),
        needs(uuids[2::3], new, queues=4, **common)]}
