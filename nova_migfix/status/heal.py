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
"""``heal``: make old ephemeral disks independent of their backing files.

The QEMU of a running guest does this itself. The disk of a guest that is shut
off is converted in a scratch directory, and replaced if it did not change in
the meantime. Each disk is checked again when its turn comes: Nova's locks hold
only within its own process, so that Nova may change any guest in between.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
import os
import pwd
import signal
import stat
import sys
import threading
import time
from typing import Any
from typing import NamedTuple

import nova.conf
import nova.privsep.path
from nova.virt.libvirt import guest as libvirt_guest
from oslo_utils import units
import prettytable
from rich import console as rich_console
from rich import progress as rich_progress

from nova_migfix import status
from nova_migfix.status import hypervisor
from nova_migfix.status import privileges
from nova_migfix.storage import block_job
from nova_migfix.storage import completion
from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.storage import scratch
from nova_migfix.transport import fetch

CONF = nova.conf.CONF

#: exit codes
DONE, LEFT, FAILED = range(3)

# Seconds between two checks of qemu-img.
_POLL = 0.2

# virDomainJobType: VIR_DOMAIN_JOB_NONE
_NO_JOB = 0

Progress = block_job.Progress


class Interrupted(Exception):
    """The operator interrupted the command."""


class Skipped(Exception):
    """A disk is not changed; the text gives the reason."""


class Row(NamedTuple):
    """A disk, and the cost of completing it."""

    instance: str           # UUID
    disk: disks.Overlay
    size: int               # bytes, virtual
    needed: int | None      # bytes to write; None: not known
    free: int               # bytes
    way: str                # a key of WAYS, '' if the disk is skipped
    reason: str             # why the disk is skipped


# -- disks and their cost ----------------------------------------------------

def _rows(
    guests: dict[str, libvirt_guest.Guest], uuids: list[str],
) -> Iterator[Row]:
    note = functools.partial(print, file=sys.stderr)
    for uuid, disk in disks.all_overlays(note):
        # Nova names the directory of a resized instance UUID_resize.
        if not uuids or uuid.partition('_')[0] in uuids:
            yield _row(uuid, disk, guests.get(uuid))


def _row(
    uuid: str, disk: disks.Overlay, guest: libvirt_guest.Guest | None,
) -> Row:
    """Return the row of a disk.

    :param guest: None if libvirt has no such domain
    """
    size, needed, free, way, reason = 0, None, 0, '', ''
    try:
        free = completion.free_space(disk)
        size = _size(disk)
        way = _way(uuid, disk, guest)
        needed = WAYS[way].cost(disk)
        if needed is not None and needed > free:
            way, reason = '', 'there is not enough space'
    except Skipped as error:
        way, reason = '', str(error)
    except Exception as error:
        way, reason = '', fetch.reason(error)
    return Row(uuid, disk, size, needed, free, way, reason)


def _size(disk: disks.Overlay) -> int:
    """Return the virtual size of a disk in bytes.

    :raises Skipped: the disk no longer has a backing file
    """
    header = image_file.qcow2_header(disk.path)
    if header is None or not header.backing:
        raise Skipped('the disk is complete')
    return header.size


def _way(
    uuid: str, disk: disks.Overlay, guest: libvirt_guest.Guest | None,
) -> str:
    """Return the key in WAYS of the only way that is safe now.

    :raises Skipped: no way is safe now
    """
    if _is_resized(disk):
        raise Skipped('the instance is being resized or migrated')
    if guest is None:
        raise Skipped('libvirt has no such domain on this host')
    if guest.is_active():
        _require_idle(disk, guest)
        return 'block pull'
    _require_off(disk, guest)
    return 'convert'


def _is_resized(disk: disks.Overlay) -> bool:
    """Return whether a resize or cold migration waits to be confirmed."""
    directory = os.path.dirname(disk.path)
    return directory.endswith('_resize') or os.path.exists(
        f'{directory}_resize')


def _require_idle(disk: disks.Overlay, guest: libvirt_guest.Guest) -> None:
    """Require that a running guest has the disk and no other job.

    :raises Skipped: libvirt runs a job, or the guest does not have the disk
    """
    if guest.get_job_info().type != _NO_JOB:
        raise Skipped('the guest is being migrated or saved')
    if not (guest.get_disk(disk.path) or guest.get_disk(disk.copy)):
        raise Skipped('the running guest does not have the disk')
    # The block job of a killed process does not end by itself.
    own = (disk.path, disk.copy) if os.path.exists(disk.copy) else ()
    for device in guest.get_all_disks():
        if device.source_path not in own and guest.get_block_device(
                device.target_dev).get_job_info():
            raise Skipped(f'a block job on {device.target_dev} is running')


def _require_off(disk: disks.Overlay, guest: libvirt_guest.Guest) -> None:
    """Require that a guest is shut off and no process has its disk open.

    :raises Skipped: a process has the disk open; or the guest still needs the
        backing file, runs, or has lost its backing file
    """
    if guest._domain.hasManagedSaveImage(0):
        raise Skipped('the guest is suspended')
    if guest.get_disk(disk.copy):
        raise Skipped('the guest must be started first: its definition has '
                      f'{os.path.basename(disk.copy)}')
    if disks.lacks_backing_file(disk):
        raise Skipped('the backing file is missing and the guest is off')
    if image_file.is_open(disk.path):
        raise Skipped('a process has the disk open')
    # Last: libvirt marks a domain as active before it opens its disks.
    if guest.is_active():
        raise Skipped('the guest has been started')


def _cost_of_pull(disk: disks.Overlay) -> int | None:
    """Return the bytes of data in the base; QEMU may write more.

    It copies them in larger pieces.
    """
    return None if disks.lacks_backing_file(disk) else completion.allocated(
        disk.backing)


# -- the two ways ------------------------------------------------------------

def _pull(row: Row, guest: libvirt_guest.Guest, bandwidth: int,
          progress: Progress) -> None:
    completion.complete(guest, row.disk, bandwidth, progress)


def _convert(row: Row, guest: libvirt_guest.Guest, bandwidth: int,
             progress: Progress) -> None:
    """Replace the disk of a guest that is shut off by a complete one.

    Never blocks the start of the guest: qemu-img reads the disk without a
    lock, and the copy is discarded if the guest was started.

    :raises Skipped: the guest or the disk changed in the meantime
    """
    path = row.disk.path
    before = os.stat(path)
    limit = ('-r', f'{bandwidth}M') if bandwidth else ()
    with scratch.directory(path) as directory:
        made = os.path.join(directory, row.disk.name)
        image_file.copy(path, 'qcow2', made, '-U', *limit,
                   on_execute=functools.partial(
                       _watch, made, row.needed or 0, progress))
        scratch.write_through(made)
        _give_to_owner_of(made, before)
        progress(row.needed or 0, row.needed or 0)
        if _is_resized(row.disk) or _state(os.stat(path)) != _state(before):
            raise Skipped('the disk changed in the meantime')
        _require_off(row.disk, guest)
        scratch.replace(made, path)
    block_job.remove_copy(row.disk)


def _watch(made: str, total: int, progress: Progress, process: Any) -> None:
    """Report the size of a file in bytes, until its process ends."""
    try:
        while process.poll() is None:
            if os.path.exists(made):
                progress(min(completion.allocated(made), total), total)
            time.sleep(_POLL)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _state(found: os.stat_result) -> tuple[int, ...]:
    """Return values that change if a file is written, replaced or chowned."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns,
            found.st_ctime_ns)


