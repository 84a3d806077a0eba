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

Each finding is one property of a guest that unmodified Nova would change, or
one reason why the migration would fail, if the guest were migrated now.
:data:`KINDS` has for each kind the fix that prevents it, and the host that
needs the fix. The command is read-only and needs neither Nova's API nor its
database. A note names each source of information that was not available.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import csv
import enum
import functools
import json
import os
import sys
import time
from typing import NamedTuple

import nova.conf
from oslo_concurrency import processutils
import prettytable

from nova_migfix.fixes import base
from nova_migfix.fixes import config_drive
from nova_migfix.fixes import ephemeral
from nova_migfix.fixes import kernel_ramdisk
from nova_migfix.fixes import source_address
from nova_migfix.fixes import tls_rekey
from nova_migfix.fixes import vnic
from nova_migfix import nova_release
from nova_migfix import status
from nova_migfix.status import domain_rules
from nova_migfix.status import hypervisor
from nova_migfix.status import recomputed
from nova_migfix.status import results
from nova_migfix.status import services
from nova_migfix.status import shared
from nova_migfix.status import upgrade
from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.tls import audit
from nova_migfix.tls import rekey
from nova_migfix.transport import address
from nova_migfix.transport import transfer

CONF = nova.conf.CONF


class Where(enum.Enum):
    """The host on which a fix has to be active."""

    SOURCE = 'source'
    DESTINATION = 'destination'
    EITHER = 'either'
    BOTH = 'both'
    NOWHERE = 'nowhere: it warns only'
    UNKNOWN = 'nowhere: whether the migration fails is not known'


class Kind(NamedTuple):
    """A kind of finding."""

    #: None: no fix prevents it
    fix: type[base.Fix] | None
    where: Where
    #: whether guest or migration fails; False: the guest changes
    fails: bool
    #: remedy without the fix
    otherwise: str
    #: the fault, if it is not that of the fix
    reason: str = ''


_REBOOT = 'Hard-reboot the instance, when its owner agrees.'

KINDS: dict[str, Kind] = {
    'vnic': Kind(
        vnic.Vnic, Where.SOURCE, True,
        f'Restore the old nova.conf until the guest is gone; or: {_REBOOT}'),
    # the migration succeeds; the size changes at the guest's next reset
    'vnic-ring': Kind(vnic.Vnic, Where.SOURCE, False, _REBOOT),
    'ephemeral': Kind(
        ephemeral.Ephemeral, Where.EITHER, True,
        'First make the disk complete: nova-migfix-status heal.'),
    'ephemeral-lost': Kind(
        ephemeral.Ephemeral, Where.SOURCE, True,
        'Do not stop the guest. Make the disk complete: nova-migfix-status '
        'heal.'),
    'config-drive': Kind(
        config_drive.ConfigDrive, Where.DESTINATION, True,
        'Copy the file to the destination after the migration.'),
    'config-drive-empty': Kind(
        config_drive.ConfigDrive, Where.SOURCE, False,
        'Let Nova build it again: remove the file and hard-reboot the '
        'instance.'),
    'kernel-ramdisk': Kind(
        kernel_ramdisk.KernelRamdisk, Where.DESTINATION, True,
        'Use cold migration.'),
    'image-lost': Kind(
        source_address.SourceAddress, Where.BOTH, False,
        'Make sure that the destination can log in on this host by ssh with '
        'its host name.'),
    'tls': Kind(
        tls_rekey.TlsRekey, Where.NOWHERE, True,
        'Give the destination a policy: nova-migfix-tls generate.'),
    'old-library': Kind(
        tls_rekey.TlsRekey, Where.NOWHERE, False,
        'Migrate the guest while it is small, or hard-reboot it: it uses the '
        'library that was installed when it was started.'),
    **{rule.kind: Kind(None, Where.UNKNOWN, True,
                       f'{rule.remedy} See {domain_rules.PAGE}.', rule.reason)
       for rule in domain_rules.RULES},
}


class Found(NamedTuple):
    """The result of a finder for one guest."""

    kind: str
    device: str
    running: str | None     # value in the running guest
    computed: str | None    # value that unmodified Nova would give it


class Finding(NamedTuple):
    """A row; field names are those of JSON and CSV."""

    instance: str
    domain: str
    finding: str
    device: str
    running: str | None
    computed: str | None
    bug: str
    fix: str
    covered: str            # yes, no, or the host that needs the fix
    result: int             # oslo.upgradecheck's code: 0, 1, 2
    otherwise: str


class Destination(NamedTuple):
    """The answer of the host to which the guests are to be migrated."""

    name: str
    #: fixes whose faults do not occur there; None: not known
    fixes: frozenset[str] | None = None
    #: TLS sessions with it never rekey
    is_safe: bool = False


class Host(NamedTuple):
    """Information that all guests of this host share."""

    ports: Mapping[str, recomputed.Binding]
    lost_images: frozenset[str]
    has_shared_disks: bool
    known: domain_rules.Known
    destination: Destination
    note: Callable[[str], None]


