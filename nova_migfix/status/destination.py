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
"""Ask the host to which guests are to be migrated, before they are.

:func:`ask` logs in by ssh and runs the plugin's own command there, and it
connects to libvirt at the URI that Nova will use. Either suffices for some
answers. A :class:`Check` is a result that all guests share.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import json
import subprocess
from typing import Any
from typing import NamedTuple

import nova.conf
from nova import exception
from oslo_concurrency import processutils
from oslo_upgradecheck import upgradecheck
from oslo_utils import netutils

from nova_migfix import status
from nova_migfix.status import credentials
from nova_migfix.status import facts
from nova_migfix.status import hypervisor
from nova_migfix.status import matching
from nova_migfix.status import queries
from nova_migfix.status import remote
from nova_migfix.status import results
from nova_migfix.status import this_host
from nova_migfix.transport import address
from nova_migfix.transport import libvirt_uri
from nova_migfix.transport import transfer

CONF = nova.conf.CONF

# Bytes to send in one question: more than the largest packets.
_SIZE = 100_000
# Seconds to wait for such an answer, and for the answers about all guests, or
# of a command by ssh.
_TIMEOUT = 10
_LONG_TIMEOUT = 60


class Check(NamedTuple):
    """A result about the host; fields as in ``upgrade check --json``."""

    check: str
    result: int
    details: str


class Destination(NamedTuple):
    """The answer of the host to which the guests are to be migrated.

    :ivar fixes: fixes whose faults do not occur there; None: not known
    :ivar is_safe: TLS sessions with it never rekey; None: not known
    :ivar capabilities: None: it did not answer
    :ivar answers: of its libvirt, by UUID of the guest
    """

    name: str = ''
    fixes: frozenset[str] | None = None
    is_safe: bool | None = None
    address: str = ''
    capabilities: facts.Capabilities | None = None
    answers: Mapping[str, matching.Answer] = {}
    checks: tuple[Check, ...] = ()


def ask(name: str | None, host: this_host.ThisHost,
        note: Callable[[str], object]) -> Destination:
    """Ask a host by ssh and through libvirt.

    :param name: of the host, or its live_migration_inbound_addr; None: no
        host is asked
    :param host: this host, with the guests
    :param note: is called with each thing that is not known
    """
    if not name:
        return Destination()
    try:
        address.check(name)
    except ValueError as error:
        note(f'Nothing is known of the destination: {error}.')
        return Destination(name)
    by_ssh = _by_ssh(name, note)
    found = _by_libvirt(by_ssh, host, note)
    if by_ssh.capabilities is None and not netutils.is_valid_ip(name):
        note(f'Without ssh it is not known whether migrations to {name} use '
             'another address (live_migration_inbound_addr): if so, name it '
             'after --dest.')
        found = found._replace(checks=tuple(map(_doubted, found.checks)))
    if found.capabilities is None:
        note(f'{name} was compared with no guest.')
        return found
    return found._replace(checks=(*found.checks, *_of_host(found, host)))


# -- by ssh ------------------------------------------------------------------

def _by_ssh(name: str, note: Callable[[str], object]) -> Destination:
    """Run the plugin's own command on the host, as this user."""
    found = Destination(name, address=name)
    thing = 'its fixes'
    try:
        checks = {check['check']: check for check in _run(
            name, 'upgrade', 'check')['checks']}
        found = found._replace(
            fixes=_fixes(checks), is_safe=_is_safe(checks),
            checks=(() if _is_loaded(checks) is not None else
                    (Check('Plugin', int(upgradecheck.Code.WARNING),
                           str(checks['Plugin']['details'])),)))
        thing = 'its capabilities'
        answer = _run(name, 'preflight')
        return found._replace(
            address=address.check(answer['address'] or name),
            capabilities=facts.load_capabilities(answer['capabilities']))
    except (OSError, ValueError, KeyError, TypeError, AttributeError,
            processutils.ProcessExecutionError,
            subprocess.TimeoutExpired) as error:
        note(f'{name} did not report {thing} by ssh: {_short(error)}')
        return found


def _run(name: str, *command: str) -> Any:
    return json.loads(transfer.execute(
        name, 'nova-migfix-status', *command, '--json',
        check_exit_code=[0, 1, 2], timeout=_LONG_TIMEOUT,
        # after the timeout, the process would go on
        on_completion=lambda process: process.kill()))


