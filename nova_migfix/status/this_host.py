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
"""What this host offers to guests, and what its own guests need elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple
from typing import TypeVar

import nova.conf
from oslo_privsep import daemon

from nova_migfix.abi import tap
from nova_migfix.status import facts
from nova_migfix.status import hypervisor
from nova_migfix.status import privileges
from nova_migfix.status import queries
from nova_migfix.status import userfault

CONF = nova.conf.CONF

T = TypeVar('T')


class Guest(NamedTuple):
    """A guest of this host.

    :ivar cpu: XML; '' if libvirt cannot compare it
    """

    needs: facts.Needs
    cpu: str


class ThisHost(NamedTuple):
    """:ivar guests: by UUID"""

    capabilities: facts.Capabilities = facts.Capabilities()
    guests: dict[str, Guest] = {}


def read(domains: Iterable[hypervisor.Domain],
         note: Callable[[str], object]) -> ThisHost:
    """Ask libvirt and the kernel.

    :param note: is called with each thing that is not known
    :raises Error: libvirt does not answer
    """
    domains = list(domains)
    with hypervisor.asked(note) as asked:
        kinds = {domain.document.get('type', '') for domain in domains}
        host = asked.capabilities(
            kinds.union([CONF.libvirt.virt_type]))._replace(
                queues=_tap('queues', tap.max_queues, note),
                offloads=_tap('offloads', tap.offloads, note),
                post_copy=userfault.state()[0])
        guests = {domain.uuid: _comparable(asked, host, Guest(
            *asked.guest(domain.xml, host)))
            for domain in domains}
    return ThisHost(host, {
        domain.uuid: guests[domain.uuid]._replace(
            needs=_complete(guests[domain.uuid].needs, host, domain))
        for domain in domains})


def _comparable(asked: queries.Queries, host: facts.Capabilities,
                guest: Guest) -> Guest:
    """Forget the CPU of a guest if libvirt would refuse it even on its host.

    That happens after some upgrades of libvirt or QEMU, which report other
    features than before. Nothing follows for other hosts.
    """
    cpu = guest.needs.cpu
    own = (host.cpus or {}).get(guest.needs.machine.virt_type)
    if guest.needs.is_passthrough or not (
            asked.answer(guest.needs, guest.cpu).cpu
            or cpu and own and cpu.features - own.features):
        return guest
    return Guest(guest.needs._replace(cpu=None), '')


def _tap(thing: str, call: Callable[[], T],
         note: Callable[[str], object]) -> T | None:
    try:
        return privileges.call(call)
    except (OSError, daemon.FailedToDropPrivileges) as error:
        note(f'Not known: {thing} of tap devices: {error}')
        return None


def _complete(needs: facts.Needs, host: facts.Capabilities,
              domain: hypervisor.Domain) -> facts.Needs:
    """Add the needs that depend on this host and the state of the guest."""
    offloads = needs.offloads
    if offloads:
        # QEMU offers a guest only offloads that this kernel has.
        offloads = None if host.offloads is None else offloads & host.offloads
    return needs._replace(
        offloads=offloads,
        # Nova migrates a paused guest without post-copy.
        post_copy=(CONF.libvirt.live_migration_permit_post_copy
                   and not domain.is_paused),
        hypervisor=host.hypervisor, libvirt=host.libvirt,
        skips_version=CONF.workarounds.skip_hypervisor_version_check_on_lm)


def as_json(host: ThisHost) -> dict[str, Any]:
    """Return capabilities and needs for JSON; equal guests share an entry."""
    groups: dict[facts.Needs, list[str]] = {}
    for uuid, guest in sorted(host.guests.items()):
        groups.setdefault(guest.needs, []).append(uuid)
    return {'capabilities': facts.as_json(host.capabilities),
            'needs': [{'instances': uuids, 'needs': facts.as_json(needs)}
                      for needs, uuids in groups.items()]}
