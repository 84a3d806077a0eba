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

"""Measure the transfer of backing files; print a table and draw a plot."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import functools
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Optional

import fixtures
import matplotlib
from nova.conf import CONF
import prettytable

import bench
from bench import sshd
from nova_migfix.storage import image_file
from nova_migfix.transport import transfer

matplotlib.use('svg')
from matplotlib import pyplot  # noqa: E402

# Seconds by way and size in GB; None: more than LIMIT.
Found = dict[tuple[str, int], Optional[float]]

SIZES = (1, 10, 100, 1000)      # GB
GIB = 1 << 30
LIMIT = 900                     # seconds for one measurement

# Requirements: the plugin takes at most GROWTH times as long per GB for the
# largest disk as for one of THAN_AT GB, and is FASTER times faster than rsync
# with the latter.
GROWTH = 1.5
FASTER, THAN_AT = 20, 100


def plugin(transport: str, base: pathlib.Path, directory: pathlib.Path,
           ssh: pathlib.Path) -> None:
    """Pull the base and make a complete disk, as the plugin does."""
    CONF.set_override('remote_filesystem_transport', transport, 'libvirt')
    transfer.fetch(sshd.HOST, [str(base)], str(directory))
    image_file.flatten(
        str(directory / base.name), 'raw', str(directory / 'disk'))


def rsync(base: pathlib.Path, directory: pathlib.Path,
          ssh: pathlib.Path) -> None:
    """Copy as Nova does with ``remote_filesystem_transport = rsync``."""
    _run('rsync', '-r', '--sparse', f'{sshd.HOST}:{base}', directory,
         '--compress')


def scp(base: pathlib.Path, directory: pathlib.Path,
        ssh: pathlib.Path) -> None:
    """Copy as Nova does by default."""
    _run('scp', '-S', ssh, '-C', '-r', f'{sshd.HOST}:{base}', directory)


PLUGIN, RSYNC, SCP = 'plugin by ssh', 'rsync --sparse', 'scp -C'
# Each is called with the base, the target directory and the ssh program.
WAYS: dict[str, Callable[[pathlib.Path, pathlib.Path, pathlib.Path], None]]
WAYS = {PLUGIN: functools.partial(plugin, 'ssh'),
        'plugin by rsync': functools.partial(plugin, 'rsync'),
        RSYNC: rsync, SCP: scp}


def _run(*command: str | pathlib.Path) -> None:
    subprocess.run(command, check=True, timeout=LIMIT)


def measure(way: str, base: pathlib.Path, ssh: pathlib.Path) -> float | None:
    """Return the seconds of one transfer, None if more than LIMIT."""
    with tempfile.TemporaryDirectory(dir=base.parent) as directory:
        begin = time.monotonic()
        try:
            WAYS[way](base, pathlib.Path(directory), ssh)
        except subprocess.TimeoutExpired:
            return None
        return time.monotonic() - begin


def measure_all(directory: pathlib.Path, ssh: pathlib.Path) -> Found:
    """Measure all ways, size by size; return the seconds.

    A way that exceeds LIMIT with one size is not tried with the next. scp,
    which writes every hole, is tried only if there is space for the full size.
    """
    found: Found = {}
    for size in SIZES:
        base = directory / f'ephemeral_{size}_40d1d2c'
        with open(base, 'wb') as file:
            file.truncate(size * GIB)
        subprocess.run(['/sbin/mkfs.ext4', '-q', base], check=True)
        for way in WAYS:
            if (found.get((way, max(1, size // 10)), 0) is not None
                    and (way != SCP or has_space(directory, size))):
                found[way, size] = measure(way, base, ssh)
                print(f'{size:5} GB  {way:15} {shown(found[way, size])} s',
                      flush=True)
        base.unlink()
    return found


def has_space(directory: pathlib.Path, size: int) -> bool:
    """Return whether 20 GB stay free after *size* GB are written."""
    return shutil.disk_usage(directory).free > (size + 20) * GIB


def shown(seconds: float | None) -> str:
    return f'> {LIMIT}' if seconds is None else f'{seconds:.2f}'


def table(found: Found) -> prettytable.PrettyTable:
    result = prettytable.PrettyTable(['GB', *WAYS])
    result.align = 'r'
    for size in SIZES:
        result.add_row([size, *(
            shown(found[way, size]) if (way, size) in found else '-'
            for way in WAYS)])
    return result


def draw(found: Found, path: pathlib.Path) -> None:
    figure, axes = pyplot.subplots()
    for way in WAYS:
        sizes = [size for size in SIZES if found.get((way, size)) is not None]
        axes.loglog(sizes, [found[way, size] for size in sizes], marker='o',
                    label=way)
    axes.set_xlabel('virtual size of a new ext4, GB')
    axes.set_ylabel('seconds until the disk is on the destination')
    axes.legend()
    figure.savefig(path)


def problems(found: Found) -> Iterator[str]:
    """Yield a line for each requirement that does not hold."""
    # A measurement that exceeded the limit took at least that long.
    growth = ((found[PLUGIN, SIZES[-1]] or LIMIT)
              / (found[PLUGIN, THAN_AT] or LIMIT))
    if growth > GROWTH * SIZES[-1] / THAN_AT:
        yield (f'{SIZES[-1]} GB take {growth:.1f} times as long as '
               f'{THAN_AT} GB')
    if (RSYNC, THAN_AT) not in found:
        yield f'{RSYNC} was not measured at {THAN_AT} GB'
    elif ((found[RSYNC, THAN_AT] or LIMIT)
            < FASTER * (found[PLUGIN, THAN_AT] or LIMIT)):
        yield f'not {FASTER} times faster than {RSYNC} at {THAN_AT} GB'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('directory', type=pathlib.Path,
                        help='for the plot; needs some GB temporarily')
    directory = parser.parse_args().directory
    CONF([], default_config_files=[])
    with sshd.Sshd() as server, fixtures.TempDir(
            rootdir=str(directory)) as place:
        found = measure_all(pathlib.Path(place.path), server.ssh)
    draw(found, directory / 'pull.svg')
    print(table(found))
    return bench.print_problems(problems(found))


if __name__ == '__main__':
    sys.exit(main())