def _short(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f'no {error}; another release of the plugin'
    return str(error)


def _is_loaded(checks: Mapping[str, Any]) -> bool | None:
    """Return None if nova-compute may run without its nova.conf."""
    return {upgradecheck.Code.SUCCESS: True,
            upgradecheck.Code.FAILURE: False}.get(checks['Plugin']['result'])


def _is_safe(checks: Mapping[str, Any]) -> bool | None:
    details = checks['TLS']['details']
    return True if 'safe.' in details else (
        False if 'rekeys.' in details else None)


def _fixes(checks: Mapping[str, Any]) -> frozenset[str] | None:
    loaded = _is_loaded(checks)
    return None if loaded is None else frozenset(
        check.removeprefix('Fix ') for check in checks
        if check.startswith('Fix ') and checks[check]['details'].startswith(
            ('active', 'not needed') if loaded else 'not needed'))


# -- through libvirt ---------------------------------------------------------

def _by_libvirt(found: Destination, host: this_host.ThisHost,
                note: Callable[[str], object]) -> Destination:
    try:
        uri = remote.uri_of(found.address)
        connected = remote.connect(uri)
    except (status.Error, exception.LiveMigrationURINotAvailable) as error:
        note(f'libvirt of {found.name} was not asked: {error}')
        return found
    checks = [_check('libvirt', connected.result)]
    where = remote.port(uri)
    if where and libvirt_uri.transport(uri) != 'tcp':
        checks.append(_check('Certificate', results.merged(
            credentials.judge_served(where), 'The certificate is valid for '
            f'{where[0]}, and not only for some days.')))
    found = found._replace(checks=(*found.checks, *checks))
    if connected.connection is None:
        return found
    asked = hypervisor.ask(connected.connection, note)
    packets = _large_packets(uri, asked)
    found = found._replace(checks=(
        *found.checks, _check('Large packets', packets)))
    if packets.code is not upgradecheck.Code.SUCCESS:
        return found
    return _answered(found, asked, host, note)


def _check(name: str, result: upgradecheck.Result) -> Check:
    return Check(name, int(result.code), str(result.details))


def _doubted(check: Check) -> Check:
    """Return a check of an address that migrations may not use."""
    return check._replace(
        result=min(check.result, int(upgradecheck.Code.WARNING)))


def _large_packets(uri: str, asked: queries.Queries) -> upgradecheck.Result:
    """Send and receive more than one packet.

    A network that drops large packets, but not small ones, is an MTU black
    hole: RFC 2923.
    """
    direction = 'from'
    try:
        # after a restart, libvirt first examines each QEMU
        received = hypervisor.limited(_LONG_TIMEOUT, asked.receive)
        direction = 'to'
        hypervisor.limited(_TIMEOUT, lambda: asked.send(_SIZE))
    except hypervisor.Unavailable as error:
        return results.failure(
            f'{uri}: short messages arrive, but a long one {direction} the '
            f'destination does not: {error}. A migration hangs, too. Compare '
            'the MTU of both hosts and of the network between them, and let '
            'ICMP "fragmentation needed" pass.')
    return results.success(
        f'{_SIZE // 1000} kB to the destination and {received // 1000} kB '
        'from it arrive.')


def _answered(found: Destination, asked: queries.Queries,
              host: this_host.ThisHost,
              note: Callable[[str], object]) -> Destination:
    """Add what libvirt answers in time."""
    kinds = {guest.needs.machine.virt_type for guest in host.guests.values()}
    answers: dict[str, matching.Answer] = {}

    def ask_about_guests() -> None:
        for uuid, guest in host.guests.items():
            answers[uuid] = asked.answer(guest.needs, guest.cpu)
    try:
        capabilities = hypervisor.limited(
            _LONG_TIMEOUT, lambda: asked.capabilities(kinds))
        found = found._replace(capabilities=capabilities.or_else(
            found.capabilities or facts.Capabilities()))
        hypervisor.limited(_LONG_TIMEOUT, ask_about_guests)
    except hypervisor.Unavailable as error:
        note(f'libvirt of {found.name} did not answer all questions: {error}')
    # after the timeout, the thread of the questions may go on
    return found._replace(answers=answers.copy())


# -- what all guests share ---------------------------------------------------

def _of_host(found: Destination,
             host: this_host.ThisHost) -> Iterator[Check]:
    """Yield checks for needs that all guests of a host have in common."""
    reasons = dict.fromkeys(
        reason for guest in host.guests.values()
        for reason in matching.compare(
            guest.needs, found.capabilities or facts.Capabilities()))
    for reason in reasons:
        kind = matching.KINDS[reason.kind]
        if kind.of_host:
            make = (results.failure if reason.verdict is matching.Verdict.NO
                    else results.warning)
            yield _check(kind.device, make(
                f'This host: {reason.value}; {found.name}: {reason.answer}. '
                f'{kind.reason}. {kind.remedy}'))
