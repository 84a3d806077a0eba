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

"""The remains of a migration: the guest, its files and its records.

`look` collects them on both hosts and in OpenStack. RULES are true if the
guest is on exactly one host, with every byte of its disks, and all of
OpenStack names this host.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses

import fixtures
from openstack import exceptions

from lab import cloud
from lab import disks
from lab import guest
from lab import process
from lab import topology

# The state of a disk on a host; any other text is the difference.
INTACT, ABSENT = 'intact', 'absent'

# The final states of a migration record.
FINAL = ('completed', 'failed', 'error', 'cancelled')

# libvirt's state of the domain, by the state of the instance.
_DOMAIN_STATES = {'ACTIVE': 'running', 'PAUSED': 'paused',
                  'SHUTOFF': 'shut off'}


@dataclasses.dataclass(frozen=True)
class OnHost:
    """The remains on one host.

    :param domain: libvirt's state of the domain and its reason; '' without it
    :param files: the names of the files in the instance's directory; None
        without this directory
    :param disks: ``{name: INTACT, ABSENT or the difference}``
    :param tap: whether Open vSwitch or the kernel has the tap device
    """

    domain: str
    files: tuple[str, ...] | None
    disks: Mapping[str, str]
    tap: bool


@dataclasses.dataclass(frozen=True)
class Remains:
    """The remains on all hosts and in OpenStack.

    :param host: the host that Nova names
    :param record: the status of the newest migration record
    :param bindings: ``{host: status}`` of the port
    :param allocations: the hosts on which the instance has resources
    :param moving: the hosts on which the migration record has resources
    """

    host: str
    vm_state: str
    task_state: str | None
    record: str
    bindings: Mapping[str, str]
    allocations: list[str]
    moving: list[str]
    on: Mapping[str, OnHost]

    @property
    def elsewhere(self) -> dict[str, OnHost]:
        """The remains on the hosts that Nova does not name."""
        return {name: here for name, here in self.on.items()
                if name != self.host}


def references(cloud: cloud.Cloud, instance: guest.Guest,
               stack: fixtures.Fixture) -> dict[str, disks.Snapshot]:
    """Return ``{name: copy}`` of a guest's disks.

    :param stack: deletes the copies at its end
    """
    host = cloud.hosts[instance.host]
    names = [path.name for path in instance.files(host.name).glob('disk*')
             if path.name != 'disk.info']
    return {name: stack.useFixture(disks.Snapshot(
        host, instance.disk(host.name, name))) for name in names}


def look(cloud: cloud.Cloud, instance: guest.Guest,
         before: Mapping[str, disks.Snapshot]) -> Remains:
    """Return the remains of a guest's last migration.

    :param before: from `references`, before the migration
    """
    record = instance.last_record()
    return Remains(
        instance.host, instance.vm_state, instance.task_state, record.status,
        instance.binding_status(), cloud.allocations(instance.id),
        cloud.allocations(record.uuid),
        {name: _on_host(cloud, instance, name, before)
         for name in topology.COMPUTES})


def _on_host(cloud: cloud.Cloud, instance: guest.Guest, name: str,
             before: Mapping[str, disks.Snapshot]) -> OnHost:
    host = cloud.hosts[name]
    directory = instance.files(name)
    ports = host.run('ovs-vsctl', '--timeout=5', 'list-ports', 'br-int')
    links = host.run('ip', '-oneline', 'link')
    return OnHost(
        instance.domain_state(name),
        tuple(sorted(path.name for path in directory.iterdir()))
        if directory.exists() else None,
        {disk: _compare(cloud, instance, name, disk, copy)
         for disk, copy in before.items()},
        instance.tap in ports or instance.tap in links)


def _compare(cloud: cloud.Cloud, instance: guest.Guest, name: str, disk: str,
             before: disks.Snapshot) -> str:
    if not (instance.files(name) / disk).exists():
        return ABSENT
    try:
        with disks.Snapshot(cloud.hosts[name],
                            instance.disk(name, disk)) as now:
            return now.difference(before) or INTACT
    except (process.LabError, fixtures.MultipleExceptions) as error:
        return f'cannot be read: {error}'


@dataclasses.dataclass(frozen=True)
class Rule:
    """A statement about the remains.

    :param breach: returns the finding that contradicts it, '' without one
    """

    text: str
    breach: Callable[[Remains], str]


def _disks(found: Remains) -> str:
    here = found.on.get(found.host)
    if not here:
        return f'Nova names {found.host}'
    wrong = {name: state for name, state in here.disks.items()
             if state != INTACT}
    return f'on {found.host}: {wrong}' if wrong else ''


def _copies(found: Remains) -> str:
    return ', '.join(f'{name}: {here.files} {dict(here.disks)}'
                     for name, here in found.elsewhere.items()
                     if here.files is not None)


def _domain(found: Remains) -> str:
    here = found.on.get(found.host)
    wanted = _DOMAIN_STATES.get(found.vm_state, '')
    if here and here.domain and here.domain.startswith(wanted):
        return ''
    where = {name: each.domain for name, each in found.on.items()}
    return f'{found.vm_state} on {found.host}, but libvirt says {where}'


def _exists(found: Remains) -> str:
    return '' if any(each.domain for each in found.on.values()) else (
        'no host has it')


def _twin(found: Remains) -> str:
    return ', '.join(f'{name}: {here.domain}'
                     for name, here in found.elsewhere.items() if here.domain)


def _tap(found: Remains) -> str:
    return ', '.join(name for name, here in found.elsewhere.items()
                     if here.tap)


def _binding(found: Remains) -> str:
    wanted = {found.host: 'ACTIVE'}
    return '' if found.bindings == wanted else str(found.bindings)


def _allocation(found: Remains) -> str:
    if found.allocations == [found.host] and not found.moving:
        return ''
    return f'instance: {found.allocations}, migration: {found.moving}'


def _record(found: Remains) -> str:
    return '' if found.record in FINAL else found.record


def _task(found: Remains) -> str:
    return found.task_state or ''


RULES: Mapping[str, Rule] = {
    'disks': Rule('the disks are intact on the host that Nova names', _disks),
    'copies': Rule('the other host has no files of the guest', _copies),
    'domain': Rule('the domain is on the host that Nova names, in the state '
                   'that Nova names', _domain),
    'exists': Rule('a host has the domain', _exists),
    'twin': Rule('the other host has no domain', _twin),
    'tap': Rule('the other host has no tap device', _tap),
    'binding': Rule('the port is bound to the host that Nova names only',
                    _binding),
    'allocation': Rule('placement has the resources on the host that Nova '
                       'names only', _allocation),
    'record': Rule('the migration record is final', _record),
    'task': Rule('the instance has no task', _task),
}


def scour(cloud: cloud.Cloud, instance: guest.Guest) -> None:
    """Delete the remains that Nova has lost, so that the lab can go on.

    Nova itself deletes the rest, with the instance.
    """
    host = None
    with contextlib.suppress(exceptions.NotFoundException):
        host = instance.host
        cloud.api.placement.delete(
            f'/allocations/{instance.last_record().uuid}')
    for name in topology.COMPUTES:
        on = cloud.hosts[name]
        on.succeeds('virsh', 'destroy', instance.domain)
        on.succeeds('virsh', 'undefine', instance.domain)
        on.succeeds('ovs-vsctl', '--timeout=5', '--if-exists', 'del-port',
                    instance.tap)
        if name != host:
            own = instance.disk(name, '')
            on.succeeds('rm', '-rf', own, f'{own}_resize')
