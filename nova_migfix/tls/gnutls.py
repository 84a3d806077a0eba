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
import functools
import os
import pathlib
import re
import shutil
from typing import NamedTuple

from oslo_concurrency import processutils

from nova_migfix.tls import regular
from nova_migfix.tls import rekey

_VERSION = re.compile(rb'(?<![\d.])(3\.\d+\.\d+)\0')
_OVERRIDE = 'GNUTLS_SYSTEM_PRIORITY_FILE'

# Seconds to wait for a database of packages, which may be locked.
_TIMEOUT = '10'

# Bytes to read at most; libgnutls has about two million.
_LARGEST = 32 << 20

_MAPPED = re.compile(
    r'^([0-9a-f]+-[0-9a-f]+) \S+ \S+ \S+ \d+ +(/\S*libgnutls\.so\S*)'
    r'( \(deleted\))?$', re.MULTILINE)
# A host may have the package of several architectures, in one version.
_PACKAGE = (
    ('dpkg-query', '--show', '--showformat', r'${Version}\n', 'libgnutls30*'),
    ('rpm', '--query', '--queryformat', r'%{VERSION}-%{RELEASE}\n', 'gnutls'),
)


class Library(NamedTuple):
    """The GnuTLS that a process has mapped."""

    path: str           # '' if this user may not read it
    deleted: bool       # the file on disk was replaced since
    version: str | None
    package: str        # '' if not known

    @property
    def rekeys_safely(self) -> bool | None:
        """Whether it rekeys safely; None: not known."""
        return (rekey.is_fixed(self.version, self.package)
                if self.version else None)


#: this user may not read which library a process has mapped
UNKNOWN = Library('', False, None, '')


def version(path: pathlib.Path) -> str | None:
    """Return the version of a library, found in its bytes.

    The library is not loaded: a process may have mapped any file, even an
    endless pipe or a file that is larger than memory.

    :returns: '3.8.9'; None: the file cannot be read or has no single version
    """
    try:
        with regular.opened(path) as file:
            found = set(_VERSION.findall(file.read(_LARGEST)))
    except OSError:
        return None
    return found.pop().decode() if len(found) == 1 else None


def mapped_by(process: pathlib.Path) -> Library | None:
    """Return the GnuTLS that a process has mapped; None: it has none.

    :param process: its directory in /proc
    :raises FileNotFoundError, ProcessLookupError: the process has ended
    """
    try:
        match = _MAPPED.search(
            (process / 'maps').read_text(errors='replace'))
    except PermissionError:
        return UNKNOWN
    if not match:
        return None
    mapping, path, deleted = match[1], match[2], bool(match[3])
    # map_files has the mapped file, even if its path has another file now.
    found = version(process / 'map_files' / mapping)
    if deleted:
        return Library(path, True, found, '')
    return Library(
        path, False,
        found or version(process / 'root' / path.lstrip('/')),
        _package() if _is_of_this_system(process) else '')


def _is_of_this_system(process: pathlib.Path) -> bool:
    """Return whether a process has our root directory, not a container's."""
    try:
        return (process / 'root').samefile('/')
    except OSError:
        return False


@functools.cache
def _package() -> str:
    for command in _PACKAGE:
        if shutil.which(command[0]):
            try:
                out, _ = processutils.execute('timeout', _TIMEOUT, *command)
            except processutils.ProcessExecutionError:
                continue
            if out.strip():
                return str(out).split()[0]
    return ''


def system_file() -> pathlib.Path | None:
    """Return the path of the configuration that QEMU's GnuTLS reads.

    libvirt starts QEMU without this process' environment.

    :returns: None if there is no GnuTLS
    """
    override = os.environ.pop(_OVERRIDE, None)
    try:
        # The library reads the environment when it is loaded.
        ask = ctypes.CDLL('libgnutls.so.30').gnutls_get_system_config_file
    except (OSError, AttributeError):
        return None
    finally:
        if override is not None:
            os.environ[_OVERRIDE] = override
    ask.restype = ctypes.c_char_p
    return pathlib.Path(ask().decode())
