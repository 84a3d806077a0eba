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
"""Keep the base files that disks on this host use in the image cache.

Nova counts only the first ephemeral size of each instance in the database as
used. It deletes the base file of a second ephemeral disk, and all base files
of instances that are not in the database, while disks use them. A hard reboot
then makes a new file system under the data of the guest.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import nova.privsep.path
from nova.virt.libvirt import imagecache
from oslo_log import log as logging

from nova_migfix.storage import disks

LOG = logging.getLogger(__name__)


class ImageCacheManager(imagecache.ImageCacheManager):
    """Nova's manager, which here removes no base file that a disk uses."""

    def _reset_state(self) -> None:
        """Begin a pass, and read the disks once for the whole pass.

        A base file that gets its first disk during the pass is safe: it is
        new, or Nova has updated its modification time.
        """
        super()._reset_state()
        self._bases_in_use = functools.cache(disks.bases_in_use)

    def _remove_old_enough_file(
        self, base_file: str, *args: Any, **kwargs: Any,
    ) -> None:
        """Remove a base file unless a disk uses it.

        Nova calls this for each base file that it removes.
        """
        try:
            is_used = os.path.basename(base_file) in self._bases_in_use()
            if is_used:
                # Other hosts that share the directory must not remove it.
                nova.privsep.path.utime(base_file)
        except OSError as error:
            LOG.warning('Keeping %(base)s: could not determine whether a disk '
                        'needs it: %(error)s', {
                            'base': base_file, 'error': error})
            return
        if not is_used:
            super()._remove_old_enough_file(base_file, *args, **kwargs)
