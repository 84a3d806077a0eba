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
"""Run block jobs on the disks of a running guest.

A block pull removes a disk's need for a backing file, but reads every hole of
a raw backing file: 1 TB takes most of an hour. A block copy skips holes, but
the guest then uses a file with another name, and libvirt cannot change that
name. :func:`lay_on_copy` prepares a combination of both, which is fast and
keeps the name of the disk.
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
from nova_migfix.storage import image_file
from nova_migfix.storage import scratch

# Seconds between two queries of a block job.
_POLL = 0.2
# Seconds without progress after which a block job counts as hung.
_STALL_TIMEOUT = 300

# Flags of virDomainBlockCopy: reuse the existing file; end the job when the
# guest stops; write to both files once they are in sync. libvirt 8.0 added the
# last one, and some Python bindings lack its name.
_REUSE_EXT = 1 << 1
_TRANSIENT_JOB = 1 << 2
_SYNCHRONOUS_WRITES = 1 << 3


#: called with the number of bytes processed so far, and in total
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Ignore the progress of a block job."""


def wait(device: Any, progress: Progress = silent) -> None:
    """Wait for a block job to end, as long as it makes progress.

    :param device: nova.virt.libvirt.guest.BlockDevice
    :param progress: called several times a second
    :raises TimeoutError: the job made no progress for 300 seconds
    """
    cursor, since = None, time.monotonic()
    while not device.is_job_complete():
        job = device.get_job_info()
        if job:
            progress(job.cur, job.end)
        if job and job.cur != cursor:
            cursor, since = job.cur, time.monotonic()
        elif time.monotonic() - since > _STALL_TIMEOUT:
            raise TimeoutError(_(
                'the block job has made no progress for %d seconds')
                % _STALL_TIMEOUT)
        time.sleep(_POLL)


def lay_on_copy(guest: Any, overlay: disks.Overlay, bandwidth: int = 0,
                progress: Progress = silent) -> disks.Overlay:
    """Give a disk of a running guest a qcow2 copy of it as backing file.

    1. QEMU copies the disk and then writes to both files.
    2. A new overlay on the copy takes the name of the disk.
    3. The guest pivots to the copy.
    4. A snapshot makes the guest write to the new overlay.

    If nova-compute is killed between these steps, the file with the disk's
    name still yields all data, and the next call resumes at that step.

    :param guest: nova.virt.libvirt.guest.Guest
    :param bandwidth: limit in MiB/s, 0 for no limit
    :param progress: see :func:`wait`
    :returns: the disk, with its new backing file
    :raises Exception: the copy failed; the disk is unchanged, unless
        :func:`disks.is_on_copy`
    """
    copy = overlay.copy
    if not disks.is_on_copy(overlay):
        _copy_and_pivot(guest, overlay, copy, bandwidth, progress)
    elif _uses_old_file(guest, overlay.path, copy):
        # The old file has lost its name, and the copy job may have ended.
        if _find_mirror(guest, overlay.path, copy) is None:
            _mirror_to(guest, overlay.path, copy, bandwidth, progress)
        guest.get_block_device(overlay.path).abort_job(pivot=True)
    if guest.get_disk(copy):
        _switch_to_overlay(guest, overlay.path, copy)
    return overlay._replace(backing=copy)


def _copy_and_pivot(guest: Any, overlay: disks.Overlay, copy: str,
                    bandwidth: int, progress: Progress) -> None:
    """Pivot the guest to a copy, and name an overlay on it like the disk."""
    with scratch.directory(overlay.path) as directory:
        new_overlay = os.path.join(directory, overlay.name)
        try:
            processutils.execute(
                'qemu-img', 'create', '-f', 'qcow2', copy,
                str(image_file.virtual_size(overlay.path)))
            processutils.execute(
                'qemu-img', 'create', '-f', 'qcow2', '-F', 'qcow2', '-b', copy,
                new_overlay)
            # Some file systems cannot exchange names. Find that out before a
            # copy that may take hours.
            for _there_and_back in range(2):
                scratch.exchange(new_overlay, copy)
            _mirror_to(guest, overlay.path, copy, bandwidth, progress)
            scratch.exchange(new_overlay, overlay.path)
            guest.get_block_device(overlay.path).abort_job(pivot=True)
        except BaseException:
            with excutils.save_and_reraise_exception():
                _undo(guest, overlay, new_overlay)


def _mirror_to(guest: Any, path: str, copy: str, bandwidth: int,
               progress: Progress) -> None:
    """Start a block copy, and wait until QEMU writes to both files.

    :raises MigrationError: the job ended before that
    """
    disk = etree.Element('disk', type='file')
    etree.SubElement(disk, 'source', file=copy)
    etree.SubElement(disk, 'driver', type='qcow2')
    guest._domain.blockCopy(
        path, etree.tostring(disk, encoding='unicode'),
        {'bandwidth': bandwidth * units.Mi} if bandwidth else {},
        _REUSE_EXT | _TRANSIENT_JOB | _SYNCHRONOUS_WRITES)
    wait(guest.get_block_device(path), progress)
    mirror = _find_mirror(guest, path, copy)
    if mirror is None or mirror.get('ready') != 'yes':
        raise exception.MigrationError(reason=_(
            'the block copy ended early, see the log of libvirt'))


def _find_mirror(guest: Any, path: str, copy: str) -> Any:
    """Return the ``<mirror>`` element of the block copy of a disk, or None."""
    return next(iter(_xpath(
        guest, path, 'mirror[source/@file=$copy]', copy=copy)), None)


def _uses_old_file(guest: Any, path: str, copy: str) -> bool:
    """Return whether the guest uses the file that had the disk's name before.

    The overlay on the copy has that name now.
    """
    below = _xpath(guest, path, 'backingStore/descendant::source/@file')
    return bool(_xpath(guest, path, 'source')) and copy not in below


def _xpath(guest: Any, path: str, query: str, **variables: str) -> list[Any]:
    """Evaluate an XPath query relative to the ``<disk>`` element of a disk."""
    found: list[Any] = etree.fromstring(guest.get_xml_desc()).xpath(
        f'devices/disk[source/@file=$path]/{query}', path=path, **variables)
    return found


def _undo(guest: Any, overlay: disks.Overlay, new_overlay: str) -> None:
    """Return the guest, and the name of its disk, to the original file.

    Keep the copy if libvirt cannot report which file the guest uses: it may
    be the copy, which has all writes of the guest.
    """
    with contextlib.suppress(Exception):
        guest.get_block_device(overlay.path).abort_job()
    if (_xpath(guest, overlay.path, 'source')
            and _find_mirror(guest, overlay.path, overlay.copy) is None):
        if disks.is_on_copy(overlay):
            scratch.exchange(new_overlay, overlay.path)
        remove_copy(overlay)


def _switch_to_overlay(guest: Any, path: str, current: str) -> None:
    """Make a guest write to an overlay on its current file.

    :param path: the overlay, which exists
    :param current: the file that the guest writes to now
    """
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
    """Remove the copy, and end the block copy, of a killed process.

    :param guest: nova.virt.libvirt.guest.Guest
    :param overlay: a disk whose backing file is not its copy
    """
    if os.path.exists(overlay.copy):
        if _find_mirror(guest, overlay.path, overlay.copy) is not None:
            guest.get_block_device(overlay.path).abort_job()
        remove_copy(overlay)


def remove_copy(overlay: disks.Overlay) -> None:
    """Remove the copy, which a complete disk no longer needs."""
    scratch.remove(overlay.copy)
