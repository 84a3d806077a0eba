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
import os
import pathlib
import re
import sys
from typing import NamedTuple
from typing import TextIO

from nova_migfix.status import terminal
from nova_migfix.tls import apparmor
from nova_migfix.tls import effect
from nova_migfix.tls import gnutls
from nova_migfix.tls import ini
from nova_migfix.tls import policy
from nova_migfix.tls import priority
from nova_migfix.tls import probe
from nova_migfix.tls import qemu_conf
from nova_migfix.tls import qmp
from nova_migfix.tls import regular
from nova_migfix.tls import users

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
        'tls-enabled-mac', 'tls-session-hash', 'allow-rsa-pkcs1-encrypt',
        'cert-compression-alg'),
    'priorities': None,
    'provider': ('url', 'pin'),
}
# Values by the end of a key.
_VALUES = {'-version': ('version', priority.VERSIONS),
           '-cipher': ('cipher', priority.CIPHERS),
           'override-mode': ('mode', ('allowlist', 'blocklist'))}
_OWN_SETTING = re.compile(r'\[|[\w-]+\s*[=:]', re.ASCII)


class Severity(enum.IntEnum):
    """Severity of a finding; values are oslo.upgradecheck's codes."""

    SUCCESS = 0
    WARNING = 1
    FAILURE = 2


class Finding(NamedTuple):
    line: int           # 0: the whole file
    severity: Severity
    text: str           # the problem, and the setting to write instead


def lint(text: str, builtin: str = priority.NORMAL) -> list[Finding]:
    """Return the problems of a configuration.

    :param text: of the file, see :func:`ini.read`
    :param builtin: the priority string of QEMU, as for
        :func:`effect.predict`
    :returns: findings sorted by line, those about the whole file last; empty:
        all settings have an effect, and the file prevents rekeys. A failure
        means that it does not prevent rekeys, or prevents sessions
    """
    lines = list(ini.parse(text))
    prediction = effect.predict(text, builtin)
    severity = (Severity.FAILURE if prediction.effect in (
        effect.Effect.REKEYS, effect.Effect.NO_SESSION) else Severity.WARNING)
    findings = [Finding(number, severity, problem)
                for number, problem in _ignored(lines)]
    return [*sorted(findings), *_about(prediction, text, builtin)]


def _ignored(lines: list[ini.Line]) -> Iterator[tuple[int, str]]:
    """Yield number and problem of each line that GnuTLS ignores."""
    allowlist = effect.is_allowlist(lines)
    priorities = effect.priorities(lines)
    for line in lines:
        section = ini.lower(line.section)
        if line.invalid:
            problem = ('GnuTLS ignores the whole file, because it cannot '
                       f'parse {line.invalid!r}: write "key = value"')
        elif line.key is None:
            problem = '' if section in _KEYS else (
                f'GnuTLS has no section [{line.section}]: write '
                f'{_instead(section, _KEYS, "[overrides]")}')
        elif line.is_continuation and _OWN_SETTING.match(line.value):
            problem = (
                f'{line.value}: indented, so that GnuTLS takes it as a value '
                f'of {line.key}; remove the blanks before it')
        elif section in ('', 'priorities'):
            problem = _problem_of_priority(line, priorities)
        else:
            problem = _problem(line, section, allowlist=allowlist)
        if problem:
            yield line.number, problem


def _instead(written: str, known: object, otherwise: str) -> str:
    names = list(known) if isinstance(known, (dict, tuple)) else []
    close = difflib.get_close_matches(written, names, 1)
    if not close:
        return otherwise
    return f'[{close[0]}]' if isinstance(known, dict) else f'"{close[0]}"'


def _problem_of_priority(line: ini.Line,
                         priorities: dict[str, ini.Line]) -> str:
    key = line.key or ''
    if not line.section and not key.isupper():
        return (f'{key}: not in a section; write {_right_section(key)} before '
                'it')
    if priorities[key] is not line:
        return (f'{key}: GnuTLS uses only the first one, in line '
                f'{priorities[key].number}; remove one of them')
    return ''


def _problem(line: ini.Line, section: str, *, allowlist: bool) -> str:
    """Return why GnuTLS ignores a setting; '' if it does not."""
    keys = _KEYS.get(section)
    if keys is None:
        return ''
    written, value = line.key or '', line.value
    key = ini.lower(written)
    if key not in keys:
        right = _right_section(key)
        return (
            f'{written}: unknown in [{section}]; write it into {right}'
            if right != f'[{section}]' and _is_known(key) else
            f'{written}: unknown in [{section}]; write '
            f'{_instead(key, keys, "a key of the GnuTLS manual")}')
    if effect.is_ignored(key, allowlist=allowlist):
        return (f'{written}: without effect because override-mode is '
                f'{"allowlist" if allowlist else "not allowlist"}')
    kind, names = next((known for end, known in _VALUES.items()
                        if key.endswith(end)), ('', ()))
    if not kind:
        return ''
    if ',' in value or re.search(r'\s', value, re.ASCII):
        return (f'{written}: GnuTLS does not accept a list; write one line '
                f'for each of {value}')
    name = ini.word(value)
    if name in names:
        return ''
    return (f'{written}: unknown {kind} {value}; write '
            + _instead(name.replace('vers-', '').strip('"'), names,
                       f'a {kind} of the GnuTLS manual'))


