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

"""Which running guests a migration over TLS would harm.

Reads only: /proc, nova.conf, the package database and, when asked for dirty
rates, libvirt. A guest keeps the GnuTLS that was installed when it was
started, also when that has been replaced since.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import json
import os
import pathlib
import re
import shutil
import sys
from typing import NamedTuple

from oslo_concurrency import processutils
from oslo_config import cfg
import prettytable

from nova_migfix.tls import rekey

NOVA_CONF = '/etc/nova/nova.conf'

# Bytes a second of a migration, for who does not say: a core encrypts about
# so much.
_BANDWIDTH = 1 << 30

_PROC = pathlib.Path('/proc')
_MAPPED = re.compile(
    r'^([0-9a-f]+-[0-9a-f]+) \S+ \S+ \S+ \d+ +(/\S*libgnutls\.so\S*)'
    r'( \(deleted\))?$', re.MULTILINE)
_IN_USE = re.compile(r'^(?:VmRSS|HugetlbPages):\s+(\d+) kB$', re.MULTILINE)
_ASK_VERSION = '''
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.gnutls_check_version.restype = ctypes.c_char_p
print(library.gnutls_check_version(None).decode())
'''
_PACKAGE = (
    ('dpkg-query', '--show', '--showformat', '${Version}', 'libgnutls30*'),
    ('rpm', '--query', '--queryformat', '%{VERSION}-%{RELEASE}', 'gnutls'),
)


class Library(NamedTuple):
    """The GnuTLS that a process has mapped."""

    path: str
    deleted: bool       # replaced on disk since
    version: str | None
    package: str        # '' if it cannot be said


class Guest(NamedTuple):
    """A running QEMU."""

    pid: int
    name: str           # libvirt's, 'instance-0000002a'
    uuid: str
    memory: int         # bytes, in use
    library: Library | None
    dirty_rate: int | None = None       # bytes a second


def guests(proc: pathlib.Path = _PROC) -> Iterator[Guest]:
    """Yield the running QEMUs that may be looked into.

    One that ends meanwhile is left out.
    """
    for entry in sorted(proc.glob('[0-9]*'), key=lambda path: int(path.name)):
        try:
            arguments = (entry / 'cmdline').read_text(
                errors='replace').split('\0')
            if not re.match(r'qemu-(system-|kvm)',
                            os.path.basename(arguments[0])):
                continue
            in_use = sum(int(size) for size in _IN_USE.findall(
                (entry / 'status').read_text()))
            yield Guest(
                int(entry.name), _name(arguments), _after(arguments, '-uuid'),
                in_use * 1024, _library(entry))
        except (FileNotFoundError, ProcessLookupError):
            continue


def find(uuid: str) -> Guest | None:
    """The running QEMU of an instance, None if it cannot be seen."""
    return next((guest for guest in guests() if guest.uuid == uuid), None)


def _after(arguments: list[str], option: str) -> str:
    pairs = dict(zip(arguments, arguments[1:]))
    return pairs.get(option, '')


def _name(arguments: list[str]) -> str:
    match = re.match(r'(?:guest=)?([^,]*)', _after(arguments, '-name'))
    return match[1] if match else ''


def _library(process: pathlib.Path) -> Library | None:
    try:
        match = _MAPPED.search((process / 'maps').read_text())
    except PermissionError:
        return Library('', False, None, '')
    if not match:
        return None
    deleted = bool(match[3])
    # The mapping itself is the file, also if its name is another's by now.
    found = (version(process / 'map_files' / match[1])
             or (None if deleted
                 else version(process / 'root' / match[2].lstrip('/'))))
    return Library(match[2], deleted, found, '' if deleted else _package())


def version(path: pathlib.Path) -> str | None:
    """Load a GnuTLS in a process of its own and ask it.

    :returns: '3.8.9', None if it cannot be loaded
    """
    try:
        out, _ = processutils.execute(
            sys.executable, '-c', _ASK_VERSION, str(path))
    except (OSError, processutils.ProcessExecutionError):
        return None
    return str(out).strip()


def _package() -> str:
    for command in _PACKAGE:
        if shutil.which(command[0]):
            try:
                out, _ = processutils.execute(*command)
            except processutils.ProcessExecutionError:
                continue
            if out.strip():
                return str(out).strip()
    return ''


def transport(path: str) -> rekey.Transport:
    """Read how Nova migrates.

    :param path: of nova.conf
    :raises oslo_config.cfg.ConfigFilesNotFoundError: there is none
    """
    conf = cfg.ConfigOpts()
    conf.register_opts([
        (cfg.BoolOpt if isinstance(default, bool) else cfg.IntOpt)(
            name, default=default)
        for name, default in rekey.Transport._field_defaults.items()],
        group='libvirt')
    conf([], default_config_files=[path], default_config_dirs=[])
    return rekey.Transport(**{
        name: conf.libvirt[name] for name in rekey.Transport._fields})


def dirty_rates(seconds: int) -> dict[str, int]:
    """Measure how much each guest writes.

    :param seconds: for how long, 1 to 60
    :returns: bytes a second by libvirt's name of the guest
    """
    names, _ = processutils.execute('virsh', '--readonly', 'list', '--name')
    for name in names.split():
        processutils.execute(
            'virsh', 'domdirtyrate-calc', name, '--seconds', str(seconds))
    processutils.execute('sleep', str(seconds + 1))
    out, _ = processutils.execute(
        'virsh', '--readonly', 'domstats', '--dirtyrate')
    return _rates(out)


def _rates(stats: str) -> dict[str, int]:
    found = {}
    for domain in re.split(r'^Domain: ', stats, flags=re.MULTILINE)[1:]:
        name = re.match("'([^']*)'", domain)
        rate = re.search(r'dirtyrate\.megabytes_per_second=(\d+)', domain)
        if name and rate:
            found[name[1]] = int(rate[1]) << 20
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of ``audit``."""
    parser.add_argument('--config-file', default=NOVA_CONF,
                        help='of nova-compute; default: %(default)s')
    parser.add_argument('--dirty-rate', type=int, metavar='SECONDS',
                        help='let libvirt measure for so long how much the '
                        'guests write')
    parser.add_argument('--bandwidth', type=int, default=_BANDWIDTH,
                        metavar='BYTES', help='a second that a migration '
                        'sends; default: %(default)s')
    parser.add_argument('--json', action='store_true')


