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

"""Compare the cost of a complete disk with an overlay on a shared base file.

``python -m bench.creation DIRECTORY`` makes an ephemeral disk for the first
guest on a host and for the next one, by Nova's qcow2 backend and by the
plugin's. It measures both in pairs and alternates which one begins. It prints
medians and ranges, and plots the time against the size.

The space in scratch directories is measured in a separate round: the
measurement itself takes time from mkfs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
import multiprocessing
import os
import pathlib
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from typing import Any
from typing import NamedTuple
from typing import TypeVar
from typing import Union

import matplotlib
import nova.conf
from nova.privsep import fs
import nova.privsep.path  # noqa: F401
from nova.virt.libvirt import driver
from nova.virt.libvirt import imagebackend
from oslo_utils import units
import prettytable

import bench
from nova_migfix import conf
from nova_migfix.storage import file_system
from nova_migfix.storage import image_backend

matplotlib.use('svg')
from matplotlib import pyplot  # noqa: E402

CONF = nova.conf.CONF
T = TypeVar('T')
KINDS = ('ext4', 'xfs', 'vfat', 'ntfs')

# Pairs of measurements by GB; a case gets no further one after BUDGET seconds.
ROUNDS = {1: 3, 20: 3, 200: 2, 1000: 2}
SIZES = tuple(ROUNDS)
BUDGET = 20

LIMIT = 90                      # seconds for one measurement
SPARE = 10                      # GB that stay free

GUESTS, GUESTS_SIZE = 20, 20    # number of disks, and their size in GB
LOOK = 0.002                    # seconds between two measurements of space

# Requirements for ext4: a disk of the largest size takes at most GROWTH times
# as long per GB as one of the size before, and a disk of GUESTS_SIZE at most
# LARGEST MiB.
GROWTH, LARGEST = 1.5, 16


class Way(NamedTuple):
    """A way to make a disk."""

    backend: Any        # a class of Nova's image backends
    create: Callable[..., None]     # makes a file system; Nova's fetch_func
    is_full: bool       # whether its NTFS is written to the last block


OVERLAY, COMPLETE = 'overlay', 'complete'
_CREATE = driver.LibvirtDriver._create_ephemeral
WAYS = {
    OVERLAY: Way(imagebackend.Qcow2, _CREATE, True),
    COMPLETE: Way(image_backend.Qcow2,
                  file_system.whole(file_system.sparse(_CREATE)), False)}


class Cost(NamedTuple):
    """Seconds for the first guest's disk on a host and the next one's."""

    first: float
    next: float


class Space(NamedTuple):
    """Allocated bytes."""

    base: int
    disk: int       # of the next guest


Round = tuple[Cost, Space]
# A text says why there are none.
Rounds = Union[list[Round], str]
# By kind and size: the rounds by way, and the bytes of scratch space.
Found = dict[tuple[str, int], tuple[dict[str, Rounds], int]]


def make(way: str, kind: str, size: int, guest: str) -> pathlib.Path:
    """Make a disk of *size* GB by a backend, with the driver's arguments."""
    path = pathlib.Path(CONF.instances_path) / guest / 'disk.eph0'
    path.parent.mkdir()
    backend, create, _is_full = WAYS[way]
    extension = fs.get_file_extension_for_os_type(None, None, kind)
    backend(path=str(path)).cache(
        fetch_func=functools.partial(
            create, fs_label='ephemeral0', os_type=None, is_block_dev=False,
            vm_mode=None),
        context=None, filename=f'ephemeral_{size}_{extension}',
        size=size * units.Gi, ephemeral_size=size, specified_fs=kind,
        safe=True)
    return path


