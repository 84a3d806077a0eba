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
"""Complete disks: what their backing files have is copied into them.

A running guest's QEMU does it, and has the backing file open even if that has
lost its name. The disk of a guest that is off is converted.
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
from nova_migfix.storage import scratch

LOG = logging.getLogger(__name__)

# Bytes, whatever the block size of the file system: stat(2).
_STAT_BLOCK = 512

# A block pull reads the whole disk, at some 400 MiB/s; a copy writes the data
# twice, at no more than 100 MiB/s, and has three jobs to do.
_COPY_IS_DEARER = 8
_COPY_OVERHEAD = 4 * units.Gi


def complete(
    guest: Any, overlay: disks.Overlay, bandwidth: int = 0,
    progress: block_job.Progress = block_job.silent,
) -> None:
    """Complete a disk of a running guest, in whichever way costs less.

    The guest runs on, whatever happens.

    :param guest: nova.virt.libvirt.guest.Guest
    :param bandwidth: most MiB/s, 0 for no limit
    :param progress: see block_job.wait; if it raises, the job is ended
    :raises Exception: the disk still needs its backing file
    """
    with _alone(overlay):
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
                LOG.info('%(disk)s is completed without a copy: %(error)s',
                         {'disk': overlay.path, 'error': error})
        pull(guest, overlay, bandwidth, progress)
        block_job.remove_copy(overlay)


def go_on(host: Any) -> None:
    """Go on where a process was killed that completed disks.

    Its block copy would go on for as long as the guest runs, and keep libvirt
    from a migration; the copy has what the guest flushes only after the pivot.

    :param host: nova.virt.libvirt.host.Host
    """
    guests = {guest.uuid: guest for guest in host.list_guests()}
    for uuid, disk in disks.copies():
        try:
            if guest := guests.get(uuid):
                _go_on(guest, disk)
        except Exception as error:
            LOG.warning('%(disk)s of instance %(uuid)s stays half completed: '
                        '%(error)s', {'disk': disk.name, 'uuid': uuid,
                                      'error': error})


def _go_on(guest: Any, disk: disks.Overlay) -> None:
    if disks.is_on_copy(disk):
        complete(guest, disk)
    else:
        with _alone(disk):
            block_job.discard_copy(guest, disk)


@contextlib.contextmanager
def _alone(overlay: disks.Overlay) -> Iterator[None]:
    """Have nobody else complete a disk, as ``nova-migfix-status heal`` may.

    :raises MigrationError: somebody does
    """
    path = f'{overlay.copy}.lock'
    with scratch.locked(path) as is_locked:
        if not is_locked:
            raise exception.MigrationError(reason=_(
                'another process is completing the disk, wait for it'))
        try:
            yield
        finally:
            os.unlink(path)


def _is_copy_cheaper(overlay: disks.Overlay) -> bool:
    """Say whether a copy of the disk, and a pull of that, is the faster way.

    It is not for disks with much data, for small ones, and without the space.
    How much data there is, nobody knows of a backing file that is missing.
    """
    if disks.lacks_backing_file(overlay):
        return False
    try:
        data = disks.flat_size(overlay.path)
        size = disks.virtual_size(overlay.path)
        require_space(overlay, 2 * data)
    except (OSError, exception.InvalidDiskInfo,
            processutils.ProcessExecutionError):
        return False
    return size > _COPY_IS_DEARER * data + _COPY_OVERHEAD


def pull(
    guest: Any, overlay: disks.Overlay, bandwidth: int = 0,
    progress: block_job.Progress = block_job.silent,
) -> None:
    """Complete a disk of a running guest by a block pull.

    Its time grows with the virtual size of a disk on a raw backing file. The
    guest runs on, whatever happens.

    :param guest: nova.virt.libvirt.guest.Guest
    :param bandwidth: most MiB/s, 0 for no limit
    :param progress: see block_job.wait; if it raises, the job is ended
    :raises Exception: the disk still needs its backing file
    """
    device = guest.get_block_device(overlay.path)
    # The block pull of a nova-compute that was killed may go on.
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
    # A job that is gone may have failed.
    header = disks.qcow2_header(overlay.path)
    if header is None or header.backing:
        raise exception.MigrationError(reason=_(
            'the block pull ended before the disk was complete, see the log '
            'of libvirt'))


def convert(overlay: disks.Overlay, **execution: Any) -> None:
    """Complete a disk of a guest that is off; the cost follows the data.

    Where there is no room for a second copy of the disk, the backing file is
    copied into the disk, which takes longer.

    :param execution: for processutils.execute, as ``on_execute``
    :raises OSError, ProcessExecutionError: the disk is as it was
    """
    try:
        require_space(overlay, disks.flat_size(overlay.path))
    except OSError:
        require_space(overlay, allocated(overlay.backing))
        disks.absorb_backing_file(overlay.path, **execution)
    else:
        disks.flatten(overlay.path, 'qcow2', overlay.path, **execution)
    block_job.remove_copy(overlay)


def allocated(path: str) -> int:
    """Return how many bytes of a file are not holes."""
    return os.stat(path).st_blocks * _STAT_BLOCK


def free_space(overlay: disks.Overlay) -> int:
    """Return how many bytes are free where a disk is."""
    return shutil.disk_usage(os.path.dirname(overlay.path)).free


def require_space(overlay: disks.Overlay, needed: int) -> None:
    """Refuse what would fill the file system, as far as that is known.

    QEMU pauses guests that write to a full file system, also this one if its
    block pull fails.

    :param needed: bytes that will be written beside the disk
    :raises OSError: there is not enough space
    """
    free = free_space(overlay)
    if needed > free:
        raise OSError(errno.ENOSPC, _(
            'up to %(needed)d MiB will be written, and %(free)d MiB are '
            'free') % {'needed': needed // units.Mi, 'free': free // units.Mi})
