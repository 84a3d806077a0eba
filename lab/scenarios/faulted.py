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

"""The base class of scenarios in which a fault hits a live migration.

The guest has data on its disk, which is idle during the migration, so that the
disk can be compared byte by byte afterwards. The migration is slow enough for
each fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import re
from typing import Any

from lab import cloud
from lab import disks
from lab import environments
from lab import faults
from lab import guest
from lab import process
from lab import remains
from lab import scenario
from lab import topology

# MiB/s: slow enough for a fault, fast enough for the next migration.
LIMIT = 8

# Seconds between two comparisons of Nova's power states with libvirt's, and
# seconds to wait for the answer of another service.
POWER_SYNC = 10
RPC_TIMEOUT = 20

_SYNC = ('DEFAULT', 'sync_power_state_interval')
_TIMEOUT = ('DEFAULT', 'rpc_response_timeout')

# Seconds in which the instance reaches its last state after a migration: TCP
# sends lost data again after at most two minutes, and the plugin tries again
# each minute.
LATER = 150

# The outcome depends on the timing of Nova, and no harm is sure.
RECORDED = scenario.Leaves(
    text='result recorded',
    vm_state=('ACTIVE', 'ERROR', 'MIGRATING', 'PAUSED', 'SHUTOFF'),
    allowed=tuple(remains.RULES))

# The data is far behind the partition with the guest's kernel.
_WRITE = '''
dd if=/dev/urandom of=/dev/vda bs=1M seek=512 count={size} conv=fsync &&
    sync && echo 3 >/proc/sys/vm/drop_caches
'''
_SUM = '''
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vda bs=1M skip=512 count={size} 2>/dev/null | md5sum
'''
# MiB, also of a guest whose migration takes longer
_SIZE, _LARGE = 32, 96


class Faulted(scenario.Scenario):
    """A fault hits the live migration of a guest.

    :cvar accident: the fault and its moments
    :cvar queued: the migration waits until that of another guest is over
    :cvar fresh: the destination has to download the guest's image
    """

    accident: faults.Accident
    variants = (environments.PLUGIN,)
    queued = False
    fresh = False
    options = {
        scenario.BANDWIDTH: LIMIT,
        _SYNC: POWER_SYNC,
        _TIMEOUT: RPC_TIMEOUT,
    }

    def run(self, run: scenario.Run) -> None:
        run.configure()
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        instance, data = boot(run, image=fresh_image(run) if self.fresh
                              else None)
        before = remains.references(run.cloud, instance, run)
        with contextlib.ExitStack() as stack:
            if self.queued:
                stack.enter_context(other_migration(run))
            scene = faults.Scene.of(run.cloud, instance, scenario.DESTINATION)
            run.migrate(instance, title=self.accident.text, during=lambda:
                        self.accident.happen(scene))
        judge(run, instance, before, data)


class Accidental(Faulted):
    """A Faulted that is a row of a table."""

    def __init__(self, name: str, title: str, accident: faults.Accident,
                 stock: scenario.Expectation, fixed: scenario.Leaves,
                 queued: bool = False, fresh: bool = False) -> None:
        """:param stock, fixed: the outcome on both hosts with such a Nova"""
        self.name = name
        self.title = title
        self.accident = accident
        self.expected = {scenario.NEITHER: stock, scenario.BOTH: fixed}
        self.queued = queued
        self.fresh = fresh


def fresh_image(run: scenario.Run) -> Any:
    """Upload an image that no host has in its cache."""
    image = run.cloud.upload('fresh', **cloud.MULTIQUEUE)
    run.addCleanup(run.cloud.api.image.delete_image, image.id)
    return image


@contextlib.contextmanager
def other_migration(run: scenario.Run) -> Iterator[None]:
    """Migrate another guest, which arrives by the end of the context.

    The context begins when Nova copies it: migrations to come have to wait.
    """
    other, _ = boot(run, _LARGE)
    scene = faults.Scene.of(run.cloud, other, scenario.DESTINATION)
    other.request_migration(scenario.DESTINATION)
    faults.record('running').wait(scene)
    yield
    assert isinstance(run.expected, scenario.Leaves)
    final = other.settles(None, run.expected.patience)
    run.check('recorded: the migration of the other guest is over', True,
              f'{final}, {other.last_record().status}, {other.vm_state} on '
              f'{other.host}')


def boot(run: scenario.Run, size: int = _SIZE,
         **wanted: Any) -> tuple[guest.Guest, str]:
    """Boot a guest and write data to its disk.

    :param size: of the data, in MiB
    :returns: the guest, and the checksum of the data
    """
    instance = run.boot(cpus=1, **wanted)
    instance.addCleanup(remains.scour, run.cloud, instance)
    instance.run(_WRITE.format(size=size), timeout=180)
    return instance, data_sum(instance, size)


def data_sum(instance: guest.Guest, size: int = _SIZE) -> str:
    """Return the checksum of the data, which the guest reads."""
    return instance.run(_SUM.format(size=size), timeout=120).split()[0]


def judge(run: scenario.Run, instance: guest.Guest,
          before: Mapping[str, disks.Snapshot], data: str,
          expected: scenario.Leaves | None = None) -> None:
    """Check the remains of a migration, and the next migration.

    :param before: from `remains.references`
    :param data: from `boot`
    :param expected: default: that of the run
    """
    if expected is None:
        assert isinstance(run.expected, scenario.Leaves)
        expected = run.expected
    wait_for_state(run, instance, expected)
    run.progress('remains')
    found = remains.look(run.cloud, instance, before)
    check_records(run, found, expected)
    holds = check_rules(run, found, expected)
    if expected.reason:
        check_reason(run, instance, expected.reason)
    if holds and not expected.harm and not expected.allowed:
        go_on(run, instance, data)


def wait_for_state(run: scenario.Run, instance: guest.Guest,
                   expected: scenario.Leaves) -> None:
    """Wait for the expected state; the checks report if it has not come.

    If a record or task is expected to have no end, wait for its end in vain.
    """
    def reached() -> bool:
        record, task = instance.last_record().status, instance.task_state
        lasting = {'record': record not in remains.FINAL, 'task': bool(task)}
        endless = [lasts for name, lasts in lasting.items()
                   if name in expected.harm]
        if endless:
            return not any(endless)
        return (instance.vm_state in expected.vm_state
                and expected.host in (None, instance.host)
                and record in expected.record and not task)
    with contextlib.suppress(process.LabError):
        process.wait_for('the expected state', reached, timeout=LATER,
                         poll=1)


def check_records(run: scenario.Run, found: remains.Remains,
                  expected: scenario.Leaves) -> None:
    """Check Nova's records of the instance and the migration."""
    run.check_in('state of the instance', found.vm_state, expected.vm_state)
    if 'record' in expected.allowed:
        run.check('recorded: migration record', True, found.record)
    else:
        run.check_in('migration record', found.record, expected.record)
    if expected.host:
        run.check_equal('host of the instance', found.host, expected.host)