def run(args: argparse.Namespace) -> int:
    """Print what becomes of each guest.

    :returns: 0: all are safe; 1: some are at risk; 2: some will fail
    """
    how = transport(args.config_file)
    rates = dirty_rates(args.dirty_rate) if args.dirty_rate else {}
    found = [(guest, rekey.assess(
        how, guest.library.version if guest.library else None,
        guest.library.package if guest.library else '', guest.memory,
        guest.dirty_rate, args.bandwidth)) for guest in (
            guest._replace(dirty_rate=rates.get(guest.name))
            for guest in guests())]
    print(_json(found) if args.json else _table(found))
    return max((_STATUS[assessment.verdict] for _, assessment in found),
               default=0)


_STATUS = {rekey.Verdict.SAFE: 0, rekey.Verdict.AT_RISK: 1,
           rekey.Verdict.WILL_FAIL: 2}


def _json(found: list[tuple[Guest, rekey.Assessment]]) -> str:
    return json.dumps([{
        **guest._asdict(),
        'library': guest.library and guest.library._asdict(),
        'verdict': assessment.verdict.value, 'reason': assessment.reason,
    } for guest, assessment in found], indent=2)


def _table(found: list[tuple[Guest, rekey.Assessment]]) -> str:
    table = prettytable.PrettyTable(
        ['guest', 'GiB in use', 'GnuTLS', 'verdict', 'reason'])
    table.align = 'l'
    table.max_width['reason'] = 50
    for guest, assessment in found:
        library = guest.library
        table.add_row([
            f'{guest.name}\n{guest.uuid}',
            f'{guest.memory / rekey.GIB:.1f}',
            f'{library.package or library.version or "not known"}'
            f'{" (replaced)" if library.deleted else ""}'
            if library else 'none',
            assessment.verdict.value, assessment.reason])
    return str(table)
