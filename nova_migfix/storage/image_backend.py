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
"""New ephemeral and swap disks are complete; old ones keep their base.

Nova's qcow2 backend makes an ephemeral disk as an overlay on a base file in
``_base``, and makes that file whenever it is not there: also under an overlay
that has the data of a guest. The name of a base says nothing of its label, and
not always of its file system, so disks of one size share what the first of
them asked for.

This backend makes each new disk complete, with the file system and the label
that were asked for and a UUID of its own. Nothing of it can be lost, replaced
or taken for another afterwards. The backend never makes a base under an
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
from oslo_config import cfg
from oslo_log import log as logging

from nova_migfix.storage import disks
from nova_migfix.storage import scratch

LOG = logging.getLogger(__name__)
CONF = cfg.CONF


class Qcow2(imagebackend.Qcow2):
    """Nova's, for disks that need no backing file.

    The name of a base file tells a disk with a file system, which Nova makes,
    from one of an image of Glance. The latter are left to Nova.
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
        """Say whether Nova may make a new overlay, and the base for it."""
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
            disks.flatten(template, 'raw', self.path)

    def _keep_overlay(self, prepare: Callable[..., None]) -> None:
        """Keep Nova from making the base of a disk that has lost its own.

        :raises InvalidDiskInfo: the disk has data
        """
        for overlay in disks.overlays(os.path.dirname(self.path)):
            if overlay.path == self.path and disks.lacks_backing_file(overlay):
                complete_without_base(overlay, prepare)


def complete_without_base(
    overlay: disks.Overlay, prepare: Callable[..., None],
) -> None:
    """Make a disk complete whose base is lost, and has nothing to lose.

    A swap area has nothing that outlives the guest's run.

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
        disks.flatten(overlay.path, 'qcow2', overlay.path, backing=template)
    LOG.warning('%(disk)s has a new file system: its backing file %(base)s '
                'is missing, and the guest had not written to the disk',
                {'disk': overlay.path, 'base': overlay.backing})


def extend(backends: dict[str, type]) -> None:
    """Put :class:`Qcow2` where Nova's stands in its table of backends."""
    backends.update(
        (name, Qcow2) for name, backend in backends.items()
        if backend is imagebackend.Qcow2)
