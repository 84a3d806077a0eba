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

"""Find settings of a GnuTLS configuration that have no effect.

GnuTLS ignores unknown settings, and the whole file if it cannot read or parse
it. Each build of QEMU has its own priority string, which selects the entries
that QEMU uses. Neither GnuTLS nor QEMU reports any of this.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import difflib
import enum
import pathlib
import re
import sys
from typing import NamedTuple

from nova_migfix.tls import gnutls
from nova_migfix.tls import policy
from nova_migfix.tls import probe
from nova_migfix.tls import qmp

#: priority strings with which distributions build QEMU
NORMAL, SYSTEM = 'NORMAL', '@QEMU,SYSTEM'

_VERSIONS = ('ssl3.0', 'tls1.0', 'tls1.1', 'tls1.2', 'tls1.3', 'dtls0.9',
             'dtls1.0', 'dtls1.2')

#: keys by section, GnuTLS 3.6.3 to 3.8; None: any
_KEYS = {
    'global': ('override-mode', 'ktls'),
    'overrides': (
        'default-priority-string', 'disabled-curve', 'disabled-version',
        'enabled-curve', 'enabled-version', 'insecure-hash', 'insecure-sig',
        'insecure-sig-for-cert', 'min-verification-profile', 'secure-hash',
        'secure-sig', 'secure-sig-for-cert', 'tls-disabled-cipher',
        'tls-disabled-group', 'tls-disabled-kx', 'tls-disabled-mac',
        'tls-enabled-cipher', 'tls-enabled-group', 'tls-enabled-kx',
        'tls-enabled-mac', 'tls-session-hash', 'allow-rsa-pkcs1-encrypt'),
    'priorities': None,
}
_LINE = re.compile(r'\s*(?:([#;].*)|\[([^\]]*)\]\s*(?:[#;].*)?|'
                   r'([^=:\[][^=:]*?)\s*[=:]\s*(.*?)'
                   r'(?:\s[#;].*)?)?\s*')


class Severity(enum.IntEnum):
    """Severity of a finding; values are oslo.upgradecheck's codes."""

    SUCCESS = 0
    WARNING = 1
    FAILURE = 2


class Finding(NamedTuple):
    line: int           # 0: the whole file
    severity: Severity
    text: str           # the problem, and the setting to write instead


class Setting(NamedTuple):
    line: int
    section: str
    key: str
    value: str


def lint(text: str, builtin: str = NORMAL) -> list[Finding]:
    """Return the problems of a configuration.

    :param text: of the file
    :param builtin: the priority string with which QEMU was built, NORMAL or
        SYSTEM
    :returns: findings sorted by line; empty: all settings have an effect, and
        the file prevents rekeys
    """
    findings: list[Finding] = []
    settings = list(_parse(text, findings))
    for setting in settings:
        findings.extend(_lint_setting(setting))
    if not any(finding.severity is Severity.FAILURE for finding in findings):
        findings.extend(_lint_effect(settings, builtin))
    return sorted(findings)


def _parse(text: str, findings: list[Finding]) -> Iterator[Setting]:
    section = ''
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if not match:
            findings.append(Finding(number, Severity.FAILURE, (
                f'GnuTLS ignores the whole file, because it cannot parse '
                f'{line.strip()!r}: write "key = value"')))
        elif match[2] is not None:
            section = match[2]
            if section.lower() not in _KEYS:
                findings.append(Finding(number, Severity.FAILURE, (
                    f'GnuTLS has no section [{section}]: write '
                    f'{_instead(section, _KEYS, "[overrides]")}')))
        elif match[3] is not None:
            yield Setting(number, section.lower(), match[3], match[4])


def _instead(written: str, known: object, otherwise: str) -> str:
    names = list(known) if isinstance(known, (dict, tuple)) else []
    close = difflib.get_close_matches(written.lower(), names, 1)
    if not close:
        return otherwise
    return f'[{close[0]}]' if isinstance(known, dict) else f'"{close[0]}"'


def _lint_setting(setting: Setting) -> Iterator[Finding]:
    number, section, key, value = setting
    if not section:
        yield Finding(number, Severity.FAILURE, (
            f'{key}: not in a section; write {_right_section(key)} before '
            'it'))
        return
    keys = _KEYS.get(section)
    if keys is None:
        return
    if key.lower() not in keys:
        right = _right_section(key)
        yield Finding(number, Severity.FAILURE, (
            f'{key}: unknown in [{section}]; write it into {right}'
            if right != f'[{section}]' and _is_known(key) else
            f'{key}: unknown in [{section}]; write '
            f'{_instead(key, keys, "a key of the GnuTLS manual")}'))
    elif ',' in value:
        yield Finding(number, Severity.FAILURE, (
            f'{key}: GnuTLS does not accept a list; write one line for each '
            f'of {value}'))
    elif key.lower().endswith('-version') and value.lower() not in _VERSIONS:
        yield Finding(number, Severity.FAILURE, (
            f'{key}: unknown version {value}; write '
            f'{_instead(value.lower().replace("vers-", ""), _VERSIONS, "")}'))


