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
"""Block jobs of a running guest's QEMU.

A block pull completes a disk, but reads every hole of a raw backing file: 1 TB
takes the better part of an hour. A block copy skips holes, but the guest then
goes on with a file of another name, and libvirt cannot change that name. Both
together are fast, and the disk keeps its name: see :func:`lay_on_copy`.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import os
import time
from typing import Any

from lxml import etree
from nova import exception
from nova.i18n import _
from nova.virt.libvirt import config as vconfig
from oslo_concurrency import processutils
from oslo_utils import excutils
from oslo_utils import units

from nova_migfix.storage import disks
from nova_migfix.storage import scratch

# Seconds between two looks at a block job, and without progress until it
# counts as hung.
_POLL = 0.2
_HUNG = 300

# Flags of virDomainBlockCopy: the file is there; the job does not outlive the
# run of the guest; all writes go to both files once they are alike. The last
# one is of libvirt 8.0, and not every python binding has its name.
_REUSE_EXT = 1 << 1
_TRANSIENT_JOB = 1 << 2
_SYNCHRONOUS_WRITES = 1 << 3


#: is called with the bytes that have been looked at, and all of them
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Report no progress."""


def wait(device: Any, progress: Progress = silent) -> None:
    """Wait for a block job, as long as it makes progress.

    :param device: nova.virt.libvirt.guest.BlockDevice
    :param progress: is called several times a second
    :raises TimeoutError: it makes none
    """
    cursor, since = None, time.monotonic()
    while not device.is_job_complete():
        job = device.get_job_info()
        if job:
            progress(job.cur, job.end)
        if job and job.cur != cursor:
            cursor, since = job.cur, time.monotonic()
        elif time.monotonic() - since > _HUNG:
            raise TimeoutError(_(
                'the block job has made no progress for %d seconds') % _HUNG)
        time.sleep(_POLL)


def lay_on_copy(guest: Any, overlay: disks.Overlay, bandwidth: int = 0,
                progress: Progress = silent) -> disks.Overlay:
    """Put a qcow2 with all its bytes beneath a disk of a running guest.

    QEMU copies the disk and then writes to both files; a new overlay on the
    copy gets the name of the disk; the guest goes on with the copy, and by a
    snapshot with that overlay. Whatever ends a nova-compute between these
    steps, all data is beneath the name of the disk, and the next call goes on
    from there.

    :param guest: nova.virt.libvirt.guest.Guest
    :param bandwidth: most MiB/s, 0 for no limit
    :param progress: see :func:`wait`
    :returns: the disk, with its new backing file
    :raises Exception: the disk is as it was
    """
    copy = overlay.copy
    if not disks.is_on_copy(overlay):
        _copy(guest, overlay, copy, bandwidth, progress)
    elif _has_old_file(guest, overlay.path, copy):
        # The file has no name any more, and the copy may have been given up.
        if _mirror(guest, overlay.path, copy) is None:
            _mirror_to(guest, overlay.path, copy, bandwidth, progress)
        guest.get_block_device(overlay.path).abort_job(pivot=True)
    if guest.get_disk(copy):
        _go_on_with(guest, overlay.path, copy)
    return overlay._replace(backing=copy)


def _copy(guest: Any, overlay: disks.Overlay, copy: str, bandwidth: int,
          progress: Progress) -> None:
    """Have the guest run on a copy, and the disk's name lead to it."""
    with scratch.directory(overlay.path) as directory:
        above = os.path.join(directory, overlay.name)
        try:
            processutils.execute(
                'qemu-img', 'create', '-f', 'qcow2', copy,
                str(disks.virtual_size(overlay.path)))
            processutils.execute(
                'qemu-img', 'create', '-f', 'qcow2', '-F', 'qcow2', '-b', copy,
                above)
            # Not all file systems can; the copy is hours of work for some.
            for _there_and_back in range(2):
                scratch.exchange(above, copy)
            _mirror_to(guest, overlay.path, copy, bandwidth, progress)
            scratch.exchange(above, overlay.path)
            guest.get_block_device(overlay.path).abort_job(pivot=True)
        except BaseException:
            with excutils.save_and_reraise_exception():
                _undo(guest, overlay, above)


def _mirror_to(guest: Any, path: str, copy: str, bandwidth: int,
               progress: Progress) -> None:
    """Start a block copy, and wait until all writes go to both files.

    :raises MigrationError: the job has ended before that
    """
    disk = etree.Element('disk', type='file')
    etree.SubElement(disk, 'source', file=copy)
    etree.SubElement(disk, 'driver', type='qcow2')
    guest._domain.blockCopy(
        path, etree.tostring(disk, encoding='unicode'),
        {'bandwidth': bandwidth * units.Mi} if bandwidth else {},
        _REUSE_EXT | _TRANSIENT_JOB | _SYNCHRONOUS_WRITES)
    wait(guest.get_block_device(path), progress)
    mirror = _mirror(guest, path, copy)
    if mirror is None or mirror.get('ready') != 'yes':
        raise exception.MigrationError(reason=_(
            'the block copy ended before its time, see the log of libvirt'))


def _mirror(guest: Any, path: str, copy: str) -> Any:
    """Return the element of the copy that is made of a disk, or None."""
    return next(iter(_xpath(
        guest, path, 'mirror[source/@file=$copy]', copy=copy)), None)


def _has_old_file(guest: Any, path: str, copy: str) -> bool:
    """Say whether the guest has the file that had a disk's name before."""
    below = _xpath(guest, path, 'backingStore/descendant::source/@file')
    return bool(_xpath(guest, path, 'source')) and copy not in below


def _xpath(guest: Any, path: str, wanted: str, **variables: str) -> list[Any]:
    """Look into the element of a disk."""
    found: list[Any] = etree.fromstring(guest.get_xml_desc()).xpath(
        f'devices/disk[source/@file=$path]/{wanted}', path=path, **variables)
    return found


def _undo(guest: Any, overlay: disks.Overlay, above: str) -> None:
    """Leave the guest and the name of its disk with the file of before.

    If that cannot be found out, the copy has what the guest writes, and stays.
    """
    with contextlib.suppress(Exception):
        guest.get_block_device(overlay.path).abort_job()
    if (_xpath(guest, overlay.path, 'source')
            and _mirror(guest, overlay.path, overlay.copy) is None):
        if disks.is_on_copy(overlay):
            scratch.exchange(above, overlay.path)
        remove_copy(overlay)


def _go_on_with(guest: Any, path: str, current: str) -> None:
    """Have a guest write to an overlay on the file to which it writes."""
    snapshot = vconfig.LibvirtConfigGuestSnapshot()
    for disk in guest.get_all_disks():
        part = vconfig.LibvirtConfigGuestSnapshotDisk()
        part.name = disk.target_dev
        part.snapshot = 'no'
        if disk.source_path == current:
            part.snapshot = 'external'
            part.source_type = 'file'
            part.source_path = path
        snapshot.add_disk(part)
    guest.snapshot(snapshot, no_metadata=True, disk_only=True, reuse_ext=True)


def discard_copy(guest: Any, overlay: disks.Overlay) -> None:
    """Discard what a killed process has left, and its job.

    :param guest: nova.virt.libvirt.guest.Guest
    :param overlay: a disk that does not lie on its copy
    """
    if os.path.exists(overlay.copy):
        if _mirror(guest, overlay.path, overlay.copy) is not None:
            guest.get_block_device(overlay.path).abort_job()
        remove_copy(overlay)


def remove_copy(overlay: disks.Overlay) -> None:
    """Remove the backing file that a complete disk has not any more."""
    scratch.remove(overlay.copy)