def on_new_host(directory: pathlib.Path, function: Callable[..., T],
                *args: object) -> T:
    """Call a function in a process with its own, empty instances_path.

    :raises multiprocessing.TimeoutError: it takes more than LIMIT seconds
    """
    with tempfile.TemporaryDirectory(dir=directory) as path:
        CONF.set_override('instances_path', path)
        os.sync()       # the measurement must not wait for earlier writes
        with multiprocessing.get_context('fork').Pool(
                1, initializer=os.setsid) as pool:
            # The pool has no public attribute for the process.
            process, = pool._pool  # type: ignore[attr-defined]
            try:
                return pool.apply_async(function, args).get(LIMIT)
            except multiprocessing.TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)      # with its mkfs
                raise


def allocated(paths: Iterable[pathlib.Path]) -> int:
    """Return the allocated bytes of files; some may no longer exist."""
    found = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_blocks * 512
    return found


def allocated_below(pattern: str) -> int:
    os.sync()
    return allocated(pathlib.Path(CONF.instances_path).glob(pattern))


class Peak(threading.Thread):
    """Measure the largest size of the scratch directories in a context."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended, self.bytes = threading.Event(), 0

    def run(self) -> None:
        instances = pathlib.Path(CONF.instances_path)
        while not self._ended.wait(LOOK):
            # A directory may vanish during the listing of its files.
            with contextlib.suppress(FileNotFoundError):
                self.bytes = max(self.bytes, allocated(
                    file for place in instances.glob('*/migfix-*')
                    for file in place.rglob('*')))

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self.join()


def two_guests(way: str, kind: str, size: int) -> Round:
    """Return time and space of the disks of a host's first two guests."""
    ticks = [time.monotonic()]
    for guest in ('first', 'next'):
        make(way, kind, size, guest)
        ticks.append(time.monotonic())
    return (Cost(ticks[1] - ticks[0], ticks[2] - ticks[1]),
            Space(allocated_below('_base/*'),
                  allocated_below('next/disk.eph0')))


def scratch_space(kind: str, size: int) -> int:
    """Return the most bytes in scratch directories while a disk is made."""
    with Peak() as peak:
        make(COMPLETE, kind, size, 'first')
    return peak.bytes


def many_guests(way: str) -> tuple[float, int]:
    """Return the seconds and bytes of GUESTS disks on one host."""
    begin = time.monotonic()
    for guest in range(GUESTS):
        make(way, 'ext4', GUESTS_SIZE, f'guest{guest}')
    return (time.monotonic() - begin,
            allocated_below('_base/ephemeral*')
            + allocated_below('*/disk.eph0'))


def reason_against(way: str, kind: str, size: int,
                   directory: pathlib.Path) -> str:
    """Return why a disk is not measured; '' if it is."""
    is_full = kind == 'ntfs' and WAYS[way].is_full
    if is_full and size > GUESTS_SIZE:
        return 'writes all zeros'
    needed = (size if is_full else 1) + SPARE
    return ('no room' if shutil.disk_usage(directory).free < needed * units.Gi
            else '')


def measure(kind: str, size: int,
            directory: pathlib.Path) -> dict[str, Rounds]:
    """Return the rounds of each way for one kind and size."""
    reasons = {way: reason_against(way, kind, size, directory)
               for way in WAYS}
    found: dict[str, list[Round]] = {
        way: [] for way, reason in reasons.items() if not reason}
    begin = time.monotonic()
    for done in range(ROUNDS[size]):
        if time.monotonic() - begin < BUDGET:
            for way in found if done % 2 else reversed(found):
                found[way].append(on_new_host(
                    directory, two_guests, way, kind, size))
    return {way: reason or found[way] for way, reason in reasons.items()}


def measure_all(directory: pathlib.Path) -> Found:
    """Measure all kinds and sizes, and print each result."""
    found: Found = {}
    for kind in KINDS:
        for size in SIZES:
            found[kind, size] = (
                measure(kind, size, directory),
                on_new_host(directory, scratch_space, kind, size))
            print(kind, size, found[kind, size], flush=True)
    return found


