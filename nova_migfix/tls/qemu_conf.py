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

"""Read libvirt's qemu.conf."""

from __future__ import annotations

import importlib
import pathlib
import re
from typing import NamedTuple

PATH = pathlib.Path('/etc/libvirt/qemu.conf')
PRIORITY = 'migrate_tls_priority'

# libvirt 11.6.0, the first one that passes PRIORITY to QEMU
_WITH_PRIORITY = 11006000


class Priority(NamedTuple):
    """The priority string that libvirt passes to QEMU for migrations.

    :ivar string: None: libvirt passes none
    :ivar doubt: why it is not known
    """

    string: str | None = None
    doubt: str = ''


def priority() -> Priority:
    """Return the priority string of this host's libvirt."""
    version = _version()
    if version is not None and version < _WITH_PRIORITY:
        return Priority()
    try:
        string = read(PRIORITY)
    except OSError as error:
        # An older libvirt is more probable.
        return Priority() if version is None else Priority(None, (
            f'{PATH} may have {PRIORITY}: {error.strerror}; run '
            '"nova-migfix-tls probe" as root'))
    if string and version is None:
        return Priority(None, (
            f'{PATH} has {PRIORITY} = {string}, which libvirt 11.6.0 and '
            'later passes to QEMU, and the release of libvirt is not known; '
            'run "nova-migfix-tls probe" with this string as --priority, or '
            'with "--priority=" for an older libvirt'))
    return Priority(string)


def _version() -> int | None:
    """Return libvirt's number of its release; None: not known."""
    try:
        return int(importlib.import_module('libvirt').getVersion())
    except ImportError:
        return None


def read(name: str) -> str | None:
    """Return a setting of this host, as :func:`value`.

    :returns: None: unset, or the file is not here. With Kolla, it is in the
        container nova_libvirt
    :raises OSError: this user cannot read the file
    """
    try:
        return value(name, PATH.read_text(errors='replace'))
    except FileNotFoundError:
        return None


def value(name: str, text: str) -> str | None:
    """Return a number or a string in the text of qemu.conf.

    :returns: the first value, as libvirt, without quotation marks; None:
        unset
    """
    found = re.search(
        rf'^[ \t]*{re.escape(name)}[ \t]*=[ \t]*'
        r'(?:"([^"\n]*)"|\'([^\'\n]*)\'|(\d+))', text, re.MULTILINE)
    return next(filter(None, found.groups()), '') if found else None