def _is_known(key: str) -> bool:
    return any(key in (keys or ()) for keys in _KEYS.values())


def _right_section(key: str) -> str:
    for section, keys in _KEYS.items():
        if keys and ini.lower(key) in keys:
            return f'[{section}]'
    return '[priorities]' if key.isupper() else '[overrides]'


def _about(prediction: effect.Prediction, text: str,
           builtin: str) -> Iterator[Finding]:
    """Yield a finding unless the file is known to prevent rekeys."""
    failure, warning = Severity.FAILURE, Severity.WARNING
    instead = 'see "nova-migfix-tls generate"'
    if prediction.effect is effect.Effect.NO_SESSION:
        yield Finding(0, failure, (
            f'every session fails: {prediction.reason}; {instead}'))
    elif prediction.effect is effect.Effect.UNKNOWN:
        yield Finding(0, warning, (
            f'the effect on QEMU is not known: {prediction.reason}; find it '
            'with "nova-migfix-tls probe"'))
    elif prediction.effect is effect.Effect.REKEYS:
        if (builtin == priority.NORMAL and effect.predict(
                text, priority.SYSTEM).effect is effect.Effect.SAFE):
            yield Finding(0, failure, (
                f'QEMU was built with {builtin} and does not read '
                '[priorities]: write "disabled-version = tls1.3" into '
                '[overrides]'))
        else:
            yield Finding(0, warning, (
                f'no setting keeps QEMU from TLS 1.3 with AES: {instead}'))


def builtin_priority(qemu: str) -> str:
    """Return the priority string with which a QEMU was built.

    :param qemu: path of the binary
    :returns: priority.SYSTEM if the binary contains it, otherwise
        priority.NORMAL
    :raises qmp.QemuError: the binary cannot be read
    """
    try:
        with regular.opened(qemu) as file:
            return (priority.SYSTEM if priority.SYSTEM.encode() in file.read()
                    else priority.NORMAL)
    except OSError as error:
        raise qmp.QemuError(
            f'{qemu}: {error.strerror}: name QEMU with --qemu') from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``lint``."""
    parser.add_argument('file', nargs='?', type=pathlib.Path,
                        help='default: the file that GnuTLS of this host '
                        'reads')
    parser.add_argument('--qemu', metavar='BINARY',
                        help='QEMU whose built-in priority string counts; '
                        'default: the QEMU of this host')
    parser.add_argument('--qemu-priority',
                        choices=(priority.NORMAL, priority.SYSTEM),
                        help='built-in priority string; default: that of the '
                        'binary, or the one in qemu.conf with libvirt 11.6.0 '
                        'and later')


def run(args: argparse.Namespace) -> int:
    """Print the findings.

    :returns: the worst severity; 0: no finding, 1: warning, 2: failure
    """
    system = (gnutls.system_file()
              or pathlib.Path(policy.FAMILIES['debian'].path))
    path = args.file or system
    try:
        passed = qemu_conf.Priority(args.qemu_priority) if (
            args.qemu_priority) else qemu_conf.priority()
        builtin = passed.string or builtin_priority(
            args.qemu or probe.find_qemu())
        if not args.file and _is_needless(path, builtin):
            _say(f'{path}: no such file, and none is needed: QEMU\'s priority '
                 f'string {builtin} prevents rekeys')
            return int(Severity.SUCCESS)
        findings = [*_unreadable(path), *lint(ini.read(path), builtin)]
        problems = passed.doubt, (
            apparmor.problem(path) if path == system else '')
        findings += [Finding(0, Severity.WARNING, problem)
                     for problem in problems if problem]
    except OSError as error:
        _say(f'{path}: {error.strerror}: {_remedy(error)}', sys.stderr)
        return int(Severity.FAILURE)
    except qmp.QemuError as error:
        _say(str(error), sys.stderr)
        return int(Severity.FAILURE)
    for finding in findings:
        place = f'{path}:{finding.line}' if finding.line else path
        _say(f'{place}: {finding.severity.name.lower()}: {finding.text}')
    if not findings:
        _say(f'{path}: no setting is ignored; verify the effect on QEMU with '
             '"nova-migfix-tls probe"')
    return int(max((finding.severity for finding in findings),
                   default=Severity.SUCCESS))


def _is_needless(path: pathlib.Path, builtin: str) -> bool:
    """Return whether a file is missing that QEMU does not need."""
    return not os.path.lexists(path) and (
        effect.predict('', builtin).effect is effect.Effect.SAFE)


def _remedy(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return ('without this file QEMU has no policy; make it with '
                '"nova-migfix-tls generate", or name the file that GnuTLS '
                'reads')
    return 'name a file that this user can read, or run the command as root'


def _say(text: str, file: TextIO | None = None) -> None:
    print(terminal.printable(text), file=file)


def _unreadable(path: pathlib.Path) -> Iterator[Finding]:
    """Yield findings if the user of the guests cannot read a file.

    :raises OSError: it does not exist, or this user cannot know
    """
    closed = users.closed(path)
    readable = not closed or users.can_read(users.user_of_guests(), path)
    if readable:
        return
    severity, verb = ((Severity.WARNING, 'may be unable to')
                      if readable is None else (Severity.FAILURE, 'cannot'))
    for place in closed:
        mode = '0755' if place.is_dir() else '0644'
        yield Finding(0, severity, f'QEMU\'s user {verb} read the file: chmod '
                      f'{mode} {place}')
