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
from collections.abc import Iterable
from collections.abc import Iterator
import io
import pathlib
import sys
from typing import NamedTuple

from nova_migfix.status import terminal
from nova_migfix.tls import effect
from nova_migfix.tls import files
from nova_migfix.tls import ini
from nova_migfix.tls import priority

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
    :param builtin: the priority string with which QEMU was built, if QEMU
        reads the file
    """

    path: str
    section: str | None
    settings: dict[str, tuple[tuple[str, str], ...]]
    then: str
    public: bool = True
    builtin: str = priority.NORMAL


_GNUTLS = Family(
    '/etc/gnutls/config', 'overrides', _OVERRIDES,
    'It takes effect for programs that start from now on, including the QEMU '
    'of guests that arrive. It applies to every program of this host (or '
    'container) that uses GnuTLS. A container that is created again has lost '
    'the file unless it is in the image or mounted. A container that mounts '
    'the file sees the previous one until it is restarted: restart it, then '
    'run "nova-migfix-tls probe" in it.')

FAMILIES = {
    'debian': _GNUTLS,
    'ubuntu': _GNUTLS,
    'rhel': Family(
        '/etc/crypto-policies/local.d/gnutls-qemu.config', 'priorities',
        {mode: (('QEMU', string),) for mode, string in PRIORITIES.items()},
        'Run "update-crypto-policies" now. It applies to QEMU only.',
        builtin=priority.SYSTEM),
    'libvirt': Family(
        '/etc/libvirt/qemu.conf', None,
        {mode: (('migrate_tls_priority', f'"{string}"'),)
         for mode, string in PRIORITIES.items()},
        'It needs libvirt 11.6.0 or later. Restart libvirt now. It applies to '
        'migrations only.', public=False),
}


def merge(family: Family, mode: str, text: str) -> str:
    """Add a policy to the text of a file.

    All other text stays, including comments and order.

    :param mode: TLS12 or CHACHA20
    :param text: of the file, see :func:`ini.read`; '' if there is none
    :returns: the new text; the same text if it already has the policy
    :raises PolicyError: the file contradicts the policy, or makes it
        ineffective
    """
    wanted = family.settings[mode]
    if family.section is None:
        return _inserted(text, None, _missing(wanted, _plain(text)))
    lines = list(ini.parse(text))
    if family.section == 'overrides' and effect.is_allowlist(lines):
        raise PolicyError(
            'the file has override-mode = allowlist: crypto-policies '
            'generates it; use --family rhel')
    present = [(line.key, line.value) for line in lines
               if ini.lower(line.section) == family.section
               and line.key is not None]
    if family.section == 'overrides':
        # A key may occur more than once; GnuTLS ignores the case.
        present = [(ini.lower(key), ini.word(value)) for key, value in present]
        missing = [setting for setting in wanted if setting not in present]
    else:
        missing = _missing(wanted, present)
    merged = _inserted(text, family.section, missing)
    prediction = effect.predict(merged, family.builtin)
    if prediction.effect in (effect.Effect.REKEYS, effect.Effect.NO_SESSION):
        raise PolicyError(
            'the policy would have no effect in this file'
            + (f': {prediction.reason}' if prediction.reason else '')
            + '; see "nova-migfix-tls lint"')
    return merged


def _missing(wanted: Iterable[tuple[str, str]],
             present: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the settings that are not present, of keys that occur once.

    :raises PolicyError: a key is present with another value
    """
    there = dict(reversed([*present]))    # the first of a key counts
    for key, value in wanted:
        if there.get(key, value) != value:
            raise PolicyError(f'the file already has {key} = {there[key]}: '
                              'remove this line if the policy may replace it')
    return [(key, value) for key, value in wanted if key not in there]


def _plain(text: str) -> Iterator[tuple[str, str]]:
    """Yield the settings of qemu.conf, without trailing comments."""
    for line in text.split('\n'):
        key, _, value = line.partition('=')
        yield key.strip(), value.partition('#')[0].strip()


def _inserted(text: str, section: str | None,
              missing: list[tuple[str, str]]) -> str:
    """Insert settings at the end of a section; add the section if missing."""
    if not missing:
        return text
    lines = text.removesuffix('\n').split('\n') if text else []
    new = [f'{key} = {value}' for key, value in missing]
    if section is None:
        return '\n'.join([*lines, *new, ''])
    heads = [line for line in ini.parse(text) if line.key is None]
    index = next((index for index, line in enumerate(heads)
                  if ini.lower(line.section) == section), None)
    if index is None:
        blank = [''] if lines else []
        return '\n'.join([*lines, *blank, f'[{section}]', *new, ''])
    end = (heads[index + 1].number - 1 if index + 1 < len(heads)
           else len(lines))
    while not lines[end - 1].strip():
        end -= 1
    return '\n'.join([*lines[:end], *new, *lines[end:], ''])


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

    :returns: 0: done, or the file had the policy already; 1: done, but the
        effect of the file is not known; 2: refused
    """
    family = FAMILIES[args.family]
    try:
        text = merge(family, args.mode,
                     ini.read(args.merge) if args.merge else '')
        if args.output:
            written = files.write(args.output, text, force=args.force,
                                  public=family.public)
            _say(f'{args.output}: '
                 f'{"written" if written else "up to date"}')
        else:
            _print(text)
    except (PolicyError, files.RefusedError) as error:
        _say(str(error))
        return 2
    except OSError as error:
        _say(f'{error.filename}: {error.strerror}' if error.filename
             else str(error))
        return 2
    if args.mode == CHACHA20:
        _say(COST)
    _say(f'For {family.path}{", mode 0644" if family.public else ""}. '
         f'{family.then}')
    doubt = (effect.predict(text, family.builtin).reason if family.section
             else '')
    if doubt:
        _say(f'The effect of this file is not known: {doubt}; find it with '
             '"nova-migfix-tls probe".')
    return 1 if doubt else 0


def _print(text: str) -> None:
    """Print a text from :func:`ini.read` byte for byte."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding='utf-8', errors='surrogateescape')
    sys.stdout.write(text)


def _say(text: str) -> None:
    print(terminal.printable(text), file=sys.stderr)
