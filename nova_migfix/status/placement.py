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
"""Match the guests of all hosts with all hosts.

Guests with equal needs are a class, and so are hosts with equal capabilities,
so that the cost follows the number of classes. Sets of classes of hosts are
bits of an integer.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools
import json
from typing import Any
from typing import NamedTuple

from nova_migfix.status import facts
from nova_migfix.status import fleet
from nova_migfix.status import matching
from nova_migfix.status.matching import Reason
from nova_migfix.status.matching import Verdict


class Guests(NamedTuple):
    """A class of guests.

    :ivar needs: None: not known
    :ivar fixes: fixes, and TLS policy, that their destination needs
    """

    needs: facts.Needs | None
    fixes: frozenset[str]


@dataclasses.dataclass
class Hosts:
    """A class of hosts.

    :ivar capabilities: None: not known
    :ivar offers: fixes and TLS policy; None: the hosts did not answer
    :ivar doubts: fixes and TLS policy that they may offer
    :ivar names: names in the inventory
    """

    capabilities: facts.Capabilities | None
    offers: frozenset[str] | None
    doubts: frozenset[str]
    names: list[str] = dataclasses.field(default_factory=list)


# Reasons whose kind is not in matching.KINDS; a missing fix is another one.
_NO_ANSWER = Reason('capabilities', Verdict.UNKNOWN, '',
                    'not known: the host did not answer')
_NO_FACTS = Reason('capabilities', Verdict.UNKNOWN, '',
                   'not known: an older release of the plugin')


@dataclasses.dataclass
class Matrix:
    """Which hosts can run which guests.

    :ivar cells: reasons, by class of guests and class of hosts
    """

    guests: list[Guests]
    hosts: list[Hosts]
    cells: list[list[list[Reason]]]

    def __post_init__(self) -> None:
        self._classes = {name: index for index, one in enumerate(self.hosts)
                         for name in one.names}
        #: bits of the classes of hosts with each verdict, by class of guests
        self._bits = [
            {verdict: sum(1 << column for column, reasons in enumerate(row)
                          if matching.verdict(reasons) is verdict)
             for verdict in Verdict} for row in self.cells]

    def _others(self, host: fleet.Host) -> int:
        """Return the bits of classes with a host that is not this one."""
        own = self._classes[host.host]
        is_alone = len(self.hosts[own].names) == 1
        return (1 << len(self.hosts)) - 1 & ~(is_alone << own)

    def place(self, host: fleet.Host) -> None:
        """Set the classes of other hosts that can run all guests of a host."""
        rows = [self._bits[one['class']] for one in host.placement]
        others = self._others(host)
        refused = functools.reduce(
            int.__or__, (row[Verdict.NO] for row in rows), 0) & others
        able = functools.reduce(
            int.__and__, (row[Verdict.YES] for row in rows), others)
        host.destinations = {
            'yes': _indices(able), 'no': _indices(refused),
            'unknown': _indices(others & ~able & ~refused)}

    def count(self, host: fleet.Host, classes: Iterable[int]) -> int:
        """Return the number of other hosts in some classes."""
        own = self._classes[host.host]
        return sum(len(self.hosts[index].names) - (index == own)
                   for index in classes)

    def best(self, host: fleet.Host) -> dict[Verdict, int]:
        """Return the number of guests by the best verdict of other hosts."""
        found = dict.fromkeys(Verdict, 0)
        others = self._others(host)
        for one in host.placement:
            row = self._bits[one['class']]
            best = next((verdict for verdict in reversed(Verdict)
                         if row[verdict] & others), Verdict.NO)
            found[best] += one['guests']
        return found

    def not_compared(self, host: fleet.Host) -> list[str]:
        """Return the things of which other hosts' values are not known."""
        others = _indices(self._others(host))
        return sorted({
            reason.value if reason.kind == 'fix' else thing(reason)
            for one in host.placement for column in others
            for reason in self.cells[one['class']][column]
            if reason.verdict is Verdict.UNKNOWN})

    def as_json(self) -> dict[str, Any]:
        return {
            'guests': [{'needs': one.needs and facts.as_json(one.needs),
                        'fixes': sorted(one.fixes)} for one in self.guests],
            'hosts': [{
                'hosts': one.names,
                'capabilities': one.capabilities and facts.as_json(
                    one.capabilities),
                'offers': None if one.offers is None else sorted(one.offers),
                'doubts': sorted(one.doubts)}
                for one in self.hosts],
            'matrix': [[{
                'verdict': matching.verdict(reasons).value,
                'reasons': [{**reason._asdict(),
                             'verdict': reason.verdict.value}
                            for reason in reasons]}
                for reasons in row] for row in self.cells]}


