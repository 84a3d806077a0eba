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

"""The users of a host: those of the machine, and nova.

nova-compute runs as nova, which becomes root for privsep only. QEMU runs as
the user of the distribution's package, and libvirt gives that user the files
of a guest while it runs (dynamic ownership). Each host has its own
/etc/passwd, /etc/group and /etc/sudoers, so that the machine's files stay
unchanged.
"""

from __future__ import annotations

import pathlib

NOVA = 'nova'
# The id of the user and of the group nova, as in Kolla's images.
NOVA_ID = 42436

QEMU, QEMU_GROUP = 'libvirt-qemu', 'kvm'
LIBVIRT_GROUP = 'libvirt'

# Debian's packages put nova into the same groups.
_GROUPS_OF_NOVA = (QEMU_GROUP, LIBVIRT_GROUP)


def files(home: pathlib.Path,
          venvs: pathlib.Path) -> dict[str, tuple[str, int]]:
    """Return ``{path below the root: (text, mode)}`` for a host.

    :param home: the home directory of nova
    :param venvs: the directory with all virtual environments
    """
    return {
        'etc/passwd': (_passwd(home), 0o644),
        'etc/group': (_group(), 0o644),
        # sshd refuses locked accounts, and root's is often locked.
        'etc/shadow': (''.join(f'{user}:*:19000:0:99999:7:::\n'
                               for user in ('root', NOVA)), 0o600),
        # Without the secure_path of the machine's file, which overrides PATH.
        'etc/sudoers': (f'{NOVA} ALL = (root) NOPASSWD:SETENV: '
                        f'{venvs}/*/bin/privsep-helper\n', 0o440),
    }


def _machine(name: str) -> list[str]:
    """Return the lines of one of the machine's files, without user nova."""
    return [line for line in pathlib.Path('/etc', name).read_text(
        ).splitlines() if not line.startswith(f'{NOVA}:')]


def _passwd(home: pathlib.Path) -> str:
    nova = f'{NOVA}:x:{NOVA_ID}:{NOVA_ID}::{home}:/bin/sh'
    return '\n'.join([*_machine('passwd'), nova, ''])


def _group() -> str:
    lines = [f'{NOVA}:x:{NOVA_ID}:']
    for line in _machine('group'):
        name, password, number, members = line.split(':')
        if name in _GROUPS_OF_NOVA:
            members = ','.join(filter(None, (members, NOVA)))
        lines.append(':'.join((name, password, number, members)))
    return '\n'.join([*lines, ''])
