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

"""What a complete disk costs, against an overlay on a shared base file.

``python -m nova_migfix.tests.bench.creation DIRECTORY`` has Nova's backend for
qcow2 and the plugin's make an ephemeral disk for the first guest on a host and
for the next one, in turn and several times. It prints medians and ranges, and
draws the time against the size.

Time and space are measured in rounds of their own: whoever looks at the
scratch directories all the time takes time from mkfs.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import threading
import time
from typing import NamedTuple

import matplotlib
import nova.conf
from nova.privsep import fs
import nova.privsep.path  # noqa: F401
from nova.virt.libvirt import driver
from nova.virt.libvirt import imagebackend
from oslo_utils import units
import prettytable

from nova_migfix import conf
from nova_migfix import file_system
from nova_migfix import image_backend

matplotlib.use('svg')
from matplotlib import pyplot  # noqa: E402

CONF = nova.conf.CONF
SIZES = (1, 20, 200, 1000)      # GB
KINDS = ('ext4', 'xfs', 'vfat', 'ntfs')

# Rounds of one case; no further one after so many seconds and the fewest.
ROUNDS, FEWEST, BUDGET = 7, 3, 30

GUESTS, GUESTS_SIZE = 20, 20    # so many disks of so many GB
LOOK = 0.002                    # seconds between two looks at what there is

# What has to hold for ext4: the most seconds for a disk of the largest size,
# and the most MiB of a disk of GUESTS_SIZE.
SLOWEST, LARGEST = 10, 16


class Way(NamedTuple):
    """How a disk is made."""

    backend: type
    create: object      # makes a file system, Nova's fetch_func
    is_full: bool       # its NTFS is written to the last block


OVERLAY, COMPLETE = 'overlay', 'complete'
_CREATE = driver.LibvirtDriver._create_ephemeral
WAYS = {
    OVERLAY: Way(imagebackend.Qcow2, _CREATE, True),
    COMPLETE: Way(image_backend.Qcow2,
                  file_system.whole(file_system.sparse(_CREATE)), False)}


class Cost(NamedTuple):
    """Of the first guest's disk on a host and the next one's."""

    first: float
    next: float


class Space(NamedTuple):
    """Bytes that are allocated."""

    base: int
    disk: int       # of the next guest
    peak: int       # the most at once in scratch directories, for one disk


def make(way, kind, size, guest):
    """Have a backend make a disk of *size* GB, as the driver asks it to."""
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


@contextlib.contextmanager
def host(directory):
    """A new instances_path."""
    with tempfile.TemporaryDirectory(dir=directory) as path:
        CONF.set_override('instances_path', path)
        os.sync()       # what others have written is not to be waited for
        yield pathlib.Path(path)


def seconds(way, kind, size, directory):
    with host(directory):
        ticks = [time.monotonic()]
        for guest in ('first', 'next'):
            make(way, kind, size, guest)
            ticks.append(time.monotonic())
        return Cost(ticks[1] - ticks[0], ticks[2] - ticks[1])


def allocated(paths):
    """Return the bytes of what is left of some files."""
    found = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_blocks * 512
    return found


class Peak(threading.Thread):
    """Looks at the scratch directories as long as the context lasts."""

    def __init__(self, instances):
        super().__init__(daemon=True)
        self._instances, self._ended, self.bytes = (
            instances, threading.Event(), 0)

    def run(self):
        while not self._ended.wait(LOOK):
            # A directory may vanish while its files are listed.
            with contextlib.suppress(FileNotFoundError):
                self.bytes = max(self.bytes, allocated(
                    file for place in self._instances.glob('*/migfix-*')
                    for file in place.rglob('*')))

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_error):
        self._ended.set()
        self.join()


def space(way, kind, size, directory):
    with host(directory) as path:
        make(way, kind, size, 'first')
        with Peak(path) as peak:
            disk = make(way, kind, size, 'next')
        os.sync()
        return Space(allocated((path / '_base').iterdir()),
                     allocated([disk]), peak.bytes)


def guests(way, directory):
    """Return the seconds and bytes of GUESTS disks on one host."""
    with host(directory) as path:
        begin = time.monotonic()
        for guest in range(GUESTS):
            make(way, 'ext4', GUESTS_SIZE, f'guest{guest}')
        taken = time.monotonic() - begin
        os.sync()
        return taken, allocated(
            [*path.glob('_base/ephemeral*'), *path.glob('*/disk.eph0')])


def has_room(way, kind, size, directory):
    """Say whether what a file system writes leaves some space."""
    written = size if kind == 'ntfs' and WAYS[way].is_full else 1
    return shutil.disk_usage(directory).free > (written + 20) * units.Gi


def measure(kind, size, directory):
    """Return every Cost by way, the ways in turn, each first every time."""
    ways = [way for way in WAYS if has_room(way, kind, size, directory)]
    found = {way: [] for way in ways}
    begin = time.monotonic()
    for done in range(ROUNDS):
        if done >= FEWEST and time.monotonic() - begin > BUDGET:
            break
        for way in ways if done % 2 else reversed(ways):
            found[way].append(seconds(way, kind, size, directory))
    return found


def measure_all(directory):
    """Return ``{(kind, size, way): (costs, Space)}``; no room, no entry."""
    found = {}
    for kind in KINDS:
        for size in SIZES:
            for way, costs in measure(kind, size, directory).items():
                found[kind, size, way] = costs, space(
                    way, kind, size, directory)
                print(kind, size, way, *found[kind, size, way][1],
                      *(f'{cost.first:.2f}/{cost.next:.2f}'
                        for cost in costs), flush=True)
    return found


def medians(costs):
    return Cost(*map(statistics.median, zip(*costs)))


def shown(values):
    """Median and range."""
    return (f'{statistics.median(values):.2f} '
            f'({min(values):.2f}-{max(values):.2f})')


def mib(size):
    return f'{size / units.Mi:.1f}'


def row(kind, size, way, found):
    head = [kind, size, way]
    if (kind, size, way) not in found:
        return [*head, 0, *['no room'] * 5]
    costs, taken = found[kind, size, way]
    return [*head, len(costs), *map(shown, zip(*costs)), *map(mib, taken)]


def table(found):
    result = prettytable.PrettyTable([
        'file system', 'GB', 'disk', 'rounds', 'first, s', 'next, s',
        'base, MiB', 'disk, MiB', 'scratch, MiB'])
    result.align = 'r'
    for kind in KINDS:
        for size in SIZES:
            for way in WAYS:
                result.add_row(row(kind, size, way, found))
    return result


def draw(found, path):
    figure, panels = pyplot.subplots(
        1, len(KINDS), sharey=True, figsize=(10, 3.5), layout='constrained')
    for kind, axes in zip(KINDS, panels):
        for way, which, line in ((COMPLETE, 'first', 'o-'),
                                 (OVERLAY, 'first', 's-'),
                                 (OVERLAY, 'next', 's:')):
            sizes = [size for size in SIZES if (kind, size, way) in found]
            axes.loglog(sizes, [
                getattr(medians(found[kind, size, way][0]), which)
                for size in sizes], line,
                label='complete' if way == COMPLETE
                else f'overlay, {which} guest')
        axes.set_title(kind)
        axes.set_xlabel('GB')
    panels[0].set_ylabel('seconds for a new disk')
    panels[0].legend()
    figure.savefig(path)


def problems(found):
    """Yield what does not hold, a line each."""
    costs, _space = found['ext4', SIZES[-1], COMPLETE]
    if medians(costs).next > SLOWEST:
        yield f'{SIZES[-1]} GB take more than {SLOWEST} s'
    _costs, taken = found['ext4', GUESTS_SIZE, COMPLETE]
    if taken.disk > LARGEST * units.Mi:
        yield f'{GUESTS_SIZE} GB need more than {LARGEST} MiB'
    if any(taken.base for (_kind, _size, way), (_costs, taken)
           in found.items() if way == COMPLETE):
        yield 'a complete disk has left something in _base'


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('directory', type=pathlib.Path,
                        help='where the plot is put, and disks meanwhile')
    directory = parser.parse_args().directory
    conf.register_opts(CONF)
    CONF([], project='nova', default_config_files=[])
    # Nova's daemon with more rights is not needed for one's own files.
    nova.privsep.sys_admin_pctxt.set_client_mode(False)
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    many = {way: guests(way, directory) for way in WAYS}
    found = measure_all(directory)
    draw(found, directory / 'creation.svg')
    print(table(found))
    for way, (taken, size) in many.items():
        print(f'{GUESTS} disks of {GUESTS_SIZE} GB, {way}: {taken:.1f} s, '
              f'{mib(size)} MiB')
    failed = list(problems(found))
    for problem in failed:
        print(problem)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
