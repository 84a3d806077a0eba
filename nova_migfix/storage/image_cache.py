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
"""The image cache keeps the base files that disks on this host name.

Nova counts the first ephemeral size of each instance that it has in the
database as used. The base of a second ephemeral disk, and all bases of
instances of which it does not know, age out while disks lie on them; a hard
reboot then makes a new file system under the data of the guest.
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
    """Nova's, which removes no base file that a disk names."""

    def _reset_state(self) -> None:
        """Begin a pass, for which the disks are looked at once.

        A base that gets its first disk meanwhile is new, or has been touched.
        """
        super()._reset_state()
        self._bases_in_use = functools.cache(disks.bases_in_use)

    def _remove_old_enough_file(
        self, base_file: str, *args: Any, **kwargs: Any,
    ) -> None:
        """Every removal of a base file passes here."""
        try:
            is_used = os.path.basename(base_file) in self._bases_in_use()
            if is_used:
                # for the other hosts that share the directory
                nova.privsep.path.utime(base_file)
        except OSError as error:
            LOG.warning('%(base)s stays: nobody can say whether a disk needs '
                        'it: %(error)s', {'base': base_file, 'error': error})
            return
        if not is_used:
            super()._remove_old_enough_file(base_file, *args, **kwargs)
