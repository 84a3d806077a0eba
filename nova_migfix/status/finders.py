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
"""Find the effects of a migration on one guest.

Each function of :data:`FINDERS` yields findings of some kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import functools
import os
from typing import NamedTuple

import nova.conf

from nova_migfix.fixes import config_drive
from nova_migfix.fixes import tls_rekey
from nova_migfix.fixes import volume
from nova_migfix import nova_release
from nova_migfix.status import destination
from nova_migfix.status import domain_rules
from nova_migfix.status import facts
from nova_migfix.status.findings import Found
from nova_migfix.status import hypervisor
from nova_migfix.status import matching
from nova_migfix.status import recomputed
from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.tls import audit
from nova_migfix.tls import rekey

CONF = nova.conf.CONF


class Host(NamedTuple):
    """Information that all guests of this host share."""

    ports: Mapping[str, recomputed.Binding]
    lost_images: frozenset[str]
    has_shared_disks: bool
    known: domain_rules.Known
    needs: Mapping[str, facts.Needs]    # by UUID
    destination: destination.Destination
    note: Callable[[str], None]


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
        yield Found(kind, f'{change.device} {change.path}',
                    change.running, change.computed)


def _volumes(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    modes = dict(mode.partition('=')[::2]
                 for mode in CONF.libvirt.disk_cachemodes)
    for disk, _identifiers in volume.volumes(domain.document):
        device = str(disk.xpath('string(target/@dev)'))
        # Nova 29 gives a LUN a serial.
        if (disk.get('device') == 'lun' and nova_release.major() >= 30
                and volume.is_block_device(disk)):
            path = str(disk.xpath('string(source/@dev)'))
            yield Found('volume-path', device, path,
                        f'{path} of the destination')
        running = str(disk.xpath('string(driver/@cache)')) or None
        computed = 'none' if disk.find('shareable') is not None else (
            modes.get(disk.get('type'), 'none'))
        if running != computed:
            yield Found('volume', f'{device} driver/@cache', running, computed)


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
    image = image_of(domain)
    if image in host.lost_images and not host.has_shared_disks:
        yield Found('image-lost', str(image),
                    CONF.libvirt.live_migration_inbound_addr,
                    f'fetched from {CONF.host}')


def image_of(domain: hypervisor.Domain) -> str | None:
    """Return the ID of the image that an instance was built from."""
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
                judged.reason, is_known=not host.destination.name
                or host.destination.is_safe is False)
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


def _destination(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    there = host.destination
    if there.capabilities is None:
        return
    for reason in matching.compare(
            host.needs[domain.uuid], there.capabilities,
            there.answers.get(domain.uuid, matching.NO_ANSWER)):
        kind = matching.KINDS[reason.kind]
        if not kind.of_host:
            yield Found(reason.kind, kind.device, reason.value, reason.answer,
                        reason.verdict is matching.Verdict.NO)


FINDERS: tuple[
    Callable[[hypervisor.Domain, Host], Iterator[Found]], ...] = (
        _vnics, _volumes, _ephemeral, _config_drive, _kernel, _image, _tls,
        _rules, _destination)


def find(domain: hypervisor.Domain, host: Host) -> Iterator[Found]:
    """Yield the results of all finders for a guest."""
    if domain.nova is None:
        host.note(f'{domain.uuid} ({domain.name}) is not an instance of '
                  'Nova\'s.')
        return
    for finder in FINDERS:
        try:
            yield from finder(domain, host)
        except OSError as error:
            host.note(f'{domain.uuid}: {error}')
