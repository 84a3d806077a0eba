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

"""UEFI variables of guests: read, write and remove their files as root.

libvirt keeps the variables (NVRAM) in one directory, whose owner is QEMU's
user, in files that only this user can read. A QEMU that its guest has taken
over can put anything there. So these functions, which Nova's privsep daemon
runs, follow no links, take regular files of limited size only, and write new
files instead of opening existing ones.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import ctypes
import os
import stat
import uuid

import nova.privsep

#: libvirt's directory for the files, in each of its releases
DIRECTORY = '/var/lib/libvirt/qemu/nvram'

#: limit of a file, in bytes; the largest template of edk2, for Arm, has 64 MiB
MAX_SIZE = 128 << 20

# The part of DIRECTORY that only root can change.
_ROOT = '/var/lib/libvirt'

# f_type of file systems that one host has for itself: statfs(2)
_LOCAL = frozenset((
    0xef53,             # ext2, ext3, ext4
    0x58465342,         # XFS
    0x9123683e,         # Btrfs
    0xf2f52010,         # F2FS
    0x2fc12fc1,         # ZFS
    0x794c7630,         # overlay
    0x01021994,         # tmpfs
))
_LIBC = ctypes.CDLL(None, use_errno=True)


@nova.privsep.sys_admin_pctxt.entrypoint
def save(name: str, target: str, user: int) -> None:
    """Copy the variables of a guest that is off.

    :param name: name of the file in DIRECTORY
    :param target: path of the copy; no file may exist there
    :param user: ID of the user who gets the copy
    :raises OSError: the file is missing, is a link, or cannot be copied
    :raises ValueError: the file is not a regular one of limited size
    """
    with _directory() as directory:
        content = _read(_checked(name), directory)
    _write(target, content, user, -1)


@nova.privsep.sys_admin_pctxt.entrypoint
def restore(source: str, name: str) -> None:
    """Replace the variables of a guest that is off.

    libvirt creates a file from its template only if there is none. The new
    file has the owner that libvirt would choose: the owner of the directory.

    :param source: path of the copy
    :param name: name of the file in DIRECTORY
    :raises OSError: the copy is a link, or cannot be copied
    :raises ValueError: the copy is not a regular file of limited size
    """
    content = _read(source)
    with _directory() as directory:
        owner = os.fstat(directory)
        made = f'{_checked(name)}.{uuid.uuid4().hex}'
        try:
            _write(made, content, owner.st_uid, owner.st_gid, directory)
            os.replace(made, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(made, dir_fd=directory)
            raise


@nova.privsep.sys_admin_pctxt.entrypoint
def remove(name: str) -> bool:
    """Remove the variables of a guest that has left this host.

    Keep them if another host may see the same file.

    :param name: name of the file in DIRECTORY
    :returns: whether the file existed and was removed
    :raises OSError: the file cannot be removed
    """
    try:
        with _directory() as directory:
            if _file_system(directory) not in _LOCAL:
                return False
            os.unlink(_checked(name), dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


def _checked(name: str) -> str:
    if name in ('', '.', '..') or '/' in name or '\0' in name:
        raise ValueError(f'not the name of a file: {name!r:.300}')
    return name


@contextlib.contextmanager
def _directory() -> Iterator[int]:
    """Open DIRECTORY; follow no link that QEMU's user could have made."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    with contextlib.ExitStack() as stack:
        directory = os.open(_ROOT, flags)
        stack.callback(os.close, directory)
        for part in os.path.relpath(DIRECTORY, _ROOT).split('/'):
            directory = os.open(
                part, flags | os.O_NOFOLLOW, dir_fd=directory)
            stack.callback(os.close, directory)
        yield directory


def _read(path: str, directory: int | None = None) -> bytes:
    """Return the content of a regular file.

    :raises ValueError: it is of another kind, has several names, or is larger
        than MAX_SIZE
    """
    # A FIFO must not block the daemon.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(path, flags, dir_fd=directory), 'rb') as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise ValueError(f'{path} is not a regular file with one name')
        content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise ValueError(f'{path} has more than {MAX_SIZE} bytes')
    return content


def _write(path: str, content: bytes, user: int, group: int,
           directory: int | None = None) -> None:
    """Write a new file that only its owner can read."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600, dir_fd=directory), 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.fchown(file.fileno(), user, group)


def _file_system(descriptor: int) -> int:
    """Return the type of the file system of an open file."""
    status = (ctypes.c_long * 32)()     # struct statfs is smaller
    if _LIBC.fstatfs(descriptor, status):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(status[0]) & 0xffffffff