def _is_known(key: str) -> bool:
    return key.lower() in (_KEYS['overrides'] or ()) + (
        _KEYS['global'] or ())


def _right_section(key: str) -> str:
    for section, keys in _KEYS.items():
        if keys and key.lower() in keys:
            return f'[{section}]'
    return '[priorities]' if key.isupper() else '[overrides]'


def _lint_effect(
    settings: list[Setting], builtin: str,
) -> Iterator[Finding]:
    """Yield a finding if QEMU does not use the settings, all of them valid."""
    present = {(setting.section, setting.key.lower(), setting.value.lower())
               for setting in settings}
    priorities = {setting.key: setting.value for setting in settings
                  if setting.section == 'priorities'}
    overridden = any(
        {('overrides', key, value) for key, value in wanted} <= present
        for wanted in policy.FAMILIES['debian'].settings.values())
    chosen = priorities.get('QEMU', priorities.get('SYSTEM'))
    if builtin == SYSTEM and chosen is None:
        yield Finding(0, Severity.FAILURE, (
            f'QEMU was built with {SYSTEM}, and every session fails, because '
            '[priorities] has neither QEMU nor SYSTEM: write '
            f'"QEMU = {policy.PRIORITIES[policy.TLS12]}"'))
    elif overridden:
        return
    elif builtin == SYSTEM and chosen and _keeps_keys(chosen):
        return
    elif chosen and _keeps_keys(chosen):
        yield Finding(0, Severity.FAILURE, (
            f'QEMU was built with {NORMAL} and does not read '
            '[priorities]: write "disabled-version = tls1.3" into '
            '[overrides]'))
    else:
        yield Finding(0, Severity.WARNING, (
            'no setting keeps QEMU from TLS 1.3 with AES: see '
            '"nova-migfix-tls generate"'))


def _keeps_keys(priority: str) -> bool:
    """Return whether a priority string excludes TLS 1.3, or AES."""
    parts = {part.upper().replace('!', '-')
             for part in re.split('[: ]', priority)}
    return '-VERS-TLS1.3' in parts or all(
        f'-{name}' in parts for name in policy.AES)


def builtin_priority(qemu: str) -> str:
    """Return the priority string with which a QEMU was built.

    :param qemu: path of the binary
    :returns: SYSTEM if the binary contains it, otherwise NORMAL
    :raises OSError: the binary cannot be read
    """
    return (SYSTEM if SYSTEM.encode() in pathlib.Path(qemu).read_bytes()
            else NORMAL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``lint``."""
    parser.add_argument('file', nargs='?', type=pathlib.Path,
                        help='default: the file that GnuTLS of this host '
                        'reads')
    parser.add_argument('--qemu', metavar='BINARY',
                        help='QEMU whose built-in priority string counts; '
                        'default: the QEMU of this host')
    parser.add_argument('--qemu-priority', choices=(NORMAL, SYSTEM),
                        help='built-in priority string; default: read it from '
                        'the binary')


def run(args: argparse.Namespace) -> int:
    """Print the findings.

    :returns: the worst severity; 0: no finding, 1: warning, 2: failure
    """
    path = (args.file or gnutls.system_file()
            or pathlib.Path(policy.FAMILIES['debian'].path))
    try:
        findings = _lint_file(path, args.qemu_priority or builtin_priority(
            args.qemu or probe.find_qemu()))
    except (OSError, UnicodeDecodeError, qmp.QemuError) as error:
        print(f'{path}: {error}', file=sys.stderr)
        return int(Severity.FAILURE)
    for finding in findings:
        place = f'{path}:{finding.line}' if finding.line else path
        print(f'{place}: {finding.severity.name.lower()}: {finding.text}')
    if not findings:
        print(f'{path}: no setting is ignored; verify the effect on QEMU with '
              '"nova-migfix-tls probe"')
    return int(max((finding.severity for finding in findings),
                   default=Severity.SUCCESS))


def _lint_file(path: pathlib.Path, builtin: str) -> list[Finding]:
    findings = lint(path.read_text(), builtin)
    findings[:0] = [Finding(0, Severity.FAILURE, (
        f'QEMU\'s user cannot read the file: chmod {right} {place}'))
        for place, needed, right in (
            (path, 0o004, '0644'),
            *((parent, 0o001, '0755') for parent in path.absolute().parents))
        if place.stat().st_mode & needed == 0]
    return findings
