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

"""Find the running guests that a migration over TLS would harm.

The command is read-only: it reads /proc, nova.conf and the package database.
On request libvirt measures dirty rates. A guest keeps the GnuTLS that was
installed when it was started, even if the file was replaced since.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from collections.abc import Iterator
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from typing import NamedTuple

from oslo_concurrency import processutils
from oslo_config import cfg
import prettytable

from nova_migfix.status import terminal
from nova_migfix.tls import gnutls
from nova_migfix.tls import rekey

NOVA_CONF = '/etc/nova/nova.conf'

# Default of --bandwidth, bytes per second: about the rate at which one core
# encrypts.
_BANDWIDTH = 1 << 30

# libvirt's limit of a measurement, seconds.
_LONGEST_MEASUREMENT = 60
# Seconds to wait for libvirt.
_TIMEOUT = 60

_PROC = pathlib.Path('/proc')
_QEMU = re.compile(r'qemu-(system-|kvm)')
_IN_USE = re.compile(r'^(?:VmRSS|HugetlbPages):\s+(\d+) kB$', re.MULTILINE)


class AuditError(Exception):
    """The guests cannot be assessed; the text gives reason and remedy."""


class Guest(NamedTuple):
    """A running QEMU."""

    pid: int
    name: str           # libvirt's, 'instance-0000002a'
    uuid: str
    memory: int         # bytes in use
    library: gnutls.Library | None
    dirty_rate: int | None = None       # bytes per second


def guests(uuid: str | None = None) -> Iterator[Guest]:
    """Yield the running QEMUs, without those that end in the meantime.

    :param uuid: yield only the QEMU of this instance; None: all
    """
    for process, arguments in qemus():
        if uuid in (None, _after(arguments, '-uuid')):
            try:
                yield _guest(process, arguments)
            except (FileNotFoundError, ProcessLookupError):
                continue


def find(uuid: str) -> Guest | None:
    """Return the running QEMU of an instance, None if it is not visible."""
    return next(guests(uuid), None)


def qemus() -> Iterator[tuple[pathlib.Path, list[str]]]:
    """Yield /proc directory and command line of each QEMU, sorted by PID.

    The option hidepid of /proc hides those of other users.
    """
    for process in sorted(_PROC.glob('[0-9]*'), key=lambda p: int(p.name)):
        try:
            arguments = (process / 'cmdline').read_text(
                errors='replace').split('\0')
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if _QEMU.match(os.path.basename(arguments[0])):
            yield process, arguments


def _guest(process: pathlib.Path, arguments: list[str]) -> Guest:
    in_use = _IN_USE.findall(
        (process / 'status').read_text(errors='replace'))
    return Guest(
        int(process.name), name(arguments),
        _after(arguments, '-uuid'), sum(map(int, in_use)) * 1024,
        gnutls.mapped_by(process))


def name(arguments: list[str]) -> str:
    """Return libvirt's name of a guest, from QEMU's command line."""
    match = re.match(r'(?:guest=)?([^,]*)', _after(arguments, '-name'))
    return match[1] if match else ''


def _after(arguments: list[str], option: str) -> str:
    return dict(zip(arguments, arguments[1:])).get(option, '')


def transport(paths: Iterable[str]) -> rekey.Transport:
    """Read Nova's options of migration.

    :param paths: of nova.conf; the last file that sets an option counts
    :raises AuditError: a file does not exist or is invalid
    """
    conf = cfg.ConfigOpts()
    conf.register_opts([
        (cfg.BoolOpt if isinstance(default, bool) else cfg.IntOpt)(
            name, default=default)
        for name, default in rekey.Transport._field_defaults.items()],
        group='libvirt')
    try:
        conf([], default_config_files=list(paths), default_config_dirs=[])
        return rekey.Transport(**{
            name: conf.libvirt[name] for name in rekey.Transport._fields})
    except (cfg.Error, ValueError) as error:
        raise AuditError(f'{error}\nNova\'s options of migration cannot be '
                         'read: name the configuration of nova-compute with '
                         '--config-file') from error


def dirty_rates(seconds: int) -> dict[str, int]:
    """Let libvirt measure the dirty rate of each guest.

    :param seconds: duration of the measurement, 1 to 60
    :returns: bytes per second by libvirt's name of the guest
    :raises AuditError: virsh fails
    """
    for name in _virsh('--readonly', 'list', '--name').split():
        _virsh('domdirtyrate-calc', name, '--seconds', str(seconds))
    time.sleep(seconds + 1)
    return _rates(_virsh('--readonly', 'domstats', '--dirtyrate'))


def _virsh(*arguments: str) -> str:
    try:
        out, _ = processutils.execute('virsh', *arguments, timeout=_TIMEOUT)
    except (OSError, processutils.ProcessExecutionError,
            subprocess.TimeoutExpired) as error:
        raise AuditError(
            f'Dirty rates cannot be measured: {error}') from error
    return str(out)


def _rates(stats: str) -> dict[str, int]:
    found = {}
    for domain in re.split(r'^Domain: ', stats, flags=re.MULTILINE)[1:]:
        name = re.match("'([^']*)'", domain)
        rate = re.search(r'dirtyrate\.megabytes_per_second=(\d+)', domain)
        if name and rate:
            found[name[1]] = int(rate[1]) << 20
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``audit``."""
    parser.add_argument('--config-file', action='append', metavar='FILE',
                        help='configuration of nova-compute, may be repeated; '
                        f'default: {NOVA_CONF}')
    parser.add_argument('--dirty-rate', type=_seconds, metavar='SECONDS',
                        help='let libvirt measure the dirty rate of the '
                        'guests for so many seconds, 1 to 60')
    parser.add_argument('--bandwidth', type=int, default=_BANDWIDTH,
                        metavar='BYTES', help='bytes per second that a '
                        'migration sends; default: %(default)s')
    parser.add_argument('--json', action='store_true',
                        help='print JSON instead of a table')


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _LONGEST_MEASUREMENT:
        raise argparse.ArgumentTypeError(
            f'{text} is not between 1 and {_LONGEST_MEASUREMENT}')
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Print the assessment of each guest.

    :returns: 0: all are safe; 1: some are at risk, or none is visible; 2: some
        will fail, or the guests cannot be assessed
    """
    try:
        how = transport(args.config_file or [NOVA_CONF])
        rates = dirty_rates(args.dirty_rate) if args.dirty_rate else {}
    except AuditError as error:
        for line in str(error).splitlines():
            print(terminal.printable(line), file=sys.stderr)
        return 2
    found = [(guest, _assess(guest, how, args.bandwidth)) for guest in (
        guest._replace(dirty_rate=rates.get(guest.name))
        for guest in guests())]
    print(_json(how, found) if args.json else _table(how, found))
    if not found:
        print(_NONE, file=sys.stderr)
        return 1
    return max(_STATUS[assessment.verdict] for _, assessment in found)


_NONE = (
    'No QEMU is visible. Either no guest runs on this host, or this is a '
    'container that does not see the processes of guests: then run '
    '"nova-migfix-tls audit" in the container of libvirt (nova_libvirt with '
    'Kolla), or on the host.')


_STATUS = {rekey.Verdict.SAFE: 0, rekey.Verdict.AT_RISK: 1,
           rekey.Verdict.WILL_FAIL: 2}


def _assess(guest: Guest, how: rekey.Transport,
            bandwidth: int) -> rekey.Assessment:
    library = guest.library or gnutls.UNKNOWN
    return rekey.assess(how, library.version, library.package, guest.memory,
                        guest.dirty_rate, bandwidth)


def _json(how: rekey.Transport,
          found: list[tuple[Guest, rekey.Assessment]]) -> str:
    return json.dumps({'nova': how._asdict(), 'guests': [{
        **guest._asdict(),
        'library': guest.library and {
            **guest.library._asdict(),
            'rekeys_safely': guest.library.rekeys_safely},
        **assessment._asdict(), 'verdict': assessment.verdict.value,
    } for guest, assessment in found]}, indent=2)


def _table(how: rekey.Transport,
           found: list[tuple[Guest, rekey.Assessment]]) -> str:
    table = prettytable.PrettyTable(
        ['guest', 'GiB in use', 'GnuTLS', 'rekeys', 'verdict', 'reason'])
    table.align = 'l'
    table.max_width['reason'] = 50
    for guest, assessment in found:
        table.add_row([
            '\n'.join(map(terminal.printable, (guest.name, guest.uuid))),
            f'{guest.memory / rekey.GIB:.1f}', _shown(guest.library),
            'no end' if assessment.rekeys is None else assessment.rekeys,
            assessment.verdict.value, assessment.reason])
    return f'Nova migrates {how}.\n{table}'


def _shown(library: gnutls.Library | None) -> str:
    if library is None:
        return 'none'
    name = terminal.printable(
        library.package or library.version or 'not known')
    replaced = ' (replaced)' if library.deleted else ''
    return f'{name}{replaced}\n{_REKEYS[library.rekeys_safely]}'


_REKEYS = {True: 'rekeys safely', False: 'rekeys unsafely', None: ''}
