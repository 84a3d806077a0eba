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

"""Find the TLS versions and ciphers that a priority string of GnuTLS enables.

The rules are those of gnutls_priority_init in GnuTLS 3.6 to 3.8.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from nova_migfix.tls import ini

#: priority strings with which distributions build QEMU
NORMAL, SYSTEM = 'NORMAL', '@QEMU,SYSTEM'

#: all names of versions
VERSIONS = ('ssl3.0', 'tls1.0', 'tls1.1', 'tls1.2', 'tls1.3', 'dtls0.9',
            'dtls1.0', 'dtls1.2')
_TLS = frozenset(('tls1.0', 'tls1.1', 'tls1.2', 'tls1.3'))
_DTLS = frozenset(('dtls1.0', 'dtls1.2'))

#: all names of ciphers, GnuTLS 3.6 to 3.8
CIPHERS = (
    *(f'aes-{bits}-{mode}' for bits in (128, 192, 256)
      for mode in ('cbc', 'gcm', 'cfb', 'cfb8')),
    *(f'aes-{bits}-{mode}' for bits in (128, 256)
      for mode in ('ccm', 'ccm-8', 'xts', 'siv', 'siv-gcm')),
    *(f'camellia-{bits}-cbc' for bits in (128, 192, 256)),
    'camellia-128-gcm', 'camellia-256-gcm', 'chacha20-poly1305',
    'chacha20-32', 'chacha20-64', 'salsa20-256', 'estream-salsa20-256',
    'arcfour-128', 'arcfour-40', '3des-cbc', 'des-cbc', 'rc2-40', 'null',
    *(f'gost28147-{name}-cfb'
      for name in ('tc26z', 'cpa', 'cpb', 'cpc', 'cpd')),
    'gost28147-tc26z-cnt', 'magma-ctr-acpkm', 'kuznyechik-ctr-acpkm')
_NORMAL_CIPHERS = frozenset(
    f'aes-{bits}-{mode}' for bits in (128, 256)
    for mode in ('gcm', 'ccm', 'cbc')) | {'chacha20-poly1305'}

# Only these enable key exchanges and hashes, of the parts known here.
_LEVELS = {'normal', '+normal'}

# GnuTLS ignores more.
_MOST_PARTS = 128

_REFUSED = 'GnuTLS refuses the priority string because of {!r}'

# Groups that a name after + or - may begin with.
_VERSIONS_OF = {
    'vers-tls-all': _TLS, 'vers-dtls-all': _DTLS,
    'vers-all': frozenset(VERSIONS), 'cipher-all': frozenset(CIPHERS)}


class Enabled(NamedTuple):
    versions: frozenset[str]
    ciphers: frozenset[str]


class InvalidError(Exception):
    """GnuTLS refuses the string; the text gives the reason."""


class UnknownError(Exception):
    """This module does not know a part of the string, the text."""


def enabled(string: str) -> Enabled:
    """Return the versions and ciphers that a priority string enables.

    :param string: without a reference to a configuration (@NAME)
    :raises InvalidError: every session fails
    :raises UnknownError: a part of the string is not known
    """
    first, *rest = string.split(':')[:_MOST_PARTS]
    parts = [first, *(part.lstrip(' ') for part in rest)]
    names = _TLS | _DTLS
    if ini.lower(first) == 'none':
        names, parts = frozenset(), parts[1:]
    for part in parts:
        names = _changed(names, part)
    if not _LEVELS.intersection(map(ini.lower, parts)):
        raise InvalidError(
            'the priority string has no keyword such as NORMAL, and so no key '
            'exchange')
    return Enabled(names & frozenset(VERSIONS), names & frozenset(CIPHERS))


def _changed(names: frozenset[str], part: str) -> frozenset[str]:
    """Return the names after one part of a string."""
    name = ini.lower(part)
    if name in _LEVELS:
        return names | _NORMAL_CIPHERS
    sign, name = name[:1], name[1:]
    changed = _named(name) if sign in ('+', '-', '!') else None
    if changed is None:
        if not sign or re.search(r'\s', part, re.ASCII):
            raise InvalidError(_REFUSED.format(part))
        raise UnknownError(part)
    if sign != '+':
        return names - changed
    return names | (changed & _ADDED if len(changed) > 1 else changed)


# A group adds only these.
_ADDED = _TLS | _DTLS | _NORMAL_CIPHERS


def _named(name: str) -> frozenset[str] | None:
    """Return the versions or ciphers of a name; None: it is not known.

    :raises InvalidError: it is a version that does not exist
    """
    for group, names in _VERSIONS_OF.items():
        if name.startswith(group):
            return names
    if name.startswith('vers-'):
        if name[5:] not in VERSIONS:
            raise InvalidError(_REFUSED.format(name.upper()))
        return frozenset((name[5:],))
    return frozenset((name,)) if name in CIPHERS else None
