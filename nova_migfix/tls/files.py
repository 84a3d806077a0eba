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

"""Write a configuration file that other programs read at any time."""

from __future__ import annotations

import errno
import os
import pathlib
import stat
import tempfile

from nova_migfix.tls import ini


class RefusedError(Exception):
    """The file was not written; the text gives reason and remedy."""


def write(path: pathlib.Path, text: str, *, force: bool,
          public: bool = True) -> bool:
    """Write a file atomically.

    A replaced file keeps its owner and mode.

    :param text: see :func:`ini.read`
    :param force: replace an existing file
    :param public: make the file readable by all users; otherwise only the
        owner can read a new file
    :returns: whether the file was written; False: it had the text already
    :raises RefusedError: it exists with another text, is not a regular file,
        or is a mount
    :raises OSError: it cannot be written
    """
    found = _existing(path)
    content = ini.encode(text)
    wanted = 0o444 if public else 0
    if found:
        if (path.read_bytes() == content
                and found.st_mode & wanted == wanted):
            return False
        if not force:
            raise RefusedError(f'{path} exists; --force replaces it')
    mode = (stat.S_IMODE(found.st_mode) if found else 0o600) | wanted
    with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f'.{path.name}-',
            delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if found:
                os.fchown(file.fileno(), found.st_uid, found.st_gid)
            os.fchmod(file.fileno(), mode)
            os.replace(file.name, path)
        except BaseException as error:
            os.unlink(file.name)
            if isinstance(error, OSError) and error.errno == errno.EBUSY:
                raise RefusedError(
                    f'{path} is mounted, and cannot be replaced here: write '
                    'the file that is mounted, on the host, then restart the '
                    'container') from error
            raise
    return True


def _existing(path: pathlib.Path) -> os.stat_result | None:
    """Return the state of a file, None if it does not exist.

    :raises RefusedError: the path is not a regular file; or it is a symbolic
        link: the new file would replace the link, not the file that is in use
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        raise RefusedError(f'{path} is a symbolic link to '
                           f'{os.readlink(path)}: give the path of that file')
    if not stat.S_ISREG(found.st_mode):
        raise RefusedError(f'{path} is not a file: give another path')
    return found