def rounds_of(found: Found, kind: str, size: int, way: str) -> list[Round]:
    by_way, _scratch = found[kind, size]
    rounds = by_way[way]
    return [] if isinstance(rounds, str) else rounds


def medians(rounds: Sequence[Round]) -> Cost:
    return Cost(*map(statistics.median, zip(*(cost for cost, _ in rounds))))


def shown(values: Sequence[float]) -> str:
    """Return median and range as text."""
    return (f'{statistics.median(values):.2f} '
            f'({min(values):.2f}-{max(values):.2f})')


def mib(size: float) -> str:
    return f'{size / units.Mi:.1f}'


def row(rounds: Rounds, scratch: int) -> list[object]:
    if isinstance(rounds, str):
        return [0, *[rounds] * 5]
    costs, spaces = zip(*rounds)
    return [len(rounds), *map(shown, zip(*costs)), *map(mib, spaces[-1]),
            mib(scratch)]


def table(found: Found) -> prettytable.PrettyTable:
    result = prettytable.PrettyTable([
        'file system', 'GB', 'disk', 'rounds', 'first, s', 'next, s',
        'base, MiB', 'disk, MiB', 'scratch, MiB'])
    result.align = 'r'
    for (kind, size), (by_way, scratch) in found.items():
        for way, rounds in by_way.items():
            result.add_row([kind, size, way, *row(
                rounds, scratch if way == COMPLETE else 0)])
    return result


def draw(found: Found, path: pathlib.Path) -> None:
    figure, panels = pyplot.subplots(
        1, len(KINDS), sharey=True, figsize=(10, 3.5), layout='constrained')
    for kind, axes in zip(KINDS, panels):
        for way, which, line in ((COMPLETE, 'next', 'o-'),
                                 (OVERLAY, 'first', 's-'),
                                 (OVERLAY, 'next', 's:')):
            sizes = [size for size in SIZES
                     if rounds_of(found, kind, size, way)]
            axes.loglog(sizes, [
                getattr(medians(rounds_of(found, kind, size, way)), which)
                for size in sizes], line,
                label='complete' if way == COMPLETE
                else f'overlay, {which} guest')
        axes.set_title(kind)
        axes.set_xlabel('GB')
    panels[0].set_ylabel('seconds for a new disk')
    panels[0].legend()
    figure.savefig(path)


def problems(found: Found) -> Iterator[str]:
    """Yield a line for each requirement that does not hold."""
    before, largest = (rounds_of(found, 'ext4', size, COMPLETE)
                       for size in SIZES[-2:])
    if not before or not largest:
        yield 'the largest disks were not measured'
    elif (medians(largest).next / SIZES[-1]
            > GROWTH * medians(before).next / SIZES[-2]):
        yield f'{SIZES[-1]} GB take too long, compared with {SIZES[-2]} GB'
    if any(space.disk > LARGEST * units.Mi for _cost, space in rounds_of(
            found, 'ext4', GUESTS_SIZE, COMPLETE)):
        yield f'{GUESTS_SIZE} GB need more than {LARGEST} MiB'
    if any(space.base for kind, size in found
           for _cost, space in rounds_of(found, kind, size, COMPLETE)):
        yield 'a complete disk has left something in _base'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('directory', type=pathlib.Path,
                        help='for the plot and, temporarily, the disks')
    directory = parser.parse_args().directory
    conf.register_opts(CONF)
    CONF([], project='nova', default_config_files=[])
    # Own files need no privsep daemon.
    nova.privsep.sys_admin_pctxt.set_client_mode(False)
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    many = {way: on_new_host(directory, many_guests, way) for way in WAYS}
    found = measure_all(directory)
    draw(found, directory / 'creation.svg')
    print(table(found))
    for way, (taken, size) in many.items():
        print(f'{GUESTS} disks of {GUESTS_SIZE} GB, {way}: {taken:.1f} s, '
              f'{mib(size)} MiB')
    return bench.print_problems(problems(found))


if __name__ == '__main__':
    sys.exit(main())
