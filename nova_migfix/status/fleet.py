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
"""Merge the answers of many hosts about themselves and their guests.

Each host runs ``upgrade check`` and ``preflight``; either may fail. A
:class:`Host` has the result. All hosts together show where a guest can be
moved that needs a fix on the destination. This module does not need Nova.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import enum
import json
import pathlib
from typing import Any
from typing import NamedTuple

from nova_migfix import status
from nova_migfix.status import facts

#: file in the directory with the names of all hosts, one per line
ASKED = 'hosts'
_SUFFIX = '.json'

UPGRADE, PREFLIGHT = COMMANDS = 'upgrade', 'preflight'

#: fields of a finding in preflight's JSON, without result
TEXTS = ('instance', 'domain', 'finding', 'device', 'running', 'computed',
         'bug', 'fix', 'covered', 'otherwise')
_MAY_BE_NOTHING = frozenset(('running', 'computed'))

#: most guests of a host, and seconds of a command
_MOST = 10 ** 6
#: characters of an error that are shown
_SHOWN = 500

# Names and results of checks of ``upgrade check``.
PLUGIN, _TLS = 'Plugin', 'TLS'
_SUCCESS, _WARNING, _FAILURE = range(3)

# Findings that depend on the TLS that QEMU negotiates; no fix prevents them.
OVER_TLS = frozenset(('tls', 'old-library'))
SAFE_TLS = 'a policy for TLS'


class State(enum.Enum):
    """Whether a host answered."""

    ANSWERED = 'answered'
    FAILED = 'failed'
    UNREACHABLE = 'unreachable'


class Drain(enum.Enum):
    """Whether all guests of a host can be moved away; the worst first."""

    NO = 'no'               # a guest would fail or be harmed
    UNKNOWN = 'unknown'
    CHANGES = 'changes'     # no guest fails, but one would change
    DEPENDS = 'depends'     # yes, to some of the other hosts
    YES = 'yes'


class Group(NamedTuple):
    """Guests of one host with equal needs."""

    instances: list[str]
    needs: facts.Needs


@dataclasses.dataclass
class Host:
    """The state of one host; field names are the keys of the JSON."""

    host: str                   # name in the inventory
    name: str = ''              # name in Nova
    state: State = State.ANSWERED
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
    #: classes of its guests, see placement
    placement: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    #: classes of the other hosts that can run all guests, by verdict
    destinations: dict[str, list[int]] = dataclasses.field(
        default_factory=dict)
    #: None: not known, as of an older plugin; the JSON has them by class
    capabilities: facts.Capabilities | None = None
    groups: list[Group] = dataclasses.field(default_factory=list)

    def check(self, name: str) -> dict[str, Any]:
        """Return the check of a name, an empty one if the host has none."""
        return next((check for check in self.checks
                     if check['check'] == name), {'result': 0, 'details': ''})

    @property
    def offers(self) -> frozenset[str]:
        """The fixes, and the TLS policy, that protect guests arriving here."""
        tls = self.check(_TLS)
        safe = {SAFE_TLS} if 'safe.' in tls['details'] else set()
        return frozenset(safe.union(() if self.must_restart else self.fixes))

    @property
    def doubts(self) -> frozenset[str]:
        """Those that a host may offer: its nova.conf or TLS is not known."""
        tls = self.check(_TLS)['details']
        is_known = any(verdict in tls for verdict in ('safe.', 'rekeys.'))
        return frozenset({*(self.fixes if self.must_restart else ()),
                          *(() if is_known else (SAFE_TLS,))})

    @property
    def must_restart(self) -> bool:
        """Whether nova-compute needs a restart to load its nova.conf."""
        return bool(self.check(PLUGIN)['result'] == _WARNING)


# -- reading the answers -----------------------------------------------------

def read(directory: pathlib.Path) -> list[Host]:
    """Return the hosts of a directory, sorted by name.

    :param directory: has a file ``HOST.json`` for each host that answered,
        and optionally ``hosts``, the names of all hosts
    :raises Error: the directory does not exist or has no hosts
    """
    try:
        files = {path.name[:-len(_SUFFIX)]: path
                 for path in directory.iterdir()
                 if path.name.endswith(_SUFFIX)}
        asked = directory / ASKED
        names = set(asked.read_text(errors='replace').split()
                    if asked.exists() else ())
        hosts = [_read(name, files.get(name))
                 for name in sorted(names.union(files))]
    except OSError as error:
        raise status.Error(f'{directory} cannot be read: {error}') from error
    if not hosts:
        raise status.Error(f'{directory} has no file HOST.json of any host.')
    return hosts


# What a value raises that is not of the expected kind.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError,
              ArithmeticError, RecursionError)


def _loads(text: str) -> Any:
    """Return the value of JSON, without NaN and Infinity.

    :raises ValueError: the text is not JSON
    """
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f'{constant} is not a number of JSON')


def _read(name: str, path: pathlib.Path | None) -> Host:
    host = Host(name)
    try:
        registered = _loads(path.read_text(encoding='utf-8')) if path else {}
        for command in COMMANDS:
            _take(host, command, registered.get(command) or {})
    except (OSError, *_MALFORMED) as error:
        host.errors.append(f'The file of this host is not valid: {error}')
    if host.state is State.ANSWERED and host.errors:
        host.state = State.FAILED
    return host


def _take(host: Host, command: str, result: dict[str, Any]) -> None:
    """Add the output of one command to a host.

    :param result: of the command, as Ansible registers it
    """
    if host.state is State.UNREACHABLE:
        return
    if result.get('unreachable'):
        host.state = State.UNREACHABLE
        host.errors.append(_last_line(result.get('msg')))
        return
    try:
        _TAKE[command](host, _loads(result.get('stdout') or ''))
    except _MALFORMED:
        complaint = _complaint(result)
        # both commands mostly fail with the same message
        if complaint not in host.errors:
            host.errors.append(complaint)


def _take_upgrade(host: Host, answer: dict[str, Any]) -> None:
    host.checks = [{'check': str(check['check']),
                    'result': _result(check['result']),
                    'details': str(check['details'])}
                   for check in answer['checks']]


def _take_preflight(host: Host, answer: dict[str, Any]) -> None:
    findings = [{**{name: _text(name, row[name]) for name in TEXTS},
                 'result': _result(row['result'])}
                for row in answer['findings']]
    notes, fixes = (
        list(map(str, answer[name])) for name in ('notes', 'fixes'))
    # a plugin before these facts does not have them
    capabilities = (facts.load_capabilities(answer['capabilities'])
                    if answer.get('capabilities') else None)
    groups = [Group(list(map(str, group['instances'])),
                    facts.load_needs(group['needs']))
              for group in answer.get('needs', ())]
    host.seconds = _number(float(answer['seconds']))
    host.guests = int(_number(int(answer['guests'])))
    host.name, host.findings = str(answer['host']), findings
    host.notes, host.fixes = notes, fixes
    host.capabilities, host.groups = capabilities, groups


def _result(value: Any) -> int:
    """:raises ValueError: it is not a result of a check"""
    return (_SUCCESS, _WARNING, _FAILURE).index(value)


def _number(value: float) -> float:
    """:raises ValueError: it is not a number of guests or seconds"""
    if not 0 <= value <= _MOST:
        raise ValueError(f'{value} is not between 0 and {_MOST}')
    return value


def _text(name: str, value: Any) -> str | None:
    return None if value is None and name in _MAY_BE_NOTHING else str(value)


_TAKE = {UPGRADE: _take_upgrade, PREFLIGHT: _take_preflight}


def _complaint(result: dict[str, Any]) -> str:
    if not result:
        return 'there is no answer from this host.'
    message = next(filter(None, (
        _last_line(result.get(key))
        for key in ('stderr', 'module_stderr', 'msg'))), '')
    message = message or 'the output is not that of nova-migfix-status'
    code = result.get('rc')
    return message if code is None else f'exit code {code}: {message}'


def _last_line(text: Any) -> str:
    lines = str(text or '').strip().splitlines()
    return lines[-1].strip()[:_SHOWN] if lines else ''


# -- summary -----------------------------------------------------------------

def summary(hosts: list[Host]) -> dict[str, Any]:
    """Count the hosts, their guests and findings."""
    rows = [row for host in hosts for row in host.findings]
    return {
        'hosts': len(hosts),
        'states': {state.value: sum(host.state is state for host in hosts)
                   for state in State},
        'drain': {drain.value: sum(host.drain is drain for host in hosts)
                  for drain in Drain},
        'guests': sum(host.guests for host in hosts),
        'guests_with_findings': len(guests(rows)),
        'guests_not_covered': len(guests(
            row for row in rows if row['covered'] == 'no')),
        'findings': len(rows),
    }


def guests(rows: Iterable[dict[str, Any]]) -> set[str]:
    """Return the UUIDs of the guests of findings."""
    return {row['instance'] for row in rows}
