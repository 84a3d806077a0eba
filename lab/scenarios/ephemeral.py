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

"""Functions of the scenarios with ephemeral disks."""

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

# Bytes of data in a base that is not as empty as a new one.
HEAVY = 64 << 20

ONE_GB = (guest.Ephemeral(1),)

# On unmodified Nova the migration completes, but damages the disk.
DAMAGES = scenario.Arrives(text='arrives, disk damaged')
KEEPS = scenario.Arrives(said=(scenario.Said(
    scenario.DESTINATION, 'nova-compute',
    r'disk\.eph0(:| has) .*bytes.* ephemeral_'),),
    text='arrives, disk kept')


class OldDisks(scenario.Scenario):
    """A scenario with the disks of unmodified Nova: overlays on a base."""

    options = {('migfix', 'ephemeral_overlays'): True}


# Up to 29, Nova labels a base that it makes for an existing disk with the
# base's file name, which is too long for XFS and vfat (LP 2061701).
TOO_LONG = r'mkfs.* -[Ln] ephemeral_\d+_'
LABEL_TOO_LONG = scenario.Fails(said=(scenario.Said(
    scenario.DESTINATION, 'nova-compute', TOO_LONG),))
_UNLABELLED = {0: LABEL_TOO_LONG, 30: None}


def unlabelled(run: scenario.Run) -> scenario.Outcome | None:
    """Return the outcome of a migration for which Nova has to make XFS.

    :returns: None for the expected outcome of the scenario
    """
    return None if run.protected else scenario.in_release(
        _UNLABELLED, run.cloud.venvs.major)


def not_fetched(reason: str) -> scenario.Said:
    """Return the destination's line about a base that it has not fetched.

    :param reason: a pattern
    """
    return scenario.Said(
        scenario.DESTINATION, 'nova-compute',
        r'disk\.eph0 of instance \S+ (cannot be had|could not be fetched) '
        r'from [\d.]+: .*' + reason)


# Seconds between two passes of nova-compute's image cache.
_INTERVAL = 4
_PASS = 'Verification complete'


def eager_cache(spared: int) -> dict[tuple[str, str], Any]:
    """Return options with which the image cache soon removes unused files.

    :param spared: seconds for which it keeps an unused file
    """
    return {
        ('DEFAULT', 'periodic_fuzzy_delay'): 0,
        ('image_cache', 'manager_interval'): _INTERVAL,
        ('image_cache', 'remove_unused_original_minimum_age_seconds'): spared,
        ('image_cache', 'remove_unused_resized_minimum_age_seconds'): spared,
    }


