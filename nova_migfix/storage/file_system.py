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
"""Make files with file systems that get their names when complete.

Nova makes the base file of an ephemeral or swap disk under its final name. If
mkfs fails, or nova-compute is killed, a file without a file system remains
there, and the next guest gets it as its disk.
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

# File systems that have the same name in blkid and mkfs.
_KINDS = ('btrfs', 'ext2', 'ext3', 'ext4', 'ntfs', 'vfat', 'xfs')


def whole(create: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls *create* and leaves no partial file.

    The file gets its name when it is complete.

    :param create: Nova's ``_create_ephemeral`` or ``_create_swap``
    """
    @functools.wraps(create)
    def create_whole(target: str, *args: Any, **kwargs: Any) -> None:
        # Leave ploop images, which are directories, and logical volumes alone.
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
    """Return Nova's ``_create_ephemeral`` with quick formatting of NTFS.

    Nova lets mkfs.ntfs write zeros to the whole disk, once for each size on a
    host. With the plugin each guest has its own disk, so a new disk must cost
    no more than the metadata of its file system.
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
    """Return the type of file system that Nova makes.

    Nova has no function for that, but a function that derives a file name
    extension from the type.

    :returns: None if the operator's ``[DEFAULT] virt_mkfs`` decides
    """
    extension = functools.partial(fs.get_file_extension_for_os_type, os_type)
    wanted = extension(CONF.default_ephemeral_format, guest_format)
    same = [kind for kind in _KINDS if extension(None, kind) == wanted]
    return same[0] if len(same) == 1 else None
