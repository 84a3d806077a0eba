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
"""Make complete ephemeral and swap disks, and keep existing overlays.

Nova's qcow2 backend makes an ephemeral disk as an overlay on a base file in
``_base``. It makes that file whenever it is missing, even under an overlay
that has the data of a guest. The name of a base file does not include its
label, nor always its file system, so all disks of one size share the label and
file system of the first one.

This backend makes each new disk complete, with the requested file system and
label and a UUID of its own. Such a disk has no base file that can be lost,
replaced or confused with another. The backend never makes a base file under an
overlay that has data.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import os
from typing import Any

from nova import exception
from nova.i18n import _
from nova.virt.libvirt import imagebackend
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging

from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.storage import scratch

LOG = logging.getLogger(__name__)
CONF = cfg.CONF


class Qcow2(imagebackend.Qcow2):
    """Nova's qcow2 backend, extended with disks that need no backing file.

    The name of a base file distinguishes ephemeral and swap disks from those
    with an image of Glance, which are left to Nova.
    """

    def cache(
        self, fetch_func: Callable[..., None], filename: str, *args: Any,
        **kwargs: Any,
    ) -> None:
        if disks.has_local_base_name(filename) and self.exists():
            self._keep_overlay(functools.partial(
                fetch_func, **{name: value for name, value in kwargs.items()
                               if name not in ('size', 'safe')}))
        super().cache(fetch_func, filename, *args, **kwargs)

    def create_image(
        self, prepare_template: Callable[..., None], base: str, size: int,
        *args: Any, **kwargs: Any,
    ) -> None:
        if (not disks.has_local_base_name(base)
                or self._is_overlay_wanted(base)):
            super().create_image(prepare_template, base, size, *args, **kwargs)
        elif not self.exists():
            kwargs.pop('safe', None)
            self._make_complete(functools.partial(
                prepare_template, *args, **kwargs))

    def _is_overlay_wanted(self, base: str) -> bool:
        """Return whether Nova may make a new overlay, and its base file."""
        if not CONF.migfix.ephemeral_overlays or self.exists():
            return False
        try:
            return (os.path.exists(base)
                    or os.path.basename(base) not in disks.bases_in_use())
        except OSError:
            return False

    def _make_complete(self, prepare: Callable[..., None]) -> None:
        with scratch.directory(self.path) as directory:
            template = os.path.join(directory, 'raw')
            prepare(target=template)
            image_file.flatten(template, 'raw', self.path)

    def _keep_overlay(self, prepare: Callable[..., None]) -> None:
        """Prevent Nova from making the missing base file of an overlay.

        Complete the disk instead.

        :raises InvalidDiskInfo: the disk has data
        """
        for overlay in disks.overlays(os.path.dirname(self.path)):
            if overlay.path == self.path and disks.lacks_backing_file(overlay):
                complete_without_base(overlay, prepare)


def complete_without_base(
    overlay: disks.Overlay, prepare: Callable[..., None],
) -> None:
    """Complete a disk that has no data, and whose base file is missing.

    A swap disk counts as one without data: a swap area is not used after the
    guest has stopped.

    :param prepare: makes a raw file system in the file *target*
    :raises InvalidDiskInfo: the guest has written to the disk
    """
    if disks.is_written(overlay) and not overlay.is_swap:
        raise exception.InvalidDiskInfo(reason=_(
            '%(name)s of instance %(uuid)s has data, but its backing file '
            '%(base)s is missing; a new one would destroy the data. Get that '
            'very file back from a backup, or from the host where the disk '
            'was made.') % {
                'name': overlay.name, 'base': overlay.backing,
                'uuid': os.path.basename(os.path.dirname(overlay.path))})
    with scratch.directory(overlay.path) as directory:
        template = os.path.join(directory, 'raw')
        prepare(target=template)
        image_file.flatten(
            overlay.path, 'qcow2', overlay.path, backing=template)
    LOG.warning('%(disk)s has a new file system: its backing file %(base)s '
                'is missing, and the guest had not written to the disk',
                {'disk': overlay.path, 'base': overlay.backing})


def reserve(backend: imagebackend.Image, size: int) -> None:
    """Reserve the space of a disk if ``preallocate_images`` requests that.

    As ``Image.cache`` does for an overlay.

    :param size: virtual size in bytes
    """
    if backend.preallocate and backend._can_fallocate():
        processutils.execute('fallocate', '-n', '-l', str(size), backend.path)


def extend(backends: dict[str, type]) -> None:
    """Replace Nova's qcow2 backend by :class:`Qcow2` in Nova's table."""
    backends.update(
        (name, Qcow2) for name, backend in backends.items()
        if backend is imagebackend.Qcow2)
