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
"""The disks that ``heal`` can complete, what that costs, and the two ways."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import functools
import os
import stat
import sys
import time
from typing import Any
from typing import NamedTuple

import nova.privsep.path
from nova.virt.libvirt import guest as libvirt_guest

from nova_migfix.status import privileges
from nova_migfix.storage import block_job
from nova_migfix.storage import completion
from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.storage import scratch
from nova_migfix.transport import fetch

# Seconds between two checks of qemu-img.
_POLL = 0.2

# virDomainJobType: VIR_DOMAIN_JOB_NONE
_NO_JOB = 0


class Skipped(Exception):
    """A disk is not changed; the text gives the reason."""


class Row(NamedTuple):
    """A disk, and the cost of completing it."""

    instance: str           # UUID
    disk: disks.Overlay
    size: int               # bytes, virtual
    needed: int | None      # bytes to write; None: not known
    free: int               # bytes
    way: str                # a key of WAYS, '' if the disk is skipped
    reason: str             # why the disk is skipped


# -- disks and their cost ----------------------------------------------------

def rows(
    guests: dict[str, libvirt_guest.Guest], uuids: list[str],
) -> Iterator[Row]:
    note = functools.partial(print, file=sys.stderr)
    for uuid, disk in disks.all_overlays(note):
        # Nova names the directory of a resized instance UUID_resize.
        if not uuids or uuid.partition('_')[0] in uuids:
            yield row(uuid, disk, guests.get(uuid))


def row(
    uuid: str, disk: disks.Overlay, guest: libvirt_guest.Guest | None,
) -> Row:
    """Return the row of a disk.

    :param guest: None if libvirt has no such domain
    """
    size, needed, free, way, reason = 0, None, 0, '', ''
    try:
        free = completion.free_space(disk)
        size = _size(disk)
        way = _way(uuid, disk, guest)
        needed = WAYS[way].cost(disk)
        if needed is not None and needed > free:
            way, reason = '', 'there is not enough space'
    except Skipped as error:
        way, reason = '', str(error)
    except Exception as error:
        way, reason = '', fetch.reason(error)
    return Row(uuid, disk, size, needed, free, way, reason)


def _size(disk: disks.Overlay) -> int:
    """Return the virtual size of a disk in bytes.

    :raises Skipped: the disk no longer has a backing file
    """
    header = image_file.qcow2_header(disk.path)
    if header is None or not header.backing:
        raise Skipped('the disk is complete')
    return header.size


def _way(
    uuid: str, disk: disks.Overlay, guest: libvirt_guest.Guest | None,
) -> str:
    """Return the key in WAYS of the only way that is safe now.

    :raises Skipped: no way is safe now
    """
    if _is_resized(disk):
        raise Skipped('the instance is being resized or migrated')
    if guest is None:
        raise Skipped('libvirt has no such domain on this host')
    if guest.is_active():
        _require_idle(disk, guest)
        return 'block pull'
    _require_off(disk, guest)
    return 'convert'


def _is_resized(disk: disks.Overlay) -> bool:
    """Return whether a resize or cold migration waits to be confirmed."""
    directory = os.path.dirname(disk.path)
    return directory.endswith('_resize') or os.path.exists(
        f'{directory}_resize')


def _require_idle(disk: disks.Overlay, guest: libvirt_guest.Guest) -> None:
    """Require that a running guest has the disk and no other job.

    :raises Skipped: libvirt runs a job, or the guest does not have the disk
    """
    if guest.get_job_info().type != _NO_JOB:
        raise Skipped('the guest is being migrated or saved')
    if not (guest.get_disk(disk.path) or guest.get_disk(disk.copy)):
        raise Skipped('the running guest does not have the disk')
    # The block job of a killed process does not end by itself.
    own = (disk.path, disk.copy) if os.path.exists(disk.copy) else ()
    for device in guest.get_all_disks():
        if device.source_path not in own and guest.get_block_device(
                device.target_dev).get_job_info():
            raise Skipped(f'a block job on {device.target_dev} is running')


def _require_off(disk: disks.Overlay, guest: libvirt_guest.Guest) -> None:
    """Require that a guest is shut off and no process has its disk open.

    :raises Skipped: a process has the disk open; or the guest still needs the
        backing file, runs, or has lost its backing file
    """
    if guest._domain.hasManagedSaveImage(0):
        raise Skipped('the guest is suspended')
    if guest.get_disk(disk.copy):
        raise Skipped('the guest must be started first: its definition has '
                      f'{os.path.basename(disk.copy)}')
    if disks.lacks_backing_file(disk):
        raise Skipped('the backing file is missing and the guest is off')
    if image_file.is_open(disk.path):
        raise Skipped('a process has the disk open')
    # Last: libvirt marks a domain as active before it opens its disks.
    if guest.is_active():
        raise Skipped('the guest has been started')


def _cost_of_pull(disk: disks.Overlay) -> int | None:
    """Return the bytes of data in the base; QEMU may write more.

    It copies them in larger pieces.
    """
    return None if disks.lacks_backing_file(disk) else completion.allocated(
        disk.backing)


# -- the two ways ------------------------------------------------------------

def _pull(row: Row, guest: libvirt_guest.Guest, bandwidth: int,
          progress: block_job.Progress) -> None:
    completion.complete(guest, row.disk, bandwidth, progress)


def _convert(row: Row, guest: libvirt_guest.Guest, bandwidth: int,
             progress: block_job.Progress) -> None:
    """Replace the disk of a guest that is shut off by a complete one.

    Never blocks the start of the guest: qemu-img reads the disk without a
    lock, and the copy is discarded if the guest was started.

    :raises Skipped: the guest or the disk changed in the meantime
    """
    path = row.disk.path
    before = os.stat(path)
    limit = ('-r', f'{bandwidth}M') if bandwidth else ()
    with scratch.directory(path) as directory:
        made = os.path.join(directory, row.disk.name)
        image_file.copy(path, 'qcow2', made, '-U', *limit,
                   on_execute=functools.partial(
                       _watch, made, row.needed or 0, progress))
        scratch.write_through(made)
        _give_to_owner_of(made, before)
        progress(row.needed or 0, row.needed or 0)
        if _is_resized(row.disk) or _state(os.stat(path)) != _state(before):
            raise Skipped('the disk changed in the meantime')
        _require_off(row.disk, guest)
        scratch.replace(made, path)
    block_job.remove_copy(row.disk)


def _watch(made: str, total: int, progress: block_job.Progress,
           process: Any) -> None:
    """Report the size of a file in bytes, until its process ends."""
    try:
        while process.poll() is None:
            if os.path.exists(made):
                progress(min(completion.allocated(made), total), total)
            time.sleep(_POLL)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _state(found: os.stat_result) -> tuple[int, ...]:
    """Return values that change if a file is written, replaced or chowned."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns,
            found.st_ctime_ns)


def _give_to_owner_of(path: str, model: os.stat_result) -> None:
    os.chmod(path, stat.S_IMODE(model.st_mode))
    try:
        os.chown(path, model.st_uid, model.st_gid)
    except PermissionError:
        privileges.acquire()
        nova.privsep.path.chown(path, model.st_uid, model.st_gid)


class Way(NamedTuple):

    #: bytes to write; None: not known
    cost: Callable[[disks.Overlay], int | None]
    complete: Callable[[Row, libvirt_guest.Guest, int,
                       block_job.Progress], None]


WAYS = {
    'block pull': Way(_cost_of_pull, _pull),
    'convert': Way(lambda disk: image_file.flat_size(disk.path), _convert),
}
