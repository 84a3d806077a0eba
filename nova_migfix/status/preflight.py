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
"""``preflight``: predict what a migration would do to this host's guests.

The command is read-only and needs neither Nova's API nor its database. A note
names each source of information that was not available.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Mapping
import csv
import json
import sys
import time
from typing import Any
from typing import NamedTuple

import nova.conf
import prettytable

from nova_migfix import status
from nova_migfix.status import destination
from nova_migfix.status import domain_rules
from nova_migfix.status import finders
from nova_migfix.status import findings
from nova_migfix.status.findings import Finding
from nova_migfix.status import hypervisor
from nova_migfix.status import recomputed
from nova_migfix.status import services
from nova_migfix.status import shared
from nova_migfix.status import this_host
from nova_migfix.status import upgrade

CONF = nova.conf.CONF


# -- other services ----------------------------------------------------------

def _host(domains: list[hypervisor.Domain], here: this_host.ThisHost,
          dest: str | None, note: Callable[[str], None]) -> finders.Host:
    ports: Mapping[str, recomputed.Binding] = {}
    try:
        ports = services.ports()
    except status.Error as error:
        note(f'{error}. Approximated: bindings of ports and MTU of networks, '
             'derived from the guests.')
    lost_images: frozenset[str] = frozenset()
    images = {image for image in map(finders.image_of, domains) if image}
    try:
        lost_images = services.lost_images(images, note)
    except status.Error as error:
        note(f'{error}. Whether images are lost is not known.')
    return finders.Host(
        ports, lost_images, shared.has_shared_disks(), _known(domains, note),
        {uuid: guest.needs for uuid, guest in here.guests.items()},
        destination.ask(dest, here, note), note)


def _known(domains: list[hypervisor.Domain],
           note: Callable[[str], None]) -> domain_rules.Known:
    machines: frozenset[tuple[str, str]] = frozenset()
    try:
        machines = hypervisor.deprecated_machines()
    except (status.Error, ValueError) as error:
        note(f'Deprecated machine types are not known: {error}')
    monitors: frozenset[str] = frozenset()
    if any(map(domain_rules.has_local_rbd, domains)):
        try:
            monitors = domain_rules.monitors()
        except OSError as error:
            note(f'The monitors of Ceph are not known: {error}.')
    return domain_rules.Known(machines, monitors)


# -- the command -------------------------------------------------------------

class Report(NamedTuple):

    host: str
    destination: str
    fixes: list[str]        # fixes whose faults do not occur on this host
    guests: int
    seconds: float
    findings: list[Finding]
    notes: list[str]        # what is not known, or is approximated
    address: str | None     # to which destinations of this host connect
    checks: list[destination.Check]     # of the destination
    here: this_host.ThisHost


def report(uuids: list[str], dest: str | None) -> Report:
    """Return the findings about guests.

    :param uuids: of the instances; empty: all that run here
    :param dest: host to which they are to be migrated
    :raises Error: libvirt does not answer, or an instance does not run here
    """
    begin = time.monotonic()
    notes: dict[str, None] = {}
    recomputed.initialize()
    domains = hypervisor.domains(uuids)
    instances = [domain for domain in domains if domain.nova is not None]
    here = this_host.read(instances, notes.setdefault)
    host = _host(domains, here, dest, notes.setdefault)
    fixes = upgrade.covered_fixes()
    rows = [
        findings.judge(domain, found, fixes, host.destination.fixes)
        for domain in domains for found in finders.find(domain, host)]
    return Report(
        CONF.host, host.destination.name, sorted(fixes), len(instances),
        round(time.monotonic() - begin, 3), rows, list(notes),
        CONF.libvirt.live_migration_inbound_addr,
        list(host.destination.checks), here)


def run(args: argparse.Namespace) -> int:
    """Print the findings.

    :returns: the worst result of a finding, or of a check of the destination
    """
    found = report(args.instance, args.dest)
    if args.json:
        print(json.dumps(_as_json(found), indent=2))
    elif args.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(Finding._fields)
        writer.writerows(found.findings)
        print(*_lines(found), sep='\n', file=sys.stderr)
    else:
        print(_table(found))
    return max((*(row.result for row in found.findings),
                *(check.result for check in found.checks)), default=0)


def _as_json(found: Report) -> dict[str, Any]:
    fields = found._asdict()
    fields.update(
        findings=[row._asdict() for row in found.findings],
        checks=[check._asdict() for check in found.checks],
        **this_host.as_json(fields.pop('here')))
    return fields


def _lines(found: Report) -> list[str]:
    """Return the checks of the destination, and the notes."""
    return [*(f'{found.destination}, {check.check}: '
              f'{_RESULTS[check.result]}: {check.details}'
              for check in found.checks),
            *(f'Note: {note}' for note in found.notes)]


_RESULTS = 'Success', 'Warning', 'Failure'

#: columns of the table: title, attribute of a finding, width
_COLUMNS = (
    ('Instance', 'instance', 36), ('Finding', 'finding', 18),
    ('Device', 'device', 18), ('Now', 'running', 24), ('Then', 'computed', 24),
    ('Covered', 'covered', 12), ('Bug', 'bug', 24),
    ('Otherwise', 'otherwise', 30))


def _table(found: Report) -> str:
    table = prettytable.PrettyTable([title for title, _, _ in _COLUMNS])
    table.align = 'l'
    for title, _attribute, width in _COLUMNS:
        table.max_width[title] = width
    for row in found.findings:
        table.add_row([_shown(getattr(row, attribute))
                       for _title, attribute, _width in _COLUMNS])
    return '\n'.join((
        str(table), *_lines(found),
        f'{found.guests} guests on {found.host}, {len(found.findings)} '
        f'findings, {found.seconds:.2f} s'))


def _shown(value: str | None) -> str:
    return '-' if value is None else value
