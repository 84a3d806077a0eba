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
"""QEMU's user, its running processes, and libvirt's qemu.conf."""

from __future__ import annotations

import os
import pathlib
import pwd
import re
import stat
from typing import NamedTuple

from nova_migfix.tls import audit
from nova_migfix.tls import qemu_conf
from nova_migfix.tls import users

# libvirt's default directories of certificates.
_MIGRATE = pathlib.Path('/etc/pki/libvirt-migrate')
_DEFAULT = pathlib.Path('/etc/pki/qemu')
_IDS = re.compile(
    r'^(?:Uid:\s+\d+\s+(?P<uid>\d+)|Gid:\s+\d+\s+(?P<gid>\d+)'
    r'|Groups:(?P<groups>[\d \t]*)).*$', re.MULTILINE)


class User(NamedTuple):
    """The rights of a process."""

    uid: int
    gids: frozenset[int]

    def may_read(self, path: pathlib.Path) -> bool:
        """Return whether the permission bits let this user read a file.

        :raises OSError: this process cannot examine the file
        """
        return self._has(path, stat.S_IROTH) and all(
            self._has(parent, stat.S_IXOTH) for parent in path.parents)

    def _has(self, path: pathlib.Path, bit: int) -> bool:
        """Return whether a file grants a right.

        :param bit: the right, as the one of others
        """
        found = path.stat()
        # An access control list may grant more than the bits show.
        if self.uid == 0 or 'system.posix_acl_access' in os.listxattr(path):
            return True
        shift = (6 if found.st_uid == self.uid
                 else 3 if found.st_gid in self.gids else 0)
        return bool(found.st_mode & bit << shift)


class Process(NamedTuple):
    """A running QEMU."""

    name: str           # libvirt's, 'instance-0000002a'
    root: pathlib.Path  # of its mount namespace
    user: User


def running() -> list[Process]:
    """Return the running QEMUs, without those that end in the meantime.

    :raises OSError: this process cannot read /proc
    """
    found = []
    for place, arguments in audit.qemus():
        try:
            text = (place / 'status').read_text(errors='replace')
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.append(Process(audit.name(arguments), place / 'root',
                             parse_user(text)))
    return found


def parse_user(text: str) -> User:
    """Return the effective user in /proc/PID/status; see proc_pid_status(5).

    Without such lines it is the user 65534 (nobody) in no group.
    """
    values: dict[str, str] = {}
    for match in _IDS.finditer(text):
        values.update(filter(lambda item: item[1] is not None,
                             match.groupdict().items()))
    gids = values.get('groups', '').split()
    return User(int(values.get('uid', 65534)), frozenset(
        map(int, [*gids, *filter(None, [values.get('gid')])])))


def user() -> User | None:
    """Return the user of guests; None: not known.

    That of a running guest, else the one in qemu.conf, else libvirt's
    default. With Kolla, guests and qemu.conf are in another container.
    """
    for process in running():
        return process.user
    if not os.path.exists(qemu_conf.PATH):
        return None
    try:
        entry = pwd.getpwnam(users.user_of_guests())
    except KeyError:
        return None
    return User(entry.pw_uid, frozenset(
        os.getgrouplist(entry.pw_name, entry.pw_gid)))


def setting(name: str) -> str | None:
    """Return a setting of qemu.conf; None: unset, or not known."""
    try:
        return qemu_conf.read(name)
    except OSError:
        return None


def credentials() -> pathlib.Path:
    """Return the directory with the certificates of migrations.

    libvirt's order: migrate_tls_x509_cert_dir, its default if that exists,
    default_tls_x509_cert_dir; see qemu.conf.
    """
    return pathlib.Path(
        setting('migrate_tls_x509_cert_dir')
        or (_MIGRATE if _MIGRATE.exists() else None)
        or setting('default_tls_x509_cert_dir') or _DEFAULT)
