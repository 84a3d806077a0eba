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

"""The user of the guests, and the files that this user can read."""

from __future__ import annotations

import os
import pathlib
import pwd
import stat
import subprocess
from typing import Any

from nova_migfix.tls import qemu_conf

#: libvirt's default users for guests, by distribution
USERS = ('libvirt-qemu', 'qemu')

# Seconds to wait for an answer about a file.
_TIMEOUT = 10


def find_user() -> str:
    """Return the user of the guests.

    Return the current user if that is not known, or only root could start a
    process of that user.
    """
    found = user_of_guests() if os.geteuid() == 0 else ''
    return found or _current_user()


def _current_user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def user_of_guests() -> str:
    """Return the user in qemu.conf, else libvirt's default; '': not known."""
    try:
        configured = _configured_user()
    except OSError:
        return ''
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in (configured, *USERS) if name in known), '')


def _configured_user() -> str:
    """Return the user in libvirt's qemu.conf; '' if it has none.

    :raises OSError: this user cannot read qemu.conf
    """
    try:
        name = (qemu_conf.read('user') or '').removeprefix('+')
        return pwd.getpwuid(int(name)).pw_name if name.isdigit() else name
    except KeyError:
        return ''


def as_user(user: pwd.struct_passwd) -> dict[str, Any]:
    """Return the arguments of subprocess that change to a user."""
    if user.pw_uid == os.geteuid():
        return {}
    return {'user': user.pw_uid, 'group': user.pw_gid,
            'extra_groups': os.getgrouplist(user.pw_name, user.pw_gid)}


def closed(path: pathlib.Path) -> list[pathlib.Path]:
    """Return what keeps some users from a file: itself, and directories.

    :raises OSError: the file does not exist, or this user cannot know
    """
    # Path.resolve() has another error for a link to itself.
    file = pathlib.Path(os.path.realpath(path, strict=True))
    links = [path.absolute()]
    while links[-1].is_symlink():
        links.append(links[-1].parent / os.readlink(links[-1]))
    parents = sorted({parent for place in (*links, file)
                      for parent in place.parents})
    return [place for place, right in (
        (file, stat.S_IROTH), *((parent, stat.S_IXOTH) for parent in parents))
        if not place.stat().st_mode & right]


def is_public(path: pathlib.Path) -> bool:
    """Return whether a file does not exist, or all users can read it."""
    try:
        return not closed(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def can_read(user: str, path: pathlib.Path) -> bool | None:
    """Return whether a user can read a file; None: not known.

    The kernel decides, which also knows groups and access control lists.

    :param user: name; '': not known
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    if os.geteuid() not in (0, entry.pw_uid):
        return None
    try:
        return subprocess.run(  # noqa: S603 - no shell
            ['test', '-r', path],  # noqa: S607
            stdin=subprocess.DEVNULL, timeout=_TIMEOUT, check=False,
            **as_user(entry)).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return None
