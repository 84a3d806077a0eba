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
"""Judge whether the guests of a host can be moved to other hosts."""

from __future__ import annotations

from collections.abc import Iterator
import re

from nova_migfix.status import fleet
from nova_migfix.status.fleet import Drain
from nova_migfix.status.fleet import Host
from nova_migfix.status.matching import Verdict
from nova_migfix.status import placement


# A note of preflight that it could not check a guest completely.
_INCOMPLETE = re.compile('[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}: ')
# Checks of ``upgrade check`` that concern a source.
_OF_A_SOURCE = ('Migration address', 'ssh to the migration address')
_FAILURE = 2


def judge(hosts: list[Host]) -> placement.Matrix:
    """Set for each host whether it can be drained, the reasons, and where to.

    :returns: which hosts can run which guests
    """
    able: dict[frozenset[str], int] = {}
    matrix = placement.match(hosts)
    for host in hosts:
        needs = frozenset().union(*placement.fixes_needed(host).values())
        if needs not in able:
            able[needs] = sum(needs <= other.offers for other in hosts)
        host.needs = sorted(needs)
        # a host is not its own destination
        _judge(host, able[needs] - (needs <= host.offers), len(hosts) - 1,
               matrix)
    return matrix


def _judge(host: Host, able: int, others: int,
           matrix: placement.Matrix) -> None:
    reasons = [
        *((Drain.UNKNOWN, error) for error in host.errors),
        *((Drain.UNKNOWN, note) for note in host.notes
          if _INCOMPLETE.match(note)),
        *_of_guests(host), *_of_checks(host),
        *_of_destinations(host, others, matrix)]
    if host.needs:
        # the verdict is that of the destinations
        reasons.append((
            Drain.YES, f'The destination needs {", ".join(host.needs)}: '
            f'{able} of {others} other hosts are known to have it.'))
    order = list(Drain)
    reasons.sort(key=lambda reason: order.index(reason[0]))
    host.drain = reasons[0][0] if reasons else Drain.YES
    host.why = [text for _drain, text in reasons]


def _of_destinations(host: Host, others: int, matrix: placement.Matrix,
                     ) -> Iterator[tuple[Drain, str]]:
    """Yield the reason if not all other hosts can run all guests."""
    if not host.guests:
        return
    if not others:
        yield Drain.UNKNOWN, 'The report has no other host.'
        return
    able = matrix.count(host, host.destinations['yes'])
    if able == others:
        return
    if able:
        yield Drain.DEPENDS, (f'{able} of {others} other hosts are known to '
                              'be able to run all guests.')
        return
    found = matrix.best(host)
    refused, unknown = found[Verdict.NO], found[Verdict.UNKNOWN]
    if refused:
        yield Drain.NO, ('Guests that no other host can run: '
                         f'{refused} of {host.guests}.')
    if unknown:
        yield Drain.UNKNOWN, (
            'Guests of which it is not known whether another host can run '
            f'them: {unknown} of {host.guests}. Not compared: '
            f'{", ".join(matrix.not_compared(host))}.')
    if not refused and not unknown:
        yield Drain.DEPENDS, ('No other host can run all guests, but there '
                              'is one for each.')


def _of_guests(host: Host) -> Iterator[tuple[Drain, str]]:
    here = [row for row in host.findings
            if row['finding'] not in fleet.OVER_TLS]
    harmed, unsure, changed = (fleet.guests(
        row for row in here if row[name] == value) for name, value in (
            ('result', _FAILURE), ('covered', 'not known'),
            ('covered', 'no')))
    changed -= harmed
    if harmed:
        yield (Drain.NO, 'Guests that would fail or be harmed: '
                         f'{len(harmed)} of {host.guests}.')
    if changed:
        yield (Drain.CHANGES, 'Guests that would change: '
                              f'{len(changed)} of {host.guests}.')
    if unsure:
        yield (Drain.DEPENDS, 'Guests whose migration depends on the '
                              'destination or the guest: '
                              f'{len(unsure)} of {host.guests}.')


def _of_checks(host: Host) -> Iterator[tuple[Drain, str]]:
    covered = fleet.guests(row for row in host.findings
                           if row['covered'] not in ('no', 'not known'))
    if host.must_restart and covered:
        yield Drain.NO, host.check(fleet.PLUGIN)['details']
    # Only the plugin fetches from that address.
    if host.check(fleet.PLUGIN)['result'] != _FAILURE and covered:
        for name in _OF_A_SOURCE:
            check = host.check(name)
            if check['result'] == _FAILURE:
                yield Drain.NO, f'{name}: {check["details"]}'
