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

"""What the scenarios with ephemeral disks have in common."""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import os
import pathlib
from typing import Any

import fixtures

from lab import configuration
from lab import disks
from lab import guest
from lab import process
from lab import scenario
from lab import topology

# Bytes that a base has which is not as empty as a fresh one.
HEAVY = 64 << 20

ONE_GB = (guest.Ephemeral(1),)

# On unmodified Nova it is a success for Nova, but not for who has the disk.
DAMAGES = scenario.Arrives(text='arrives, disk damaged')
KEEPS = scenario.Arrives(said=(scenario.Said(
    scenario.DESTINATION, 'nova-compute',
    r'disk\.eph0(:| has) .*bytes.* ephemeral_'),),
    text='arrives, disk kept')


class OldDisks(scenario.Scenario):
    """One with disks as unmodified Nova makes them: overlays on a base."""

    options = {('migfix', 'ephemeral_overlays'): True}


# Up to 29 a base that is made where a disk is needed, not created, has its own
# name for a label, for which XFS and vfat have no room (LP 2061701).
TOO_LONG = r'mkfs.* -[Ln] ephemeral_\d+_'
LABEL_TOO_LONG = scenario.Fails(said=(scenario.Said(
    scenario.DESTINATION, 'nova-compute', TOO_LONG),))
_UNLABELLED = {0: LABEL_TOO_LONG, 30: None}


def unlabelled(run: scenario.Run) -> scenario.Outcome | None:
    """What comes of a migration for which Nova has to make XFS.

    :returns: None for what is expected of the scenario
    """
    return None if run.protected else scenario.in_release(
        _UNLABELLED, run.cloud.venvs.major)


def not_fetched(reason: str) -> scenario.Said:
    """The destination says why, a pattern, it has not fetched a base."""
    return scenario.Said(
        scenario.DESTINATION, 'nova-compute',
        r'disk\.eph0 of instance \S+ (cannot be had|could not be fetched) '
        r'from [\d.]+: .*' + reason)


# Seconds after which nova-compute looks into its image cache once more.
_INTERVAL = 4
_PASS = 'Verification complete'


def eager_cache(spared: int) -> dict[tuple[str, str], Any]:
    """Options with which the image cache soon removes what nobody uses.

    :param spared: seconds for which it stays nevertheless
    """
    return {
        ('DEFAULT', 'periodic_fuzzy_delay'): 0,
        ('image_cache', 'manager_interval'): _INTERVAL,
        ('image_cache', 'remove_unused_original_minimum_age_seconds'): spared,
        ('image_cache', 'remove_unused_resized_minimum_age_seconds'): spared,
    }