# -- finders -----------------------------------------------------------------

def _vnics(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    try:
        changes = recomputed.changed_vnics(domain, host.ports)
    except Exception as error:
        host.note(f'{domain.uuid}: the vNICs that Nova would give it could '
                  f'not be computed: {error}')
        return
    if recomputed.is_approximated(domain):
        host.note('Approximated: flavor and image of guests that a Nova '
                  'before 32 (2025.2) started; derived from their vNICs.')
    for change in changes:
        kind = 'vnic-ring' if change.path.endswith('_queue_size') else 'vnic'
        yield Found(kind, f'{change.mac} {change.path}',
                    change.running, change.computed)


def _ephemeral(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    for disk in domain.document.iterfind('./devices/disk'):
        path = str(disk.xpath('string(source/@file)'))
        # the file that QEMU has open, which the disk's header may not name
        backing = str(disk.xpath('string(backingStore/source/@file)'))
        if not disks.has_local_base_name(backing):
            continue
        overlay = disks.Overlay(os.path.basename(path), path, backing)
        device = f'{disk.xpath("string(target/@dev)")} {overlay.name}'
        if not os.path.isdir(os.path.dirname(backing)):
            host.note(f'Backing files are not accessible: {backing}.')
        elif disks.lacks_backing_file(overlay):
            yield Found('ephemeral-lost', device, backing, 'is missing')
            continue
        if not host.has_shared_disks:
            yield Found('ephemeral', device, _described(backing),
                        'the destination\'s file system')


@functools.cache
def _file_system(path: str) -> dict[str, str] | None:
    """Call blkid only once for a backing file that many disks share."""
    return image_file.filesystem(path)


def _described(backing: str) -> str:
    found = _file_system(backing) or {}
    return ' '.join((os.path.basename(backing), *(
        found[key] for key in ('TYPE', 'LABEL', 'UUID') if key in found)))


def _config_drive(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    for disk in domain.document.iterfind('./devices/disk'):
        path = str(disk.xpath('string(source/@file)'))
        if os.path.basename(path) != config_drive.FILE:
            continue
        device = f'{disk.xpath("string(target/@dev)")} {config_drive.FILE}'
        try:
            if image_file.is_zeros(path):
                yield Found('config-drive-empty', device, 'all zeros',
                            'all zeros')
                continue
        except OSError as error:
            host.note(f'Whether config drives are empty is not known: '
                      f'{error}.')
        # Nova before 30 copies it; libvirt copies disks that are writable.
        if (nova_release.major() >= 30 and disk.find('readonly') is not None
                and not host.has_shared_disks):
            yield Found('config-drive', device, 'ISO', 'all zeros')


def _kernel(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    kernel = domain.document.findtext('./os/kernel')
    if kernel and not host.has_shared_disks and any(
            os.path.dirname(path) == os.path.dirname(kernel)
            for path in domain.document.xpath('./devices/disk/source/@file')):
        yield Found('kernel-ramdisk', os.path.basename(kernel), kernel,
                    'fetched as a disk image: ImageUnacceptable')


def _image(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    image = _image_of(domain)
    if image in host.lost_images and not host.has_shared_disks:
        yield Found('image-lost', str(image),
                    CONF.libvirt.live_migration_inbound_addr,
                    f'fetched from {CONF.host}')


def _image_of(domain: hypervisor.Domain) -> str | None:
    for root in domain.metadata('root'):
        if root.get('type') == 'image':
            return str(root.get('uuid'))
    return None


def _tls(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    if host.destination.is_safe:
        return
    flavor = domain.metadata('flavor/memory')
    memory = int(flavor[0].text or 0) if flavor else 0
    # Reading a process takes time: only if the guest may be too large.
    if tls_rekey.assess(None, memory).verdict is rekey.Verdict.SAFE:
        return
    guest = _process(domain.uuid, host)
    judged = tls_rekey.assess(guest, memory)
    if judged.verdict is rekey.Verdict.SAFE:
        return
    library = guest.library if guest else None
    yield Found('tls', judged.verdict.value,
                library.package or library.version if library else None,
                judged.reason)
    if library and library.deleted:
        yield Found('old-library', library.path, library.version, None)


def _process(uuid: str, host: Host) -> audit.Guest | None:
    try:
        return audit.find(uuid)
    except OSError as error:
        host.note(f'Processes cannot be read: {error}. Approximated: the '
                  'effect of TLS, from the memory of flavors.')
        return None


def _rules(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    for rule in domain_rules.RULES:
        for row in rule.find(domain, host.known):
            yield Found(rule.kind, *row)


FINDERS: tuple[
    Callable[[hypervisor.Domain, Host], Iterator[Found]], ...] = (
        _vnics, _ephemeral, _config_drive, _kernel, _image, _tls, _rules)


# -- which findings a fix covers ---------------------------------------------

def _covered(kind: Kind, here: frozenset[str],
             there: frozenset[str] | None) -> str:
    """Return the value of ``covered``.

    :param here: fixes whose faults do not occur on this host
    :param there: the same of the destination; None: not known
    """
    name = kind.fix.name if kind.fix else ''
    elsewhere = ('if on the destination' if there is None
                 else 'yes' if name in there else 'no')
    return {
        Where.SOURCE: 'yes' if name in here else 'no',
        Where.DESTINATION: elsewhere,
        Where.EITHER: 'yes' if name in here else elsewhere,
        Where.BOTH: elsewhere if name in here else 'no',
        Where.NOWHERE: 'no',
        Where.UNKNOWN: 'not known',
    }[kind.where]


def _finding(domain: hypervisor.Domain, found: Found, here: frozenset[str],
             there: frozenset[str] | None) -> Finding:
    kind = KINDS[found.kind]
    covered = _covered(kind, here, there)
    result = {'yes': 0, 'no': 2 if kind.fails else 1}.get(covered, 1)
    return Finding(
        domain.uuid, domain.name, found.kind, found.device, found.running,
        found.computed, kind.fix.bug if kind.fix else kind.reason,
        kind.fix.name if kind.fix else '', covered, result,
        '' if covered == 'yes' else kind.otherwise)


# -- the other host and other services ---------------------------------------

def _ask_destination(name: str | None,
                     note: Callable[[str], None]) -> Destination:
    """Run ``upgrade check`` on the destination, by ssh, as this user."""
    if not name:
        return Destination('')
    try:
        checks = {check['check']: check for check in json.loads(
            transfer.execute(
                address.check(name), 'nova-migfix-status', 'upgrade',
                'check', '--json', check_exit_code=[0, 1, 2]))['checks']}
    except (OSError, ValueError, KeyError, TypeError,
            processutils.ProcessExecutionError) as error:
        note(f'{name} did not report its fixes: {error}')
        return Destination(name)
    loaded = checks['Plugin']['result'] != results.failure().code
    return Destination(name, frozenset(
        check.removeprefix('Fix ') for check in checks
        if check.startswith('Fix ') and checks[check]['details'].startswith(
            ('active', 'not needed') if loaded else 'not needed')),
        is_safe='safe.' in checks['TLS']['details'])


def _host(domains: list[hypervisor.Domain], destination: str | None,
          note: Callable[[str], None]) -> Host:
    ports: Mapping[str, recomputed.Binding] = {}
    try:
        ports = services.ports()
    except status.Error as error:
        note(f'{error}. Approximated: bindings of ports and MTU of networks, '
             'derived from the guests.')
    lost_images: frozenset[str] = frozenset()
    images = {image for image in map(_image_of, domains) if image}
    try:
        lost_images = services.lost_images(images, note)
    except status.Error as error:
        note(f'{error}. Whether images are lost is not known.')
    return Host(
        ports, lost_images, shared.has_shared_disks(), _known(domains, note),
        _ask_destination(destination, note), note)


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


def report(uuids: list[str], destination: str | None) -> Report:
    """Return the findings about guests.

    :param uuids: of the instances; empty: all that run here
    :param destination: host to which they are to be migrated
    :raises Error: libvirt does not answer, or an instance does not run here
    """
    begin = time.monotonic()
    notes: dict[str, None] = {}
    recomputed.initialize()
    domains = hypervisor.domains(uuids)
    host = _host(domains, destination, notes.setdefault)
    here = upgrade.covered_fixes()
    findings = [
        _finding(domain, found, here, host.destination.fixes)
        for domain in domains for found in _found(domain, host)]
    return Report(
        CONF.host, host.destination.name, sorted(here), len(domains),
        round(time.monotonic() - begin, 3), findings, list(notes))


def _found(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    if domain.nova is None:
        host.note(f'{domain.uuid} ({domain.name}) is not an instance of '
                  'Nova\'s.')
        return
    for finder in FINDERS:
        try:
            yield from finder(domain, host)
        except OSError as error:
            host.note(f'{domain.uuid}: {error}')


def run(args: argparse.Namespace) -> int:
    """Print the findings.

    :returns: the worst result of a finding
    """
    found = report(args.instance, args.dest)
    if args.json:
        print(json.dumps({
            **found._asdict(),
            'findings': [row._asdict() for row in found.findings]}, indent=2))
    elif args.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(Finding._fields)
        writer.writerows(found.findings)
        print(*found.notes, sep='\n', file=sys.stderr)
    else:
        print(_table(found))
    return max((row.result for row in found.findings), default=0)


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
        str(table), *(f'Note: {note}' for note in found.notes),
        f'{found.guests} guests on {found.host}, {len(found.findings)} '
        f'findings, {found.seconds:.2f} s'))


def _shown(value: str | None) -> str:
    return '-' if value is None else value
