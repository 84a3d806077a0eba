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


"""Find whether AppArmor keeps guests from the configuration of GnuTLS.

libvirt confines guests if AppArmor confines libvirt itself. AppArmor 3.0, as
in Debian 12, has no rule for /etc/gnutls/config. GnuTLS then continues without
its configuration. The probe's QEMU is not confined.
"""

from __future__ import annotations

import os
import pathlib
import re

_PROC = pathlib.Path('/proc')
_ETC = pathlib.Path('/etc/apparmor.d')

# Profiles of libvirt and of a guest, in /proc/PID/attr/current.
_CONFINED = re.compile(
    r'(/usr/sbin/)?(libvirtd|virtqemud) |libvirt-[0-9a-f-]{36} \(enforce\)')

# Files with the rules of guests; libvirt reads them when a guest starts.
_LOCAL = 'local/abstractions/libvirt-qemu'
_RULES = (_LOCAL, 'libvirt/TEMPLATE.qemu', *(
    f'abstractions/{name}{more}' for name in ('base', 'crypto', 'libvirt-qemu')
    for more in ('', '.d/*')))


def problem(path: pathlib.Path) -> str:
    """Return why guests may be unable to read a file, with the remedy.

    :returns: '' if it does not exist, they are not confined, or a rule names
        it
    """
    if (not os.path.exists(path) or not _guests_are_confined()
            or _has_rule(path)):
        return ''
    return (f'AppArmor has no rule that lets guests read {path}; write '
            f'"{path} r," into {_ETC / _LOCAL}')


def _guests_are_confined() -> bool:
    return any(_CONFINED.match(_text(process / 'attr/current'))
               for process in _PROC.glob('[0-9]*'))


def _has_rule(path: pathlib.Path) -> bool:
    # A rule may begin with a variable for /etc.
    end = re.escape('/'.join(path.parts[-2:]))
    rule = re.compile(rf'^[ \t]*(?![#\s]|deny\b|audit\s+deny\b).*/{end}\s',
                      re.MULTILINE)
    return any(rule.search(_text(file)) for pattern in _RULES
               for file in _ETC.glob(pattern))


def _text(file: pathlib.Path) -> str:
    """Return the text of a file; '' if it cannot be read."""
    try:
        return file.read_text(errors='replace')
    except OSError:
        return ''
