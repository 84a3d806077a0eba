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

from collections.abc import Callable
import errno
import os
import shutil
import time
from typing import Any

from nova import exception
from nova.i18n import _
from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import units

from nova_migfix import disks

LOG = logging.getLogger(__name__)

# Bytes, whatever the block size of the file system: stat(2).
_STAT_BLOCK = 512

# Seconds between two looks at a block pull, and without progress until it
# counts as hung.
_POLL = 0.2
_HUNG = 300


def pull(
    guest: Any, overlay: disks.Overlay, bandwidth: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Complete a disk of a running guest by a block pull.

    Its time grows with the virtual size of the disk. The guest runs on,
    whatever happens.

    :param guest: nova.virt.libvirt.guest.Guest
    :param bandwidth: most MiB/s, 0 for no limit
    :param progress: is called with the bytes that have been looked at, and
        all of them, several times a second; if it raises, the pull is ended
    :raises Exception: the disk still needs its backing file
    """
    device = guest.get_block_device(overlay.path)
    # The block pull of a nova-compute that was killed may go on.
    if device.get_job_info() is None:
        if not disks.lacks_base(overlay):
            require_space(overlay, allocated(overlay.backing))
        device.REBASE_DEFAULT_BANDWIDTH = bandwidth
        device.rebase(None)
    try:
        _wait(device, progress)
    except Exception:
        with excutils.save_and_reraise_exception():
            device.abort_job()
    # A job that is gone may have failed.
    header = disks.qcow2_header(overlay.path)
    if header is None or header.backing:
        raise exception.MigrationError(reason=_(
            'the block pull ended before the disk was complete, see the log '
            'of libvirt'))


def _wait(device: Any, report: Callable[[int, int], None]) -> None:
    """Wait for a block job, as long as it makes progress.

    :raises TimeoutError: it makes none
    """
    progress, since = None, time.monotonic()
    while not device.is_job_complete():
        job = device.get_job_info()
        if job:
            report(job.cur, job.end)
        if job and job.cur != progress:
            progress, since = job.cur, time.monotonic()
        elif time.monotonic() - since > _HUNG:
            raise TimeoutError(_(
                'the block pull has made no progress for %d seconds') % _HUNG)
        time.sleep(_POLL)


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