def thing(reason: Reason) -> str:
    """Return the thing that a reason is about, for the user."""
    kind = matching.KINDS.get(reason.kind)
    return kind.device if kind else reason.kind


def _indices(bits: int) -> list[int]:
    return [index for index in range(bits.bit_length()) if bits >> index & 1]


def match(hosts: list[fleet.Host]) -> Matrix:
    """Match all guests with all hosts, and set ``placement`` of each host."""
    classes: dict[str, Hosts] = {}
    guests: dict[Guests, int] = {}
    for host in hosts:
        _classify(host, guests)
    needed = frozenset[str]().union(
        *(one.needs.secrets for one in guests if one.needs))
    for host in hosts:
        offers = host.offers if host.state is fleet.State.ANSWERED else None
        capabilities = _relevant(host.capabilities, needed)
        key = json.dumps([
            capabilities and facts.as_json(capabilities),
            None if offers is None else sorted(offers), sorted(host.doubts)])
        classes.setdefault(key, Hosts(
            capabilities, offers, host.doubts)).names.append(host.host)
    matrix = Matrix([*guests], [*classes.values()], [
        [_reasons(one, other) for other in classes.values()]
        for one in guests])
    for host in hosts:
        matrix.place(host)
    return matrix


def _relevant(capabilities: facts.Capabilities | None,
              secrets: frozenset[str]) -> facts.Capabilities | None:
    """Forget secrets that no guest needs: Nova makes some on each host."""
    if capabilities is None or capabilities.secrets is None:
        return capabilities
    return capabilities._replace(secrets=capabilities.secrets & secrets)


def _classify(host: fleet.Host, guests: dict[Guests, int]) -> None:
    """Set ``placement`` of a host, and add new classes to *guests*."""
    fixes = fixes_needed(host)
    nothing: frozenset[str] = frozenset()
    found: dict[int, list[str]] = {}
    for group in host.groups:
        for uuid in group.instances:
            one = Guests(group.needs, fixes.get(uuid, nothing))
            found.setdefault(guests.setdefault(one, len(guests)), []).append(
                uuid)
    host.placement = [{'class': index, 'guests': len(uuids),
                       'instances': uuids} for index, uuids in found.items()]
    missing = host.guests - sum(one['guests'] for one in host.placement)
    if missing > 0:
        one = Guests(None, nothing.union(*fixes.values()))
        host.placement.append({
            'class': guests.setdefault(one, len(guests)), 'guests': missing,
            'instances': []})


def fixes_needed(host: fleet.Host) -> dict[str, frozenset[str]]:
    """Return the fixes and policy that guests need on their destination.

    :returns: by UUID, for guests that need any
    """
    found: dict[str, set[str]] = {}
    for row in host.findings:
        if row['finding'] in fleet.OVER_TLS:
            found.setdefault(row['instance'], set()).add(fleet.SAFE_TLS)
        elif row['covered'].startswith('if '):
            found.setdefault(row['instance'], set()).add(row['fix'])
    return {uuid: frozenset(fixes) for uuid, fixes in found.items()}


def _reasons(guests: Guests, hosts: Hosts) -> list[Reason]:
    if hosts.offers is None:
        return [_NO_ANSWER]
    reasons = [Reason('fix', Verdict.UNKNOWN, fix, 'not known')
               if fix in hosts.doubts else
               Reason('fix', Verdict.NO, fix, 'not active there')
               for fix in sorted(guests.fixes - hosts.offers)]
    if guests.needs is None or hosts.capabilities is None:
        return [*reasons, _NO_FACTS]
    return reasons + matching.compare(guests.needs, hosts.capabilities)
