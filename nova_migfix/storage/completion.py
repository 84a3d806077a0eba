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
"""Complete disks: copy the data of their backing files into them.

A complete disk needs no backing file. QEMU completes the disks of a running
guest; it keeps the backing file open even after that has been deleted.
qemu-img converts the disks of a guest that is off.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import os
import shutil
from typing import Any

from nova import exception
from nova.i18n import _
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import units

from nova_migfix.storage import block_job
from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.storage import scratch

LOG = logging.getLogger(__name__)

# Bytes; stat(2) does not use the block size of the file system.
_STAT_BLOCK = 512

# A block pull reads the whole disk, at about 400 MiB/s. A copy writes the data
# twice, at 100 MiB/s or less, and takes three jobs.
_COPY_COST_FACTOR = 8
_COPY_OVERHEAD = 4 * units.Gi


class InProgressError(exception.MigrationError):
    """Another process is completing the disk."""


def complete(
    guest: Any, overlay: disks.Overlay, bandwidth: int = 0,
    progress: block_job.Progress = block_job.silent,
) -> None:
    """Complete a disk of a running guest, in the cheaper of two ways.

    A failure does not stop the guest.

    :param guest: nova.virt.libvirt.guest.Guest
    :param bandwidth: limit in MiB/s, 0 for no limit
    :param progress: see block_job.wait; an exception from it aborts the job
    :raises InProgressError: another process is completing the disk
    :raises Exception: the disk still needs its backing file
    """
    with _exclusive(overlay):
        is_on_copy = disks.is_on_copy(overlay)
        if not is_on_copy:
            block_job.discard_copy(guest, overlay)
        device = guest.get_block_device(overlay.path)
        if is_on_copy or not device.get_job_info() and _is_copy_cheaper(
                overlay):
            try:
                overlay = block_job.lay_on_copy(
                    guest, overlay, bandwidth, progress)
            except Exception as error:
                if disks.is_on_copy(overlay):
                    raise
                LOG.info('Completing %(disk)s without a copy: %(error)s',
                         {'disk': overlay.path, 'error': error})
        pull(guest, overlay, bandwidth, progress)
        block_job.remove_copy(overlay)


def go_on(host: Any) -> None:
    """Resume the completion of disks after a process was killed.

    Otherwise its block copy continues as long as the guest runs, and libvirt
    refuses to migrate the guest. Only after the pivot does a flush by the
    guest also flush the copy.

    :param host: nova.virt.libvirt.host.Host
    """
    guests = {guest.uuid: guest for guest in host.list_guests()}
    for uuid, disk in disks.copies():
        try:
            if guest := guests.get(uuid):
                _resume(guest, disk)
        except Exception as error:
            LOG.warning('Could not finish completing %(disk)s of instance '
                        '%(uuid)s: %(error)s', {
                            'disk': disk.name, 'uuid': uuid, 'error': error})


def _resume(guest: Any, disk: disks.Overlay) -> None:
    if disks.is_on_copy(disk):
        complete(guest, disk)
    else:
        with _exclusive(disk):
            block_job.discard_copy(guest, disk)


@contextlib.contextmanager
def _exclusive(overlay: disks.Overlay) -> Iterator[None]:
    """Lock a disk against completion by another process.

    That may be nova-compute or ``nova-migfix-status heal``.

    :raises InProgressError: another process is completing the disk
    """
    path = _lock_file(overlay)
    with scratch.locked(path) as is_locked:
        if not is_locked:
            raise InProgressError(reason=_(
                'another process is completing the disk, wait for it'))
        try:
            yield
        finally:
            os.unlink(path)


def _lock_file(overlay: disks.Overlay) -> str:
    return f'{overlay.copy}.lock'


def require_not_in_progress(overlay: disks.Overlay) -> None:
    """Refuse to migrate a disk while another process completes it.

    libvirt does not migrate a guest with a block job, and the disk is on
    another backing file after the block job than before.

    :raises InProgressError: another process is completing the disk
    """
    # A killed process leaves the file, but no lock.
    if os.path.exists(_lock_file(overlay)):
        with _exclusive(overlay):
            pass


def _is_copy_cheaper(overlay: disks.Overlay) -> bool:
    """Return whether a block copy and a pull are faster than a pull alone.

    They are not for small disks or disks with much data. They are also not
    possible without enough space, or with a missing backing file, the data of
    which cannot be measured.
    """
    if disks.lacks_backing_file(overlay):
        return False
    try:
        data = image_file.flat_size(overlay.path)
        size = image_file.virtual_size(overlay.path)
        require_space(overlay, 2 * data)
    except (OSError, exception.InvalidDiskInfo,
            processutils.ProcessExecutionError):
        return False
    return size > _COPY_COST_FACTOR * data + _COPY_OVERHEAD


def pull(
    guest: Any, overlay: disks.Overlay, bandwidth: int = 0,
    progress: block_job.Progress = block_job.silent,
) -> None:
    """Complete a disk of a running guest by a block pull.

    On a raw backing file, the time grows with the virtual size of the disk. A
    failure does not stop the guest.

    :param guest: nova.virt.libvirt.guest.Guest
    :param bandwidth: limit in MiB/s, 0 for no limit
    :param progress: see block_job.wait; an exception from it aborts the job
    :raises Exception: the disk still needs its backing file
    """
    device = guest.get_block_device(overlay.path)
    # The block pull of a killed nova-compute may still run.
    if device.get_job_info() is None:
        if not disks.lacks_backing_file(overlay):
            require_space(overlay, allocated(overlay.backing))
        device.REBASE_DEFAULT_BANDWIDTH = bandwidth
        device.rebase(None)
    try:
        block_job.wait(device, progress)
    except Exception:
        with excutils.save_and_reraise_exception():
            device.abort_job()
    # libvirt does not report whether the job that ended has failed.
    header = image_file.qcow2_header(overlay.path)
    if header is None or header.backing:
        raise exception.MigrationError(reason=_(
            'the block pull ended before the disk was complete, see the log '
            'of libvirt'))


def convert(overlay: disks.Overlay, **execution: Any) -> None:
    """Complete a disk of a guest that is off.

    The cost depends on the amount of data. Without space for a second copy of
    the disk, the backing file is copied into the disk, which takes longer.

    :param execution: passed to processutils.execute, such as ``on_execute``
    :raises OSError, ProcessExecutionError: the disk has the same data as
        before, and still needs its backing file
    """
    try:
        require_space(overlay, image_file.flat_size(overlay.path))
    except OSError:
        require_space(overlay, allocated(overlay.backing))
        image_file.absorb_backing_file(overlay.path, **execution)
    else:
        image_file.flatten(overlay.path, 'qcow2', overlay.path, **execution)
    block_job.remove_copy(overlay)


def allocated(path: str) -> int:
    """Return the number of allocated bytes of a file, without its holes."""
    return os.stat(path).st_blocks * _STAT_BLOCK


def free_space(overlay: disks.Overlay) -> int:
    """Return the free bytes of the file system that has a disk."""
    return shutil.disk_usage(os.path.dirname(overlay.path)).free


def require_space(overlay: disks.Overlay, needed: int) -> None:
    """Refuse an operation that would fill the file system.

    QEMU pauses a guest that writes to a full file system, or whose block pull
    fails there.

    :param needed: upper bound of the bytes to write, beside the disk
    :raises OSError: there is not enough space
    """
    free = free_space(overlay)
    if needed > free:
        raise OSError(errno.ENOSPC, _(
            'up to %(needed)d MiB will be written, and %(free)d MiB are '
            'free') % {'needed': needed // units.Mi, 'free': free // units.Mi})
