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

"""Policies under which a migration's TLS session never changes keys.

A destination with such a policy is enough: it decides what is agreed upon,
also for guests that were started long before on other hosts.
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
    """A policy cannot be made; the text says why and what to do."""


class Family(NamedTuple):
    """How one kind of host is told.

    :param path: where the policy belongs
    :param section: of the file, None if it has no sections
    :param settings: (key, value) by mode
    :param then: what is to be done afterwards
    :param public: QEMU itself reads the file, as the user that guests run as;
        what libvirt reads as root may have passwords
    """

    path: str
    section: str | None
    settings: dict[str, tuple[tuple[str, str], ...]]
    then: str
    public: bool = True


_GNUTLS = Family(
    '/etc/gnutls/config', 'overrides', _OVERRIDES,
    'In force for what is started from now on, guests that arrive included. '
    'It applies to every program of this host (or container) that uses '
    'GnuTLS.')

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
        'For libvirt 11.6.0 or later, which has to be restarted. It applies '
        'to migrations only.', public=False),
}


def merge(family: Family, mode: str, text: str) -> str:
    """Add a policy to what a file has.

    All else stays, comments and order included.

    :param mode: TLS12 or CHACHA20
    :param text: of the file, '' if there is none
    :returns: the new text, the same if the policy is there already
    :raises PolicyError: the file contradicts the policy
    """
    lines = text.splitlines()
    present = _settings(lines, sections=family.section is not None)
    if ('global', 'override-mode', 'allowlist') in present:
        raise PolicyError(
            'the file has override-mode = allowlist: it is made by '
            'crypto-policies, use --family rhel')
    section = family.section
    wanted = family.settings[mode]
    _refuse_contradiction(section, wanted, present)
    # GnuTLS does not mind the case of keys and values.
    there = {(where, key.lower(), value.lower())
             for where, key, value in present}
    missing = [f'{key} = {value}' for key, value in wanted
               if (section, key.lower(), value.lower()) not in there]
    if not missing:
        return text
    return '\n'.join(_inserted(lines, section, missing)) + '\n'


def _settings(lines: list[str], *, sections: bool,
              ) -> list[tuple[str | None, str, str]]:
    """Return (section, key, value), all that is not a comment."""
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
    """A key that may stand there once only, and does otherwise.

    :raises PolicyError: there is one
    """
    if section == 'overrides':
        return
    for where, key, value in present:
        if where == section and any(
                key == other and value != new for other, new in wanted):
            raise PolicyError(f'the file has {key} = {value} already: remove '
                              'that line if it may be replaced')


def _inserted(lines: list[str], section: str | None,
              missing: list[str]) -> list[str]:
    """Put lines at the end of a section, which is made if need be."""
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
    """Write a file in one step.

    One that is replaced keeps its owner and mode.

    :param force: an existing file may be replaced
    :param public: everybody must be able to read the file; otherwise a new
        one is for its owner alone
    :returns: whether it had to be written
    :raises PolicyError: it exists with another text, or is something else
        than a file
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
    """Return the state of a file that is there already.

    :raises PolicyError: it is a symbolic link, which the new file would
        replace and leave the file that is used as it was, or no file at all
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        raise PolicyError(f'{path} is a symbolic link to {os.readlink(path)}: '
                          'name the file itself')
    if not stat.S_ISREG(found.st_mode):
        raise PolicyError(f'{path} is not a file')
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of ``generate``."""
    parser.add_argument('--family', required=True, choices=sorted(FAMILIES))
    parser.add_argument('--mode', choices=(TLS12, CHACHA20), default=TLS12,
                        help='default: %(default)s, with AES-GCM')
    parser.add_argument('--merge', metavar='FILE', type=pathlib.Path,
                        help='keep what this file has')
    parser.add_argument('--output', metavar='FILE', type=pathlib.Path,
                        help='default: standard output')
    parser.add_argument('--force', action='store_true',
                        help='replace the output file')


def run(args: argparse.Namespace) -> int:
    """Print or write a policy.

    :returns: 0: done, or there already; 2: refused
    """
    family = FAMILIES[args.family]
    try:
        text = merge(family, args.mode,
                     args.merge.read_text() if args.merge else '')
        if args.output:
            written = write(args.output, text, force=args.force,
                            public=family.public)
            _say(f'{args.output}: '
                 f'{"written" if written else "is as it should be"}')
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
