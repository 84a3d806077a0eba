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
"""File systems get the names of their files when they are complete.

Nova makes the base of an ephemeral or swap disk in its place. A mkfs that
fails, or a nova-compute that dies, leaves a file without a file system there,
and the next guest gets it as its disk.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import os
from typing import Any

from nova.privsep import fs
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_utils import units

from nova_migfix.storage import scratch

CONF = cfg.CONF

# File systems whose names blkid and mkfs share.
_KINDS = ('btrfs', 'ext2', 'ext3', 'ext4', 'ntfs', 'vfat', 'xfs')


def whole(create: Callable[..., None]) -> Callable[..., None]:
    """Return a function that makes a file as *create* does, or no file.

    :param create: Nova's ``_create_ephemeral`` or ``_create_swap``
    """
    @functools.wraps(create)
    def create_whole(target: str, *args: Any, **kwargs: Any) -> None:
        # A ploop image is a directory; others are logical volumes.
        if (CONF.libvirt.virt_type == 'parallels'
                or not target.startswith(CONF.instances_path)):
            create(target, *args, **kwargs)
            return
        with scratch.directory(target) as directory:
            made = os.path.join(directory, os.path.basename(target))
            create(made, *args, **kwargs)
            os.rename(made, target)
    return create_whole


def sparse(create: Callable[..., None]) -> Callable[..., None]:
    """Return Nova's ``_create_ephemeral`` with a quick NTFS.

    Nova has mkfs.ntfs write zeros over the whole disk, for each new size on a
    host. A disk of its own for each guest must cost no more than its metadata.
    """
    @functools.wraps(create)
    def create_sparse(
        target: str, ephemeral_size: float, fs_label: str,
        os_type: str | None, is_block_dev: bool = False,
        context: Any = None, specified_fs: str | None = None,
        vm_mode: str | None = None,
    ) -> None:
        if is_block_dev or kind_of(os_type, specified_fs) != 'ntfs':
            create(target, ephemeral_size, fs_label, os_type, is_block_dev,
                   context, specified_fs, vm_mode)
            return
        with open(target, 'wb') as file:
            file.truncate(int(ephemeral_size * units.Gi))
        processutils.execute('mkfs', '-t', 'ntfs', '-F', '-Q', '-L', fs_label,
                             target)
    return create_sparse


def kind_of(os_type: str | None, guest_format: str | None) -> str | None:
    """Return the file system that Nova makes.

    Nova does not say so itself, but derives a name from it.

    :returns: None where the operator's ``[DEFAULT] virt_mkfs`` decides
    """
    name = functools.partial(fs.get_file_extension_for_os_type, os_type)
    asked = name(CONF.default_ephemeral_format, guest_format)
    same = [kind for kind in _KINDS if name(None, kind) == asked]
    return same[0] if len(same) == 1 else None
