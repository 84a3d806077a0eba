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
"""``report``: merge the answers of many hosts into JSON and an HTML page.

``ansible/report.yml`` collects the answers and calls this command. The page is
one self-contained file: its Content-Security-Policy forbids browsers to load
anything, and to run any script but the one with the given digest.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Callable
import datetime
import enum
import hashlib
import json
import pathlib
from typing import Any

import jinja2
import prettytable

from nova_migfix import status
from nova_migfix.status import drain
from nova_migfix.status import facts
from nova_migfix.status import fleet
from nova_migfix.status import matching
from nova_migfix.status import placement

#: fields of a finding in a row of the page, after the host's number
COLUMNS = (*fleet.TEXTS, 'result')

# Fields of a host that the JSON has once for all hosts of a class.
_APART = frozenset(('capabilities', 'groups'))

_EXIT_CODES = {fleet.Drain.YES: 0, fleet.Drain.NO: 2}


def run(args: argparse.Namespace) -> int:
    """Merge the answers, write the requested files, and print a table.

    :returns: 0: all hosts can be drained; 2: one cannot; 1: otherwise
    """
    hosts = fleet.read(pathlib.Path(args.directory))
    matrix = drain.judge(hosts)
    now = datetime.datetime.now(datetime.timezone.utc)
    whole = {'created': now.isoformat(timespec='seconds'),
             'summary': fleet.summary(hosts), 'hosts': hosts,
             'placement': matrix}
    for path, rendered in ((args.json, as_json), (args.html, as_html)):
        if path:
            _write(path, rendered(whole))
    print(_table(hosts))
    return max(_EXIT_CODES.get(host.drain, 1) for host in hosts)


def _write(path: str, text: str) -> None:
    try:
        pathlib.Path(path).write_text(text, encoding='utf-8')
    except OSError as error:
        raise status.Error(f'{path} cannot be written: {error}') from error


def _table(hosts: list[fleet.Host]) -> str:
    """Count hosts by verdict, and name those that did not answer."""
    table = prettytable.PrettyTable(['Safe to drain', 'Hosts', 'Guests'])
    table.align = 'l'
    for verdict in fleet.Drain:
        found = [host for host in hosts if host.drain is verdict]
        table.add_row([verdict.value, len(found),
                       sum(host.guests for host in found)])
    return '\n'.join((str(table), *(
        f'{host.host} {host.state.value}: {"; ".join(host.errors)}'
        for host in hosts if host.state is not fleet.State.ANSWERED)))


def as_json(whole: dict[str, Any]) -> str:
    """Return the report as JSON, with the complete answers of all hosts."""
    return json.dumps(whole, default=_plain, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, placement.Matrix):
        return value.as_json()
    return value.value if isinstance(value, enum.Enum) else {
        name: one for name, one in vars(value).items() if name not in _APART}


def as_html(whole: dict[str, Any]) -> str:
    """Return the report as a self-contained HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader('nova_migfix.status', 'templates'),
        autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies['json.dumps_kwargs'] = {'separators': (',', ':')}
    return environment.get_template('report.html.j2').render(
        data=_page_data(whole),
        created=whole['created'].replace('T', ' ').replace('+00:00', ' UTC'),
        summary=whole['summary'], style=_inline(environment, 'report.css'),
        script=_inline(environment, 'report.js'))


def _inline(environment: jinja2.Environment, name: str) -> tuple[str, str]:
    """Return a template's text, and its digest for the security policy."""
    text = environment.get_template(name).render()
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest())
    return text, f'sha256-{digest.decode()}'


def _page_data(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the data for the page's script, with each text only once.

    Hosts are in the order in which the page shows them: the worst first.
    """
    order = list(fleet.Drain)
    hosts = sorted(whole['hosts'], key=lambda host: order.index(host.drain))
    strings: dict[Any, int] = {}

    def number(value: Any) -> int:
        return strings.setdefault(value, len(strings))

    findings = [[index, *(number(row[name]) for name in COLUMNS)]
                for index, host in enumerate(hosts) for row in host.findings]
    return {'hosts': [_page_host(host, number) for host in hosts],
            'columns': COLUMNS, 'findings': findings,
            'placement': _page_placement(hosts, whole['placement'], number),
            'strings': [*strings]}


def _page_placement(hosts: list[fleet.Host], matrix: placement.Matrix,
                    number: Callable[[Any], int]) -> dict[str, Any]:
    """Return the classes and their matrix; hosts and texts as numbers."""
    order = {host.host: index for index, host in enumerate(hosts)}
    where: list[list[list[int]]] = [[] for _guests in matrix.guests]
    for index, host in enumerate(hosts):
        for one in host.placement:
            where[one['class']].append([index, one['guests']])
    return {
        'guests': [{
            'where': at, 'needs': list(map(number, _needs(guests))),
            'cells': [[matching.verdict(reasons).value, *(
                number(_reason(reason)) for reason in reasons)]
                for reasons in row]}
            for guests, at, row in zip(
                matrix.guests, where, matrix.cells, strict=True)],
        'hosts': [[order[name] for name in one.names]
                  for one in matrix.hosts]}


def _needs(guests: placement.Guests) -> list[str]:
    """Describe a class of guests."""
    needs = guests.needs
    lines = ['not known'] if needs is None else [
        f'{needs.machine.machine}, {needs.machine.virt_type}, '
        f'{needs.machine.emulator}', 'CPU: ' + (
            'host-passthrough' if needs.is_passthrough else
            needs.cpu.model or 'any' if needs.cpu else 'not known')]
    if needs and needs.queues > 1:
        lines.append(f'vNIC queues: {needs.queues}')
    for title, names in (
            ('CPU without', needs and needs.without),
            ('vNIC offloads', needs and needs.offloads),
            ('secrets', needs and needs.secrets), ('fixes', guests.fixes)):
        if names:
            lines.append(f'{title}: ' + ', '.join(sorted(names)))
    if needs and needs.hypervisor:
        lines.append(f'QEMU: {facts.shown(needs.hypervisor)}')
    return lines


def _reason(reason: matching.Reason) -> str:
    return ' '.join(filter(None, (
        placement.thing(reason), f'{reason.value}:' if reason.value else '',
        reason.answer)))


def _page_host(host: fleet.Host,
               number: Callable[[Any], int]) -> dict[str, Any]:
    return {
        'host': host.host, 'name': host.name, 'state': host.state.value,
        'drain': host.drain.value, 'why': host.why, 'guests': host.guests,
        'destinations': host.destinations,
        'fixes': host.fixes, 'notes': list(map(number, host.notes)),
        # only checks with a warning or failure
        'checks': [[number(check['check']), check['result'],
                    number(check['details'])]
                   for check in host.checks if check['result']]}
