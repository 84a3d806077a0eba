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
"""``explain``: why a live migration of an instance failed.

Reads the logs of nova-compute, of the guest's QEMU and of libvirt on this
host, and the state of the guest from libvirt. The logs of the source have most
of the information; QEMU's log on the destination says why that QEMU rejected
the guest. "unknown" is a correct answer, a wrong fault is not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import re
from typing import NamedTuple
import uuid as uuids

import nova.conf
import prettytable

from nova_migfix import status
from nova_migfix.status import attempt
from nova_migfix.status import daemon_logs
from nova_migfix.status import hypervisor
from nova_migfix.status import logs
from nova_migfix.status import verdict

CONF = nova.conf.CONF

QEMU_LOGS = pathlib.Path('/var/log/libvirt/qemu')

# Present only if libvirt logs to a file; the second path is Kolla's.
LIBVIRT_LOGS = (pathlib.Path('/var/log/libvirt/libvirtd.log'),
                pathlib.Path('/var/log/kolla/libvirt/libvirtd.log'))

COLLECT = (
    'Run this command on the other host, too. If it finds nothing there, '
    'collect from both hosts: the log of nova-compute from begin to end, the '
    'log of the guest\'s QEMU (/var/log/libvirt/qemu), the log of libvirt; '
    'virsh dumpxml of the guest, and both nova.conf.')

UNREACHABLE = (
    'If the guest does not answer although it runs: no log has that fault. '
    'See whether the switches learned its new place (RARP lost), the VLAN tag '
    'and the MTU of its tap device on the destination, and the binding of its '
    'port in Neutron.')
_UNREACHABLE_PAGE = 'faults/state'


class Explanation(NamedTuple):
    """The outcome of a migration; field names are the keys of the JSON."""

    instance: str
    outcome: str        # failed, arrived, or unknown
    request: str
    begin: str          # local time, as in the log
    end: str
    fault: str          # the name in faults.FAULTS, or unknown
    phase: str          # a key of faults.base.PHASES
    meaning: str
    fix: str
    remedy: str
    releases: str
    page: str
    domain_state: str   # in libvirt on this host; absent; '' if not known
    evidence: list[str]
    notes: list[str]    # which logs or services could not be read, and why


# -- logs --------------------------------------------------------------------

def _nova_log() -> pathlib.Path:
    """Return the path of nova-compute's log.

    :raises Error: nova-compute does not log to a file
    """
    name = CONF.log_file or (CONF.log_dir and 'nova-compute.log')
    if not name:
        raise status.Error(
            'nova-compute does not log to a file: neither log_file nor '
            'log_dir is set. Write its journal to a file, and name that file '
            'with --log-file.')
    return pathlib.Path(os.path.join(CONF.log_dir or '', name))


def _qemu_lines(path: str, uuid: str, found: attempt.Attempt
                ) -> list[logs.Line]:
    if path:
        return daemon_logs.qemu_file(path, uuid, found)
    return daemon_logs.qemu(QEMU_LOGS, uuid, found)


def _libvirt_lines(path: str, found: attempt.Attempt) -> list[logs.Line]:
    return daemon_logs.libvirt(
        [path] if path else filter(os.path.exists, LIBVIRT_LOGS), found)


def explain(uuid: str, request_id: str = '', qemu_log: str = '',
            libvirt_log: str = '') -> Explanation:
    """Return the reason that the logs and libvirt have for a live migration.

    :param uuid: of the instance
    :param request_id: of the migration's request; '': of the last migration
    :param qemu_log: log of the guest's QEMU, ``-`` for standard input; '':
        that in the directory of libvirt
    :param libvirt_log: log or journal of libvirt, in the same way
    :raises Error: the log of nova-compute cannot be read
    """
    found = attempt.find(_nova_log(), uuid, request_id)
    notes: list[str] = []
    # on the destination only QEMU's log may have the reason
    qemu: list[logs.Line] = []
    libvirt: list[logs.Line] = []
    state = ''
    with _noted(notes):
        qemu = _qemu_lines(qemu_log, uuid, found)
    with _noted(notes):
        libvirt = _libvirt_lines(libvirt_log, found)
    with _noted(notes):
        state = hypervisor.state(uuid)
    if request_id and not found.request:
        notes.append(f'The log has no record of {request_id}.')
    if found.is_success:
        return Explanation(
            uuid, 'arrived', found.request, found.first, found.last, '', '',
            '', '', UNREACHABLE, '', _UNREACHABLE_PAGE, state, [], notes)
    match = verdict.decide(found, qemu, libvirt, notes)
    evidence = (match.evidence if match
                else found.errors[-verdict.MOST_LINES:])
    return Explanation(
        uuid, 'failed' if match or found.has_failed else 'unknown',
        found.request, found.first, found.last, *_described(match), state,
        [str(line) for line in evidence], notes)


def _described(match: verdict.Match | None
               ) -> tuple[str, str, str, str, str, str, str]:
    """Return the fields of an Explanation from fault to page."""
    if not match:
        return 'unknown', '', '', '', COLLECT, '', ''
    fault = match.fault
    return (fault.name, fault.phase, match.meaning, fault.fix, fault.remedy,
            fault.releases, fault.page)


@contextlib.contextmanager
def _noted(notes: list[str]) -> Iterator[None]:
    """Turn an error into a note."""
    try:
        yield
    except status.Error as error:
        notes.append(str(error))


def _checked(args: argparse.Namespace) -> tuple[str, str, str, str]:
    """Return the arguments of :func:`explain`.

    :raises Error: one of them is malformed
    """
    try:
        uuid = str(uuids.UUID(args.uuid))
    except ValueError as error:
        raise status.Error(
            f'{args.uuid!r} is not the UUID of an instance.'
        ) from error
    if args.request and not re.fullmatch('req-[0-9a-f-]{36}', args.request):
        raise status.Error(
            'The ID of a request begins with "req-" and ends with a UUID: see '
            '"openstack server event list".')
    if args.qemu_log == args.libvirt_log == logs.STDIN:
        raise status.Error('Only one log can be on standard input.')
    return uuid, args.request, args.qemu_log, args.libvirt_log


def run(args: argparse.Namespace) -> int:
    """Print the explanation.

    :returns: 0: the migration succeeded; 1: the fault is unknown; 2: the
        migration failed with a known fault
    :raises Error: an argument is malformed, or nova-compute's log unreadable
    """
    found = explain(*_checked(args))
    if args.json:
        print(json.dumps(found._asdict(), indent=2))
    else:
        table = prettytable.PrettyTable(['Field', 'Value'])
        table.align = 'l'
        table.max_width['Value'] = 100
        for name, value in found._asdict().items():
            table.add_row([name, '\n'.join(value) if isinstance(value, list)
                           else value])
        print(table)
    if found.outcome == 'arrived':
        return 0
    return 1 if found.fault == 'unknown' else 2
