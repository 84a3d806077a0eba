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

"""Properties of a GnuTLS, read without executing a guest's library."""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import stat

_VERSION = re.compile(rb'(?<![\d.])(3\.\d+\.\d+)\0')
# Bytes to read at most; libgnutls has about two million.
_LARGEST = 32 << 20


def version(path: pathlib.Path) -> str | None:
    """Return the version of a library, found in its bytes.

    The library is not loaded: a process may have mapped any file, even an
    endless pipe or a file that is larger than memory.

    :returns: '3.8.9'; None: the file cannot be read or has no single version
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    with open(descriptor, 'rb') as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        try:
            found = set(_VERSION.findall(file.read(_LARGEST)))
        except OSError:
            return None
    return found.pop().decode() if len(found) == 1 else None


def system_file() -> pathlib.Path | None:
    """Return the path of the configuration that this host's GnuTLS reads.

    :returns: None if there is no GnuTLS
    """
    try:
        ask = ctypes.CDLL('libgnutls.so.30').gnutls_get_system_config_file
    except (OSError, AttributeError):
        return None
    ask.restype = ctypes.c_char_p
    return pathlib.Path(ask().decode())