def _give_to_owner_of(path: str, model: os.stat_result) -> None:
    os.chmod(path, stat.S_IMODE(model.st_mode))
    try:
        os.chown(path, model.st_uid, model.st_gid)
    except PermissionError:
        privileges.acquire()
        nova.privsep.path.chown(path, model.st_uid, model.st_gid)


class Way(NamedTuple):

    #: bytes to write; None: not known
    cost: Callable[[disks.Overlay], int | None]
    complete: Callable[[Row, libvirt_guest.Guest, int, Progress], None]


WAYS = {
    'block pull': Way(_cost_of_pull, _pull),
    'convert': Way(lambda disk: image_file.flat_size(disk.path), _convert),
}


# -- the command -------------------------------------------------------------

def run(args: argparse.Namespace) -> int:
    """Print the cost, ask for confirmation, and complete disk after disk.

    :returns: 0: no disk needs a base; 1: some still do; 2: one failed, or the
        command was interrupted
    :raises Error: libvirt does not answer; there is no terminal to ask at; an
        instance has no directory here; or the command runs already
    """
    for uuid in args.instance:
        if not os.path.isdir(os.path.join(CONF.instances_path, uuid)):
            raise status.Error(f'Instance {uuid} has no directory in '
                               f'{CONF.instances_path}.')
    _become_owner()
    with hypervisor.guests() as guests:
        rows = list(_rows(guests, args.instance))
        if not rows:
            print('No disk needs a backing file that Nova made.')
            return DONE
        print(_table(rows))
        possible = [row for row in rows if row.way]
        if args.dry_run or not possible or not (args.yes or _agreed()):
            return LEFT
        with _only_one(), _interruption() as interrupted:
            code = _heal(possible, guests, args.bandwidth, interrupted)
    return max(code, LEFT if len(possible) < len(rows) else DONE)


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise status.Error('There is no terminal for the confirmation: use '
                           '--yes, or --dry-run.')
    return input('Complete these disks? [y/N] ').strip().lower() in (
        'y', 'yes')


