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

"""Generate policies that prevent rekeys of a migration's TLS session.

Only the destination needs the policy: the destination chooses protocol version
and cipher, even for guests that started long before on other hosts.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import stat
import sys
import tempfile
from typing import NamedTuple

TLS12, CHACHA20 = 'tls12', 'chacha20'

AES = ('AES-128-GCM', 'AES-256-GCM', 'AES-128-CCM', 'AES-256-CCM')

#: priority strings, by mode
PRIORITIES = {
    TLS12: 'NORMAL:-VERS-TLS1.3',
    CHACHA20: ':-'.join(('NORMAL', *AES)),
}

COST = ('ChaCha20-Poly1305 is 8 to 13 times slower than AES-GCM on a CPU with '
        'AES instructions; a migration takes 2 to 4 times as long.')

_OVERRIDES = {
    TLS12: (('disabled-version', 'tls1.3'),),
    CHACHA20: tuple(('tls-disabled-cipher', name.lower()) for name in AES),
}
_SECTION = re.compile(r'\s*\[([^\]]*)\]')
_SETTING = re.compile(r'\s*([^\s=:#;][^=:]*?)\s*[=:]\s*(.*?)'
                      r'(?:\s+[#;].*|\s*)$')


class PolicyError(Exception):
    """A policy cannot be made; the text gives reason and remedy."""


class Family(NamedTuple):
    """The file with the policy of one kind of host.

    :param path: of the file
    :param section: of the file, None if it has no sections
    :param settings: (key, value) by mode
    :param then: advice for the time after the file is written
    :param public: QEMU itself reads the file, as the user of the guests.
        False: libvirt reads it as root, and it may contain passwords
    """

    path: str
    section: str | None
    settings: dict[str, tuple[tuple[str, str], ...]]
    then: str
    public: bool = True


_GNUTLS = Family(
    '/etc/gnutls/config', 'overrides', _OVERRIDES,
    'It takes effect for programs that start from now on, including the QEMU '
    'of guests that arrive. It applies to every program of this host (or '
    'container) that uses GnuTLS.')

FAMILIES = {
    'debian': _GNUTLS,
    'ubuntu': _GNUTLS,
    'rhel': Family(
        '/etc/crypto-policies/local.d/gnutls-qemu.config', 'priorities',
        {mode: (('QEMU', priority),)
         for mode, priority in PRIORITIES.items()},
        'Run "update-crypto-policies" now. It applies to QEMU only.'),
    'libvirt': Family(
        '/etc/libvirt/qemu.conf', None,
        {mode: (('migrate_tls_priority', f'"{priority}"'),)
         for mode, priority in PRIORITIES.items()},
        'It needs libvirt 11.6.0 or later. Restart libvirt now. It applies to '
        'migrations only.', public=False),
}


def merge(family: Family, mode: str, text: str) -> str:
    """Add a policy to the text of a file.

    All other text stays, including comments and order.

    :param mode: TLS12 or CHACHA20
    :param text: of the file, '' if there is none
    :returns: the new text; the same text if it already has the policy
    :raises PolicyError: the file contradicts the policy
    """
    lines = text.splitlines()
    present = _settings(lines, sections=family.section is not None)
    if ('global', 'override-mode', 'allowlist') in present:
        raise PolicyError(
            'the file has override-mode = allowlist: crypto-policies '
            'generates it; use --family rhel')
    section = family.section
    wanted = family.settings[mode]
    _refuse_contradiction(section, wanted, present)
    # GnuTLS ignores the case of keys and values.
    there = {(where, key.lower(), value.lower())
             for where, key, value in present}
    missing = [f'{key} = {value}' for key, value in wanted
               if (section, key.lower(), value.lower()) not in there]
    if not missing:
        return text
    return '\n'.join(_inserted(lines, section, missing)) + '\n'


def _settings(lines: list[str], *, sections: bool,
              ) -> list[tuple[str | None, str, str]]:
    """Return (section, key, value) of all settings."""
    section: str | None = None
    found = []
    for line in lines:
        begin = _SECTION.match(line) if sections else None
        if begin:
            section = begin[1].lower()
        else:
            setting = _SETTING.match(line)
            if setting:
                found.append((section, setting[1], setting[2]))
    return found


def _refuse_contradiction(
    section: str | None, wanted: tuple[tuple[str, str], ...],
    present: list[tuple[str | None, str, str]],
) -> None:
    """Refuse a file with another value for a key that may occur only once.

    :raises PolicyError: the file has such a key
    """
    if section == 'overrides':
        return
    for where, key, value in present:
        if where == section and any(
                key == other and value != new for other, new in wanted):
            raise PolicyError(f'the file already has {key} = {value}: remove '
                              'this line if the policy may replace it')


def _inserted(lines: list[str], section: str | None,
              missing: list[str]) -> list[str]:
    """Insert lines at the end of a section; add the section if missing."""
    if section is None:
        return [*lines, *missing]
    heads = [index for index, line in enumerate(lines)
             if (match := _SECTION.match(line))
             and match[1].lower() == section]
    if not heads:
        return [*lines, *([''] if lines else []), f'[{section}]', *missing]
    end = next((index for index in range(heads[0] + 1, len(lines))
                if _SECTION.match(lines[index])), len(lines))
    while not lines[end - 1].strip():
        end -= 1
    return [*lines[:end], *missing, *lines[end:]]


def write(path: pathlib.Path, text: str, *, force: bool,
          public: bool = True) -> bool:
    """Write a file atomically.

    A replaced file keeps its owner and mode.

    :param force: replace an existing file
    :param public: make the file readable by all users; otherwise only the
        owner can read a new file
    :returns: whether the file was written; False: it had the text already
    :raises PolicyError: it exists with another text, or is not a regular file
    """
    found = _existing(path)
    wanted = 0o444 if public else 0
    if found:
        if path.read_text() == text and found.st_mode & wanted == wanted:
            return False
        if not force:
            raise PolicyError(f'{path} exists; --force replaces it')
    mode = (stat.S_IMODE(found.st_mode) if found else 0o600) | wanted
    with tempfile.NamedTemporaryFile(
            'w', dir=path.parent, prefix=f'.{path.name}-',
            delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            if found:
                os.fchown(file.fileno(), found.st_uid, found.st_gid)
            os.fchmod(file.fileno(), mode)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return True


def _existing(path: pathlib.Path) -> os.stat_result | None:
    """Return the state of a file, None if it does not exist.

    :raises PolicyError: the path is not a regular file; or it is a symbolic
        link: the new file would replace the link, not the file that is in use
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        raise PolicyError(f'{path} is a symbolic link to {os.readlink(path)}: '
                          'give the path of that file')
    if not stat.S_ISREG(found.st_mode):
        raise PolicyError(f'{path} is not a file: give another path')
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``generate``."""
    parser.add_argument('--family', required=True, choices=sorted(FAMILIES),
                        help='distribution of the host (or container); '
                        'libvirt: for qemu.conf of libvirt 11.6 and later')
    parser.add_argument('--mode', choices=(TLS12, CHACHA20), default=TLS12,
                        help='default: %(default)s, with AES-GCM')
    parser.add_argument('--merge', metavar='FILE', type=pathlib.Path,
                        help='add the policy to the text of this file')
    parser.add_argument('--output', metavar='FILE', type=pathlib.Path,
                        help='write to this file; default: standard output')
    parser.add_argument('--force', action='store_true',
                        help='replace an existing output file')


def run(args: argparse.Namespace) -> int:
    """Print or write a policy.

    :returns: 0: done, or the file had the policy already; 2: refused
    """
    family = FAMILIES[args.family]
    try:
        text = merge(family, args.mode,
                     args.merge.read_text() if args.merge else '')
        if args.output:
            written = write(args.output, text, force=args.force,
                            public=family.public)
            _say(f'{args.output}: '
                 f'{"written" if written else "up to date"}')
        else:
            sys.stdout.write(text)
    except (PolicyError, OSError) as error:
        _say(str(error))
        return 2
    if args.mode == CHACHA20:
        _say(COST)
    _say(f'For {family.path}{", mode 0644" if family.public else ""}. '
         f'{family.then}')
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)
