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

"""Predict the TLS that QEMU negotiates with a GnuTLS configuration.

The rules are those of lib/priority.c of GnuTLS 3.7 and 3.8, as far as they
decide about rekeys; the effect of other settings that may prevent sessions is
unknown. "nova-migfix-tls probe" asks QEMU itself.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
import enum
import re
from typing import NamedTuple

from nova_migfix.tls import ini
from nova_migfix.tls import priority

# Key of [overrides], and the key that replaces it in allowlist mode.
_IN_ALLOWLIST = {
    'insecure-hash': 'secure-hash', 'insecure-sig': 'secure-sig',
    'insecure-sig-for-cert': 'secure-sig-for-cert',
    'disabled-version': 'enabled-version', 'disabled-curve': 'enabled-curve',
    'tls-disabled-cipher': 'tls-enabled-cipher',
    'tls-disabled-group': 'tls-enabled-group',
    'tls-disabled-kx': 'tls-enabled-kx',
    'tls-disabled-mac': 'tls-enabled-mac'}

# Values that do not prevent a session between two QEMUs.
_OLD = '.*(md[25]|sha1|sha224|rmd160)'
_OLD_CURVES = 'secp(192|224|521)r1|x448'
_HARMLESS = {
    'insecure-hash': _OLD, 'insecure-sig': f'dsa-.*|{_OLD}',
    'insecure-sig-for-cert': f'dsa-.*|{_OLD}',
    'disabled-curve': _OLD_CURVES,
    'tls-disabled-group': rf'(group-)?(ffdhe\d+|{_OLD_CURVES})',
    'tls-disabled-kx': 'rsa|dhe-.*|anon-.*|srp.*|.*psk',
    'tls-disabled-mac': 'md5|sha1|umac-.*',
    'min-verification-profile': 'low|legacy|medium',
}
# In allowlist mode, sessions need these.
_NEEDED = {
    *(('secure-hash', name) for name in ('sha256', 'sha384')),
    *(('secure-sig', name) for name in (
        'ecdsa-sha256', 'ecdsa-secp256r1-sha256', 'rsa-sha256',
        'rsa-pss-rsae-sha256')),
    *(('secure-sig-for-cert', name) for name in (
        'ecdsa-sha256', 'rsa-sha256')),
    *(('enabled-curve', name) for name in ('secp256r1', 'x25519')),
    *(('tls-enabled-kx', name) for name in ('ecdhe-ecdsa', 'ecdhe-rsa')),
    *(('tls-enabled-group', name) for name in (
        'group-secp256r1', 'group-x25519')),
    ('tls-enabled-mac', 'aead')}

# Ciphers with which GnuTLS rekeys, under TLS 1.3.
_REKEYED = {'aes-128-gcm', 'aes-256-gcm', 'aes-128-ccm', 'aes-128-ccm-8'}
_CHACHA20 = 'chacha20-poly1305'
# Ciphers of TLS 1.2 for certificates of each kind.
_TLS12 = {'aes-128-gcm', 'aes-256-gcm', _CHACHA20}
_BEFORE_TLS12 = {'ssl3.0', 'tls1.0', 'tls1.1'}


class Effect(enum.Enum):
    SAFE = 'safe'               # GnuTLS never rekeys the session
    REKEYS = 'rekeys'           # a client may choose TLS 1.3 with AES
    NO_SESSION = 'no session'   # with a client that has TLS 1.2 and 1.3
    UNKNOWN = 'unknown'


class Prediction(NamedTuple):
    """The effect of a configuration on a QEMU that is the server.

    :param reason: why there is no session, or why the effect is not known
    """

    effect: Effect
    reason: str = ''


def is_allowlist(lines: Iterable[ini.Line]) -> bool:
    """Return whether [global] has override-mode = allowlist."""
    modes = [ini.word(line.value) for line in lines
             if ini.lower(line.section) == 'global'
             and ini.lower(line.key or '') == 'override-mode']
    known = [mode for mode in modes if mode in ('allowlist', 'blocklist')]
    return known[-1:] == ['allowlist']


def is_ignored(key: str, *, allowlist: bool) -> bool:
    """Return whether a key of [overrides] belongs to the other mode."""
    return key in (_IN_ALLOWLIST if allowlist else _IN_ALLOWLIST.values())


def priorities(lines: Iterable[ini.Line]) -> dict[str, ini.Line]:
    """Return the priority strings by name: the first of each name."""
    found: dict[str, ini.Line] = {}
    for line in lines:
        if line.key is not None and ini.lower(line.section) in (
                '', 'priorities'):
            found.setdefault(line.key, line)
    return found


def predict(text: str, builtin: str = priority.NORMAL) -> Prediction:
    """Predict the effect of a configuration.

    :param text: see :func:`ini.parse`
    :param builtin: the priority string of QEMU: priority.NORMAL or
        priority.SYSTEM, with one of which it was built, or that of libvirt
    """
    lines = list(ini.parse(text))
    if any(line.invalid for line in lines):
        lines = []
    allowlist = is_allowlist(lines)
    overrides = _overrides(lines)
    versions, ciphers = (
        overrides[_IN_ALLOWLIST[key] if allowlist else key]
        for key in ('disabled-version', 'tls-disabled-cipher'))
    try:
        string = _string(lines, builtin, allowlist=allowlist)
        found = (priority.Enabled(versions, ciphers) if string is None
                 else priority.enabled(string))
    except priority.InvalidError as error:
        return Prediction(Effect.NO_SESSION, str(error))
    except priority.UnknownError as error:
        return Prediction(Effect.UNKNOWN, f'a session fails if GnuTLS does '
                          f'not accept {str(error)!r} in a priority string')
    doubt = _doubt(overrides, allowlist=allowlist)
    if doubt:
        return Prediction(Effect.UNKNOWN, doubt)
    if allowlist:
        return _negotiated(found.versions & versions, found.ciphers)
    return _negotiated(found.versions - versions, found.ciphers - ciphers)


def _overrides(lines: Iterable[ini.Line]) -> dict[str, frozenset[str]]:
    """Return the values of [overrides] by key."""
    found: dict[str, frozenset[str]] = collections.defaultdict(frozenset)
    for line in lines:
        if ini.lower(line.section) == 'overrides' and line.key is not None:
            found[ini.lower(line.key)] |= {ini.word(line.value)}
    return found


def _string(lines: Iterable[ini.Line], builtin: str, *,
            allowlist: bool) -> str | None:
    """Return the priority string that QEMU uses.

    :returns: None: [overrides] enables each version and cipher
    :raises priority.InvalidError: there is no such string
    """
    if builtin != priority.SYSTEM:
        return builtin
    found = priorities(lines)
    if 'QEMU' in found:
        return found['QEMU'].value
    if allowlist:
        return None
    if 'SYSTEM' in found:
        return found['SYSTEM'].value
    raise priority.InvalidError(
        f'QEMU was built with {priority.SYSTEM}, and [priorities] has neither '
        'QEMU nor SYSTEM')


def _doubt(overrides: dict[str, frozenset[str]], *, allowlist: bool) -> str:
    """Return why sessions may fail; '' if they need not."""
    if allowlist:
        missing = sorted(f'{key} = {value}' for key, value in _NEEDED
                         if value not in overrides.get(key, ()))
        if missing:
            return ('override-mode is allowlist, and there is no '
                    f'"{missing[0]}"')
    return next((
        f'"{key} = {value}" may prevent sessions'
        for key, harmless in _HARMLESS.items()
        if not is_ignored(key, allowlist=allowlist)
        for value in sorted(overrides.get(key, ()))
        if not re.fullmatch(harmless, value)), '')


def _negotiated(versions: frozenset[str],
                ciphers: frozenset[str]) -> Prediction:
    if 'tls1.2' not in versions and _BEFORE_TLS12 & versions:
        # GnuTLS then also disables TLS 1.3.
        versions = frozenset()
    if 'tls1.3' in versions:
        if _REKEYED & ciphers:
            return Prediction(Effect.REKEYS)
        if _CHACHA20 in ciphers:
            return Prediction(Effect.SAFE)
        return Prediction(Effect.NO_SESSION, 'TLS 1.3 has no cipher')
    if 'tls1.2' not in versions:
        return Prediction(Effect.NO_SESSION, 'TLS 1.2 is disabled')
    if _TLS12 & ciphers:
        return Prediction(Effect.SAFE)
    return Prediction(Effect.UNKNOWN if ciphers else Effect.NO_SESSION,
                      'TLS 1.2 has no cipher with GCM or ChaCha20')