def check_rules(run: scenario.Run, found: remains.Remains,
                expected: scenario.Leaves) -> bool:
    """Check all rules; return whether they hold."""
    breaches = {}
    for name, rule in remains.RULES.items():
        breach = rule.breach(found)
        if breach:
            breaches[name] = breach
        if name in expected.harm:
            run.check(f'not so: {rule.text}', breach, breach)
        elif name not in expected.holds and (
                expected.harm or name in expected.allowed):
            run.check(f'recorded: {rule.text}', True, breach or 'yes')
        else:
            run.check(rule.text, not breach, breach)
    return not breaches


def check_reason(run: scenario.Run, instance: guest.Guest,
                 pattern: str) -> None:
    """Check that an event of the migration has the reason."""
    events = instance.action_events('live-migration')
    lines = [json.dumps(event) for event in events]
    line = next((line for line in lines if re.search(pattern, line)), '')
    run.check(f'an event of the action has /{pattern}/', line,
              line or lines)


def go_on(run: scenario.Run, instance: guest.Guest, data: str) -> None:
    """Check that the guest has its data, and can migrate."""
    if instance.vm_state == 'SHUTOFF':
        run.progress('start')
        instance.start()
    elif instance.vm_state == 'PAUSED':
        instance.unpause()
    instance.wait_reachable()
    boot_id, _ = instance.says(instance.host)
    run.check_equal('boot id of the guest', boot_id, instance.boot_id)
    run.check_equal('data that the guest reads', data_sum(instance), data)
    destination, = set(topology.COMPUTES) - {instance.host}
    run.migrate(instance, destination, 'the next migration',
                expected=scenario.Arrives())
    run.check_equal('data after the next migration', data_sum(instance),
                    data)