def wait_for_cache_passes(run: scenario.Run, spared: int) -> None:
    """Wait until each image cache has removed all files that it can."""
    run.progress('image cache')
    logs = [service.log for host, service in run.cloud.compute.items()
            if (run.instances(host) / '_base').exists()]

    def passes(log: pathlib.Path) -> int:
        return log.read_text(errors='replace').count(_PASS)

    enough = {log: passes(log) + spared // _INTERVAL + 2 for log in logs}
    process.wait_for('passes of the image cache', lambda: all(
        passes(log) >= enough[log] for log in logs), timeout=240)


# Write files and their checksums in the background.
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

# The filesystem spreads new directories over all allocation groups.
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

# The mount point of a disk in the guest.
_PLACE = 'disk'


def write(instance: guest.Guest, kind: str, device: str = 'vdb',
          place: str = _PLACE) -> None:
    """Mount a disk in the guest and start to write to it."""
    instance.run(_WRITE.format(type=kind, device=device, place=place))


def stop_writing(instance: guest.Guest, place: str = _PLACE) -> None:
    """Stop the writing, unmount the disk and write all caches to it."""
    instance.run(f'sleep 3; kill $(cat /writer-{place}); sleep 1; '
                 f'umount /{place}; sync')


def boot_and_write(
    run: scenario.Run, kind: str,
    ephemerals: Sequence[guest.Ephemeral] = ONE_GB,
) -> tuple[guest.Guest, dict[str, str]]:
    """Boot a guest, and write to its first disk and unmount it.

    :returns: the guest, and the identity of the filesystem before
    """
    instance = run.boot(ephemerals=ephemerals)
    before = run.snapshot(instance, 'disk.eph0').identity()
    write(instance, kind)
    stop_writing(instance)
    return instance, before


def use(instance: guest.Guest, kind: str, device: str = 'vdb',
        place: str = _PLACE) -> str:
    """Write to, read and remount a disk after a migration.

    :returns: '', or the failure
    """
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
    """Mount a disk after a boot and check all files on it.

    :returns: '', or the failure
    """
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
    """Return the names of the files of a guest's ephemeral disks."""
    return [f'disk.eph{number}'
            for number, _ in enumerate(instance.ephemerals)]


def bases(run: scenario.Run, host: str) -> list[pathlib.Path]:
    """Return the bases of ephemeral and swap disks in a host's image cache."""
    return [base for kind in ('ephemeral', 'swap')
            for base in run.instances(host).glob(f'_base/{kind}_*')]


def forget_bases(run: scenario.Run) -> None:
    """Delete the bases of ephemeral and swap disks on both hosts."""
    for host in topology.COMPUTES:
        for base in bases(run, host):
            base.unlink()


def cache_foreign_base(run: scenario.Run) -> None:
    """Leave a base of another guest on the destination."""
    forget_bases(run)
    with run.guest(host=scenario.DESTINATION, ephemerals=ONE_GB):
        pass
    found = [base.name for base in bases(run, scenario.DESTINATION)]
    run.check('a base on the destination', found, found)


def cache_heavy_base(run: scenario.Run, size: int = HEAVY) -> None:
    """Leave a base on the source whose copy takes time and space.

    The added data lie in the second of four allocation groups, which is free
    space in a new XFS.

    :param size: of the added data, in bytes
    """
    forget_bases(run)
    with run.guest(ephemerals=ONE_GB):
        pass
    base, = bases(run, scenario.SOURCE)
    with open(base, 'r+b') as file:
        file.seek(300 << 20)
        file.write(os.urandom(size))


def boot_on_heavy_base(run: scenario.Run) -> guest.Guest:
    """Boot a guest that writes to a disk on a base of `cache_heavy_base`.

    The destination reaches the source by ssh on the migration network only.
    """
    run.configure(both={scenario.EPHEMERAL_FORMAT: 'xfs'})
    run.listen_ssh(topology.MIGRATION)
    cache_heavy_base(run)
    instance = run.boot(ephemerals=ONE_GB)
    write(instance, 'xfs')
    return instance


def boot_failure(run: scenario.Run) -> str:
    """Boot a guest with an ephemeral disk; return the error, '' for none."""
    try:
        with run.guest(ephemerals=ONE_GB):
            return ''
    except (process.LabError, fixtures.MultipleExceptions) as error:
        return str(scenario.reason(error))


def check_disk(run: scenario.Run, instance: guest.Guest, kind: str,
               before: dict[str, str]) -> None:
    """Check the disk of `boot_and_write` from the host.

    The guest itself wrote type, label and UUID when it mounted the disk.
    """
    after = run.snapshot(instance, 'disk.eph0')
    run.check_equal('type, label and UUID', after.identity(), before)
    faults = after.faults()
    run.check_kept(f'the check of {kind} finds nothing', not faults, faults)


def check_files(run: scenario.Run, instance: guest.Guest, kind: str) -> None:
    """Check the disk of `boot_and_write` in the guest."""
    failure = verify(instance, kind)
    run.check_kept('guest can use the disk', not failure, failure)


def check_complete(run: scenario.Run, instance: guest.Guest,
                   files: Sequence[str] | None = None) -> None:
    """Check that the guest's disks, or *files* of them, need no base."""
    host = run.cloud.hosts[instance.host]
    for name in files or names(instance):
        backing = disks.backing_file(host, instance.disk(host.name, name))
        run.check(f'{name} on {host.name} has no backing file', not backing,
                  backing)


def check_hard_reboot_fails(run: scenario.Run, instance: guest.Guest) -> None:
    """Check that Nova stops the guest and cannot start it again."""
    def reboot_in_vain() -> None:
        with contextlib.suppress(process.LabError):
            instance.hard_reboot()
    run.check_source_says('no base can be made', TOO_LONG, reboot_in_vain)


def check_nothing_left(run: scenario.Run, instance: guest.Guest) -> None:
    """Check that a failed migration leaves no file on the destination."""
    host = run.cloud.hosts[scenario.DESTINATION]
    left = host.run('find', configuration.instances(host.own), '-name',
                    'migfix-*', '-o', '-name', f'{instance.id}*').split()
    run.check('nothing left on the destination', not left, left)


def check_next_migration(run: scenario.Run, instance: guest.Guest,
                         expected: scenario.Outcome = KEEPS) -> None:
    """Check that the guest can migrate again, with its files."""
    run.migrate(instance, title='the next migration', expected=expected)
    failure = use(instance, 'xfs')
    run.check('guest can use the disk', not failure, failure)
