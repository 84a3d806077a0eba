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
from collections.abc import Iterator
import contextlib
import os
import pwd
import signal
import sys
import threading

import nova.conf
from nova.virt.libvirt import guest as libvirt_guest

from nova_migfix import status
from nova_migfix.status.heal import display
from nova_migfix.status.heal import plan
from nova_migfix.status import hypervisor
from nova_migfix.storage import block_job
from nova_migfix.storage import scratch
from nova_migfix.transport import fetch

CONF = nova.conf.CONF

#: exit codes
DONE, LEFT, FAILED = range(3)


class Interrupted(Exception):
    """The operator interrupted the command."""


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
        rows = list(plan.rows(guests, args.instance))
        if not rows:
            print('No disk needs a backing file that Nova made.')
            return DONE
        print(display.table(rows))
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
    rows: list[plan.Row], guests: dict[str, libvirt_guest.Guest],
    bandwidth: int, interrupted: threading.Event,
) -> int:
    """Complete disks; return the worst exit code."""
    worst = DONE
    with display.Display() as shown:
        for row in rows:
            progress = shown.begin(row)
            try:
                _complete(row, guests[row.instance], bandwidth,
                          _Interruptible(progress, interrupted))
            except Interrupted:
                shown.say(
                    f'{display.title(row)}: interrupted. The disk is '
                    'unchanged, or contains a part of its backing file and '
                    'still needs it; '
                    'its data are unchanged, and the guest is not affected. '
                    'Run the command again to continue.')
                return FAILED
            except plan.Skipped as error:
                shown.say(f'{display.title(row)}: skipped: {error}')
                worst = max(worst, LEFT)
            except Exception as error:
                shown.say(f'{display.title(row)}: not completed: '
                            f'{fetch.reason(error)}')
                worst = FAILED
            else:
                shown.say(f'{display.title(row)}: complete')
    return worst


class _Interruptible:
    """Progress that raises Interrupted if the operator interrupts."""

    def __init__(self, report: block_job.Progress,
                 interrupted: threading.Event) -> None:
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


def _complete(row: plan.Row, guest: libvirt_guest.Guest, bandwidth: int,
              progress: _Interruptible) -> None:
    """Complete a disk, in the way that is safe now.

    :raises plan.Skipped: no way is safe any more
    :raises Interrupted: the operator interrupted the command
    """
    progress.check()
    now = plan.row(row.instance, row.disk, guest)
    if not now.way:
        raise plan.Skipped(now.reason)
    try:
        plan.WAYS[now.way].complete(now, guest, bandwidth, progress)
    except Exception:
        # Ctrl-C also ends qemu-img and sync.
        progress.check()
        raise