def wait_for_cache_passes(run: scenario.Run, spared: int) -> None:
    """Wait until each host with an image cache has removed what it can."""
    run.progress('image cache')
    logs = [service.log for host, service in run.cloud.compute.items()
            if (run.instances(host) / '_base').exists()]

    def passes(log: pathlib.Path) -> int:
        return log.read_text(errors='replace').count(_PASS)

    enough = {log: passes(log) + spared // _INTERVAL + 2 for log in logs}
    process.wait_for('passes of the image cache', lambda: all(
        passes(log) >= enough[log] for log in logs), timeout=240)


# Files are written, with their checksums, until there are enough.
_WRITE = '''
mkdir -p /{place} && mount -t {type} /dev/{device} /{place} &&
    mkdir /{place}/written
cd /{place}/written || exit 1
(
    for number in $(seq 1 600); do
        head -c 32768 /dev/urandom >$number
        md5sum $number >>/{place}/sums
        sync; sleep 0.3
    done
) >/dev/null 2>&1 &
echo $! >/writer-{place}
'''

# New directories come to lie in all allocation groups.
_USE = '''
for number in $(seq 1 16); do
    mkdir /{place}/{directory}$number &&
        cp /init /{place}/{directory}$number || exit 1
done
sync
'''

_VERIFY = '''
cd /{place}/written && [ -s /{place}/sums ] || exit 1
md5sum -c /{place}/sums 2>&1 | grep -v ': OK'
[ $? = 1 ]
'''

# The place where a disk is mounted in the guest.
_PLACE = 'disk'


def write(instance: guest.Guest, kind: str, device: str = 'vdb',
          place: str = _PLACE) -> None:
    """Mount a disk in the guest and write to it from now on."""
    instance.run(_WRITE.format(type=kind, device=device, place=place))


def stop_writing(instance: guest.Guest, place: str = _PLACE) -> None:
    """All that was written is on the disk, which is not in use any more."""
    instance.run(f'sleep 3; kill $(cat /writer-{place}); sleep 1; '
                 f'umount /{place}; sync')


def boot_and_write(
    run: scenario.Run, kind: str,
    ephemerals: Sequence[guest.Ephemeral] = ONE_GB,
) -> tuple[guest.Guest, dict[str, str]]:
    """Boot a guest whose first disk has data, and is not in use any more.

    :returns: the guest, and what the file system was before
    """
    instance = run.boot(ephemerals=ephemerals)
    before = run.snapshot(instance, 'disk.eph0').identity()
    write(instance, kind)
    stop_writing(instance)
    return instance, before


def use(instance: guest.Guest, kind: str, device: str = 'vdb',
        place: str = _PLACE) -> str:
    """Use a disk in all ways after a migration; '' or what went wrong."""
    mount = f'mount -t {kind} /dev/{device} /{place}'
    verify = _VERIFY.format(place=place)
    return _first_failure(instance, (
        f'kill $(cat /writer-{place}); sleep 1; sync', _USE.format(
            place=place, directory='new'),
        'echo 3 >/proc/sys/vm/drop_caches', verify,
        f'umount /{place}', mount, verify,
        f'umount /{place}; sync'))


def verify(instance: guest.Guest, kind: str, device: str = 'vdb',
           place: str = _PLACE) -> str:
    """Read all that was written, after a boot; '' or what went wrong."""
    return _first_failure(instance, (
        f'mkdir -p /{place} && mount -t {kind} /dev/{device} /{place}',
        _VERIFY.format(place=place), f'umount /{place}; sync'))


def _first_failure(instance: guest.Guest, scripts: Sequence[str]) -> str:
    try:
        for script in scripts:
            instance.run(script)
    except process.LabError as error:
        return f'{error}\n{_kernel_says(instance)}'
    return ''


def _kernel_says(instance: guest.Guest) -> str:
    try:
        return instance.run('dmesg | tail -n 15')
    except process.LabError as error:
        return str(error)


def names(instance: guest.Guest) -> list[str]:
    """The names of the files of a guest's ephemeral disks."""
    return [f'disk.eph{number}'
            for number, _ in enumerate(instance.ephemerals)]


def bases(run: scenario.Run, host: str) -> list[pathlib.Path]:
    """The bases in the image cache of *host* that Nova has made itself."""
    return [base for kind in ('ephemeral', 'swap')
            for base in run.instances(host).glob(f'_base/{kind}_*')]


def forget_bases(run: scenario.Run) -> None:
    """As if there had never been a guest with an ephemeral disk."""
    for host in topology.COMPUTES:
        for base in bases(run, host):
            base.unlink()


def cache_foreign_base(run: scenario.Run) -> None:
    """Leave a base on the destination that another guest was booted with."""
    forget_bases(run)
    with run.guest(host=scenario.DESTINATION, ephemerals=ONE_GB):
        pass
    found = [base.name for base in bases(run, scenario.DESTINATION)]
    run.check('a base on the destination', found, found)


def cache_heavy_base(run: scenario.Run, size: int = HEAVY) -> None:
    """Leave a base on the source that takes its time, and space, to copy.

    What is added is in the second of four allocation groups, where a fresh
    XFS has nothing but free space.
    """
    forget_bases(run)
    with run.guest(ephemerals=ONE_GB):
        pass
    base, = bases(run, scenario.SOURCE)
    with open(base, 'r+b') as file:
        file.seek(300 << 20)
        file.write(os.urandom(size))


def boot_failure(run: scenario.Run) -> str:
    """Why a guest with an ephemeral disk cannot be booted; '' if it can."""
    try:
        with run.guest(ephemerals=ONE_GB):
            return ''
    except (process.LabError, fixtures.MultipleExceptions) as error:
        return str(scenario.reason(error))


def check_disk(run: scenario.Run, instance: guest.Guest, kind: str,
               before: dict[str, str]) -> None:
    """Look at the disk of `boot_and_write` from outside.

    The guest has written type, label and UUID itself when it mounted it.
    """
    after = run.snapshot(instance, 'disk.eph0')
    run.check_equal('type, label and UUID', after.identity(), before)
    faults = after.faults()
    run.check_kept(f'the check of {kind} finds nothing', not faults, faults)


def check_files(run: scenario.Run, instance: guest.Guest, kind: str) -> None:
    """Look at the disk of `boot_and_write` in the guest."""
    failure = verify(instance, kind)
    run.check_kept('guest can use the disk', not failure, failure)


def check_complete(run: scenario.Run, instance: guest.Guest,
                   files: Sequence[str] | None = None) -> None:
    """The guest's disks, or those with these names, need no base."""
    host = run.cloud.hosts[instance.host]
    for name in files or names(instance):
        backing = disks.backing_file(host, instance.disk(host.name, name))
        run.check(f'{name} on {host.name} has no backing file', not backing,
                  backing)


def check_hard_reboot_fails(run: scenario.Run, instance: guest.Guest) -> None:
    """The guest has been stopped, and Nova cannot start it again."""
    def reboot_in_vain() -> None:
        with contextlib.suppress(process.LabError):
            instance.hard_reboot()
    run.check_source_says('no base can be made', TOO_LONG, reboot_in_vain)


def check_nothing_left(run: scenario.Run, instance: guest.Guest) -> None:
    """The destination has no trace of a guest that did not come."""
    host = run.cloud.hosts[scenario.DESTINATION]
    left = host.run('find', configuration.instances(host.own), '-name',
                    'migfix-*', '-o', '-name', f'{instance.id}*').split()
    run.check('nothing left on the destination', not left, left)


def check_next_migration(run: scenario.Run, instance: guest.Guest,
                         expected: scenario.Outcome = KEEPS) -> None:
    """What was in the way is gone: the guest moves, with its files."""
    run.migrate(instance, title='the next migration', expected=expected)
    failure = use(instance, 'xfs')
    run.check('guest can use the disk', not failure, failure)
