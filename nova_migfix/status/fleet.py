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
"""Many hosts: what each has told of itself and of its guests, merged.

A host is asked twice, ``upgrade check`` and ``preflight``, and either may have
gone wrong: whatever comes of it becomes a :class:`Host`. Together they answer
what no host knows alone: to where a guest may be moved that needs a fix on the
destination. Nova is not needed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import enum
import json
import pathlib
import re
from typing import Any

from nova_migfix import status

#: in the directory, names of the hosts that were asked, one a line
ASKED = 'hosts'
_SUFFIX = '.json'

UPGRADE, PREFLIGHT = COMMANDS = 'upgrade', 'preflight'

#: what a finding has beside its result, as preflight prints it
TEXTS = ('instance', 'domain', 'finding', 'device', 'running', 'computed',
         'bug', 'fix', 'covered', 'otherwise')
_MAY_BE_NOTHING = frozenset(('running', 'computed'))

# Of the checks of ``upgrade check``, and their results.
_PLUGIN, _TLS = 'Plugin', 'TLS'
_OF_A_SOURCE = ('Migration address', 'ssh to the migration address')
_WARNING, _FAILURE = 1, 2

# Findings that depend on what QEMU negotiates, for which there is no fix.
_OVER_TLS = frozenset(('tls', 'old-library'))
_SAFE_TLS = 'a policy for TLS'

# A note that a guest was not looked at completely; see preflight.
_INCOMPLETE = re.compile('[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}: ')


class State(enum.Enum):
    """What came of asking a host."""

    TOLD = 'told'
    FAILED = 'failed'
    UNREACHABLE = 'unreachable'


class Drain(enum.Enum):
    """Whether all guests of a host can be moved away; the worst first."""

    NO = 'no'               # one would fail, or be harmed
    UNKNOWN = 'unknown'
    CHANGES = 'changes'     # none fails, but one would not stay as it is
    DEPENDS = 'depends'     # yes, to some of the other hosts
    YES = 'yes'


@dataclasses.dataclass
class Host:
    """One host, as it was found; the names are those of JSON."""

    host: str                   # as the inventory has it
    name: str = ''              # as Nova has it
    state: State = State.TOLD
    drain: Drain = Drain.UNKNOWN
    why: list[str] = dataclasses.field(default_factory=list)
    #: what a destination must have
    needs: list[str] = dataclasses.field(default_factory=list)
    guests: int = 0
    seconds: float | None = None
    fixes: list[str] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    checks: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    findings: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def check(self, name: str) -> dict[str, Any]:
        """Return one of the checks, an empty one if it was not made."""
        return next((check for check in self.checks
                     if check['check'] == name), {'result': 0, 'details': ''})

    @property
    def offers(self) -> frozenset[str]:
        """What it has for the guests that it is given."""
        tls = self.check(_TLS)
        safe = {_SAFE_TLS} if 'safe.' in tls['details'] else set()
        return frozenset(safe.union(() if self.must_restart else self.fixes))

    @property
    def must_restart(self) -> bool:
        """Its nova-compute runs, but not yet with the plugin."""
        return bool(self.check(_PLUGIN)['result'] == _WARNING)


# -- what a host has told ----------------------------------------------------

def read(directory: pathlib.Path) -> list[Host]:
    """Return the hosts of a directory, by name.

    :param directory: with a file ``HOST.json`` for each host that has told
        something, and maybe ``hosts``, the names of all that were asked
    :raises Error: there is no such directory, or nothing in it
    """
    try:
        files = {path.name[:-len(_SUFFIX)]: path
                 for path in directory.iterdir()
                 if path.name.endswith(_SUFFIX)}
        asked = directory / ASKED
        names = set(asked.read_text().split() if asked.exists() else ())
        hosts = [_read(name, files.get(name))
                 for name in sorted(names.union(files))]
    except OSError as error:
        raise status.Error(f'{directory} cannot be read: {error}') from error
    if not hosts:
        raise status.Error(f'{directory}: no host has told anything.')
    return hosts


def _read(name: str, path: pathlib.Path | None) -> Host:
    host = Host(name)
    try:
        registered = json.loads(path.read_text()) if path else {}
        for command in COMMANDS:
            _take(host, command, registered.get(command) or {})
    except (ValueError, AttributeError, RecursionError) as error:
        host.errors.append(f'What has come from it is not understood: {error}')
    if host.state is State.TOLD and host.errors:
        host.state = State.FAILED
    return host


def _take(host: Host, command: str, result: dict[str, Any]) -> None:
    """Put into a host what one command has printed there.

    :param result: as Ansible registers it
    """
    if host.state is State.UNREACHABLE:
        return
    if result.get('unreachable'):
        host.state = State.UNREACHABLE
        host.errors.append(_last_line(result.get('msg')))
        return
    try:
        _TAKE[command](host, json.loads(result.get('stdout') or ''))
    except (ValueError, KeyError, TypeError, AttributeError,
            RecursionError):
        complaint = _complaint(result)
        # of both commands mostly the same
        if complaint not in host.errors:
            host.errors.append(complaint)


def _take_upgrade(host: Host, told: dict[str, Any]) -> None:
    host.checks = [{'check': str(check['check']),
                    'result': int(check['result']),
                    'details': str(check['details'])}
                   for check in told['checks']]


def _take_preflight(host: Host, told: dict[str, Any]) -> None:
    host.findings = [{**{name: _text(name, row[name]) for name in TEXTS},
                      'result': int(row['result'])}
                     for row in told['findings']]
    host.name, host.guests = str(told['host']), int(told['guests'])
    host.seconds = float(told['seconds'])
    host.notes = list(map(str, told['notes']))
    host.fixes = list(map(str, told['fixes']))


def _text(name: str, value: Any) -> str | None:
    return None if value is None and name in _MAY_BE_NOTHING else str(value)


_TAKE = {UPGRADE: _take_upgrade, PREFLIGHT: _take_preflight}


def _complaint(result: dict[str, Any]) -> str:
    if not result:
        return 'nothing has come from it.'
    said = next(filter(None, (
        _last_line(result.get(key))
        for key in ('stderr', 'module_stderr', 'msg'))), '')
    said = said or 'it has not printed what nova-migfix-status does'
    code = result.get('rc')
    return said if code is None else f'exit code {code}: {said}'


def _last_line(text: Any) -> str:
    lines = str(text or '').strip().splitlines()
    return lines[-1].strip() if lines else ''


# -- whether a host can be drained -------------------------------------------

def judge(hosts: list[Host]) -> None:
    """Say of each host whether it can be drained, and why not."""
    able: dict[frozenset[str], int] = {}
    for host in hosts:
        needs = _needs(host)
        if needs not in able:
            able[needs] = sum(needs <= other.offers for other in hosts)
        host.needs = sorted(needs)
        # itself it is no destination
        _judge(host, able[needs] - (needs <= host.offers), len(hosts) - 1)


def _needs(host: Host) -> frozenset[str]:
    """Return what a destination has to have for the guests of a host."""
    return frozenset(
        _SAFE_TLS if row['finding'] in _OVER_TLS else row['fix']
        for row in host.findings
        if row['finding'] in _OVER_TLS or row['covered'].startswith('if '))


def _judge(host: Host, able: int, others: int) -> None:
    reasons = [
        *((Drain.UNKNOWN, error) for error in host.errors),
        *((Drain.UNKNOWN, note) for note in host.notes
          if _INCOMPLETE.match(note)),
        *_of_guests(host), *_of_checks(host)]
    if host.needs:
        what = ', '.join(host.needs)
        reasons.append((
            Drain.NO if not able else
            Drain.DEPENDS if able < others else Drain.YES,
            f'The destination needs {what}: {able} of {others} other hosts '
            'are known to have it.'))
    order = list(Drain)
    reasons.sort(key=lambda reason: order.index(reason[0]))
    host.drain = reasons[0][0] if reasons else Drain.YES
    host.why = [text for _drain, text in reasons]


def _of_guests(host: Host) -> Iterator[tuple[Drain, str]]:
    here = [row for row in host.findings if row['finding'] not in _OVER_TLS]
    harmed = _guests(row for row in here if row['result'] == _FAILURE)
    changed = _guests(row for row in here if row['covered'] == 'no') - harmed
    if harmed:
        yield (Drain.NO, 'Guests that would fail or be harmed: '
                         f'{len(harmed)} of {host.guests}.')
    if changed:
        yield (Drain.CHANGES, 'Guests that would not stay as they are: '
                              f'{len(changed)} of {host.guests}.')


def _of_checks(host: Host) -> Iterator[tuple[Drain, str]]:
    mended = _guests(row for row in host.findings if row['covered'] != 'no')
    if host.must_restart and mended:
        yield Drain.NO, host.check(_PLUGIN)['details']
    # Without the plugin nothing is fetched by that address.
    if host.check(_PLUGIN)['result'] != _FAILURE and mended:
        for name in _OF_A_SOURCE:
            check = host.check(name)
            if check['result'] == _FAILURE:
                yield Drain.NO, f'{name}: {check["details"]}'


def _guests(rows: Iterable[dict[str, Any]]) -> set[str]:
    return {row['instance'] for row in rows}


# -- all of it ---------------------------------------------------------------

def summary(hosts: list[Host]) -> dict[str, Any]:
    """Count hosts, and guests by what was found."""
    rows = [row for host in hosts for row in host.findings]
    return {
        'hosts': len(hosts),
        'states': {state.value: sum(host.state is state for host in hosts)
                   for state in State},
        'drain': {drain.value: sum(host.drain is drain for host in hosts)
                  for drain in Drain},
        'guests': sum(host.guests for host in hosts),
        'guests_with_findings': len(_guests(rows)),
        'guests_not_covered': len(_guests(
            row for row in rows if row['covered'] == 'no')),
        'findings': len(rows),
    }
