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

"""The locks by which QEMU marks an image as in use.

QEMU locks single bytes of each image that is open and active: one for each
permission that a user of the image has, and one for each permission that it
denies to others. A guest that a live migration has left inactive holds none.

Source: ``RAW_LOCK_PERM_BASE`` and ``raw_apply_lock_bytes`` in QEMU's
``block/file-posix.c``, since QEMU 2.10. The locks are open file description
locks; see fcntl(2).
"""

from __future__ import annotations

import fcntl
import os
import struct

# Bytes 100 to 163 stand for permissions, bytes 200 to 263 for denied ones.
_FIRST_BYTE, _LENGTH = 100, 164

# struct flock: l_type, l_whence, l_start, l_len, l_pid, and padding
_FLOCK = struct.Struct('hhqqi0q')


def is_locked(path: str) -> bool:
    """Return whether a process has locked an image as QEMU does.

    :param path: of a file or a block device on this host
    :raises OSError: the file cannot be read, or its file system has no locks
    """
    question = _FLOCK.pack(
        fcntl.F_WRLCK, os.SEEK_SET, _FIRST_BYTE, _LENGTH, 0)
    image = os.open(path, os.O_RDONLY)
    try:
        answer = fcntl.fcntl(image, fcntl.F_OFD_GETLK, question)
    finally:
        os.close(image)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