def _become_owner() -> None:
    """Drop root for nova-compute's user, who could mislead root with links."""
    owner = os.stat(CONF.instances_path)
    if os.geteuid() == 0 and owner.st_uid:
        os.initgroups(pwd.getpwuid(owner.st_uid).pw_name, owner.st_gid)
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Lock this command on this host.

    :raises Error: the command runs already on this host
    """
    # Nova's directory for locks of its image cache; storage may be shared
    path = os.path.join(CONF.instances_path, 'locks',
                        f'migfix-heal-{CONF.host}')
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with scratch.locked(path) as is_locked:
        if not is_locked:
            raise status.Error('This command runs already on this host. Wait '
                               'until it ends.')
        yield


@contextlib.contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Return an event that is set when the operator interrupts the command."""
    interrupted = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: interrupted.set())
              for number in signals]
    try:
        yield interrupted
    finally:
        for number, handler in zip(signals, before):
            signal.signal(number, handler)


def _heal(
    rows: list[Row], guests: dict[str, libvirt_guest.Guest], bandwidth: int,
    interrupted: threading.Event,
) -> int:
    """Complete disks; return the worst exit code."""
    worst = DONE
    with _Display() as display:
        for row in rows:
            progress = display.begin(row)
            try:
                _complete(row, guests[row.instance], bandwidth,
                          _Interruptible(progress, interrupted))
            except Interrupted:
                display.say(
                    f'{_title(row)}: interrupted. The disk is unchanged, or '
                    'contains a part of its backing file and still needs it; '
                    'its data are unchanged, and the guest is not affected. '
                    'Run the command again to continue.')
                return FAILED
            except Skipped as error:
                display.say(f'{_title(row)}: skipped: {error}')
                worst = max(worst, LEFT)
            except Exception as error:
                display.say(f'{_title(row)}: not completed: '
                            f'{fetch.reason(error)}')
                worst = FAILED
            else:
                display.say(f'{_title(row)}: complete')
    return worst


class _Interruptible:
    """Progress that raises Interrupted if the operator interrupts."""

    def __init__(self, report: Progress, interrupted: threading.Event) -> None:
        self._report = report
        self._interrupted = interrupted

    def __call__(self, done: int, total: int) -> None:
        """Report progress.

        :raises Interrupted: the operator interrupted the command
        """
        self.check()
        self._report(done, total)

    def check(self) -> None:
        if self._interrupted.is_set():
            raise Interrupted


def _complete(row: Row, guest: libvirt_guest.Guest, bandwidth: int,
              progress: _Interruptible) -> None:
    """Complete a disk, in the way that is safe now.

    :raises Skipped: no way is safe any more
    :raises Interrupted: the operator interrupted the command
    """
    progress.check()
    now = _row(row.instance, row.disk, guest)
    if not now.way:
        raise Skipped(now.reason)
    try:
        WAYS[now.way].complete(now, guest, bandwidth, progress)
    except Exception:
        # Ctrl-C also ends qemu-img and sync.
        progress.check()
        raise


# -- output ------------------------------------------------------------------

def _title(row: Row) -> str:
    return f'{row.instance} {row.disk.name}'


class _Display:
    """A bar for each disk; lines if the output is not a terminal."""

    def __init__(self) -> None:
        self._console = rich_console.Console(
            highlight=False, markup=False, soft_wrap=True)
        self._bars = rich_progress.Progress(
            rich_progress.TextColumn('{task.description}', markup=False),
            rich_progress.BarColumn(), rich_progress.TaskProgressColumn(),
            rich_progress.TimeRemainingColumn(), console=self._console,
            disable=not self._console.is_terminal)

    def __enter__(self) -> _Display:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, row: Row) -> Progress:
        """Show that a disk begins; return a callback for its progress."""
        if self._bars.disable:
            self.say(f'{_title(row)}: {row.way}, '
                     f'about {_gib(row.needed)} GiB')
        task = self._bars.add_task(_title(row), total=None)
        return lambda done, total: self._bars.update(
            task, completed=done, total=total)

    def say(self, line: str) -> None:
        self._console.print(line)


#: columns of the table: title, and the text of a row
COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ('Instance', lambda row: row.instance),
    ('Disk', lambda row: row.disk.name),
    ('Size', lambda row: _gib(row.size)),
    ('Base', lambda row: os.path.basename(row.disk.backing)),
    ('Written', lambda row: _gib(row.needed)),
    ('Free', lambda row: _gib(row.free)),
    ('Way', lambda row: row.way or f'skipped: {row.reason}'),
)


def _table(rows: list[Row]) -> str:
    table = prettytable.PrettyTable([title for title, _ in COLUMNS])
    table.align = 'l'
    table.max_width['Way'] = 30
    for row in rows:
        table.add_row([show(row) for _title, show in COLUMNS])
    possible = [row for row in rows if row.way]
    written = sum(row.needed or 0 for row in possible)
    return (f'{table}\n{len(possible)} of {len(rows)} disks can be completed '
            f'now, with about {_gib(written)} GiB written; sizes in GiB.')


def _gib(size: int | None) -> str:
    return '?' if size is None else f'{size / units.Gi:.3f}'
