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

"""Measure how long a call blocks a nova-compute under eventlet.

``python -m nova_migfix.tests.blocking CALL DIRECTORY`` makes the files that
CALL needs in an empty directory and prints the longest time in which no other
greenthread ran and the duration of the call, in seconds. A busy machine makes
both longer; the shortest of several repetitions is printed.
"""

# Nova must patch the standard library before other modules import it.
import nova_migfix.tests.functional  # noqa: F401, isort: skip

import argparse
import functools
import itertools
import os
import pathlib
import shutil
import sys
import time

import eventlet
from eventlet import patcher
import nova.conf
import nova.privsep
import nova.privsep.path
from nova.virt.libvirt import driver
from oslo_concurrency import processutils
from oslo_utils import units

from nova_migfix import conf
from nova_migfix.storage import completion
from nova_migfix.storage import disks
from nova_migfix.storage import file_system
from nova_migfix.storage import image_backend
from nova_migfix.storage import image_file
from nova_migfix.storage import scratch

CONF = nova.conf.CONF
TICK = 0.01             # seconds
REPETITIONS = 3

DATA = 200 * units.Mi
DISK_SIZE = 20          # GB
INSTANCES, DISKS_EACH = 300, 3


def longest_gap(call):
    """Measure the longest time between two ticks of another greenthread.

    :returns: its seconds, and those of the call
    """
    ticks = []

    def tick():
        while True:
            ticks.append(time.monotonic())
            eventlet.sleep(TICK)
    ticker = eventlet.spawn(tick)
    eventlet.sleep(2 * TICK)
    begin = time.monotonic()
    call()
    ticks.append(time.monotonic())
    ticker.kill()
    return (max(after - before for before, after in itertools.pairwise(ticks)),
            ticks[-1] - begin)


def raw_file(path):
    """Make a file of random bytes, which qemu-img cannot skip."""
    with path.open('wb') as file:
        for _ in range(DATA // units.Mi):
            file.write(os.urandom(units.Mi))
    return path


def blocks(directory):
    """Yield calls that block, to test the measurement itself."""
    while True:
        yield functools.partial(patcher.original('time').sleep, 0.3)


def flatten(directory):
    """Yield conversions into new disks with new names."""
    base = raw_file(directory / 'raw')
    for number in itertools.count():
        yield functools.partial(image_file.flatten, str(base), 'raw',
                                str(directory / f'disk{number}'))


def overlays(directory):
    """Yield overlays of a guest on a backing file with DATA bytes."""
    (directory / '_base').mkdir()
    base = raw_file(directory / '_base' / 'ephemeral_1_40d1d2c')
    for number in itertools.count():
        path = directory / f'guest{number}' / 'disk.eph0'
        path.parent.mkdir()
        processutils.execute('qemu-img', 'create', '-f', 'qcow2', '-F', 'raw',
                             '-b', base, path)
        yield disks.Overlay(path.name, str(path), str(base))


def flatten_in_place(directory):
    """Yield conversions that replace the disk, and flush the new one."""
    for overlay in overlays(directory):
        yield functools.partial(
            image_file.flatten, overlay.path, 'qcow2', overlay.path)


def convert(directory):
    for overlay in overlays(directory):
        yield functools.partial(completion.convert, overlay)


def create(directory):
    create_ephemeral = file_system.whole(file_system.sparse(
        driver.LibvirtDriver._create_ephemeral))
    for number in itertools.count():
        path = directory / f'guest{number}' / 'disk.eph0'
        path.parent.mkdir()
        yield functools.partial(
            image_backend.Qcow2(path=str(path)).cache,
            fetch_func=functools.partial(
                create_ephemeral, fs_label='ephemeral0', os_type=None,
                is_block_dev=False, vm_mode=None),
            context=None, filename=f'ephemeral_{DISK_SIZE}_40d1d2c',
            size=DISK_SIZE * units.Gi, ephemeral_size=DISK_SIZE,
            specified_fs='ext4', safe=True)


def many_instances(directory):
    (directory / '_base').mkdir()
    base = directory / '_base' / 'ephemeral_1_40d1d2c'
    base.touch()
    disk = directory / 'disk'
    processutils.execute('qemu-img', 'create', '-f', 'qcow2', '-F', 'raw',
                         '-b', base, disk, 20 * units.Gi)
    for number in range(INSTANCES):
        guest = directory / f'guest{number}'
        guest.mkdir()
        for name in ('disk', *(f'disk.eph{index}'
                               for index in range(DISKS_EACH - 1))):
            shutil.copyfile(disk, guest / name)
        (guest / 'disk.info').touch()


def bases_in_use(directory):
    many_instances(directory)
    return itertools.repeat(disks.bases_in_use)


def sweep(directory):
    """Yield calls that find a directory to remove in every tenth instance."""
    many_instances(directory)
    while True:
        for number in range(0, INSTANCES, 10):
            (directory / f'guest{number}' / f'{scratch._prefix()}killed-x'
             ).mkdir()
        yield scratch.sweep


def write_through(directory):
    while True:
        yield functools.partial(
            scratch.write_through, str(raw_file(directory / 'raw')))


CALLS = {call.__name__: call for call in (
    blocks, flatten, flatten_in_place, convert, create, bases_in_use, sweep,
    write_through)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('call', choices=CALLS)
    parser.add_argument('directory', type=pathlib.Path)
    options = parser.parse_args()
    conf.register_opts(CONF)
    CONF([], project='nova', default_config_files=[])
    CONF.set_override('instances_path', str(options.directory))
    # The test's own files do not need Nova's privsep daemon.
    nova.privsep.sys_admin_pctxt.set_client_mode(False)
    os.environ['PATH'] += ':/usr/sbin:/sbin'
    print(*min(map(longest_gap, itertools.islice(
        CALLS[options.call](options.directory), REPETITIONS))))
    return 0


if __name__ == '__main__':
    sys.exit(main())
