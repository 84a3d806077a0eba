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

"""nova-compute is killed in a cold migration, its confirmation or reversion.

The guest is off meanwhile. The outcome is recorded: unmodified Nova leaves the
instance with a task or in ERROR, but its disks have to be intact on a host. An
administrator resets the state then, reboots the guest hard, and it has its
data. The plugin changes none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import pathlib
from typing import Any

from lab import faults
from lab import guest
from lab import process
from lab import remains
from lab import scenario
from lab.scenarios import faulted
from lab import topology

_SOURCE_DIES = faults.compute_killed(scenario.SOURCE)
_DESTINATION_DIES = faults.compute_killed(scenario.DESTINATION)

_MIGRATE = {'migrate': None}
_CONFIRM = {'confirmResize': None}
_REVERT = {'revertResize': None}

# Seconds in which Nova goes on by itself after nova-compute has started.
_PATIENCE = 90

_SURVIVES = scenario.Leaves(
    text='recorded; the guest has its data after a hard reboot')


def _renamed(directory: pathlib.Path) -> pathlib.Path:
    return directory.with_name(f'{directory.name}_resize')


def _is_copied(scene: faults.Scene) -> bool:
    return (_renamed(scene.instance.files(scene.source)).exists()
            and (scene.instance.files(scene.destination) / 'disk').exists())


COPY = faults.Moment('the disks are copied', _is_copied, poll=0.02)


def _record(status: str) -> faults.Moment:
    """Return a status of the record that the last action has not made."""
    return faults.Moment(f'the migration is {status}', lambda scene:
                         scene.instance.last_record().status == status,
                         poll=0.02)


def _task(name: str) -> faults.Moment:
    return faults.Moment(f'the task is {name}', lambda scene:
                         scene.instance.task_state == name)


class Cold(scenario.Scenario):
    """A fault hits the last of several actions on a guest."""

    variants = faulted.Faulted.variants
    options = faulted.Faulted.options

    def __init__(self, name: str, title: str, accident: faults.Accident,
                 *actions: dict[str, Any], fresh: bool = False) -> None:
        """Describe a row of the table.

        :param actions: requests; the fault hits the last one
        :param fresh: the destination has to download the guest's image
        """
        self.name = name
        self.title = title
        self.accident = accident
        self.actions = actions
        self.fresh = fresh
        self.expected = {scenario.NEITHER: _SURVIVES,
                         scenario.BOTH: _SURVIVES}

    def run(self, run: scenario.Run) -> None:
        run.configure()
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        instance, data = faulted.boot(
            run, image=faulted.fresh_image(run) if self.fresh else None)
        before = remains.references(run.cloud, instance, run)
        for action in self.actions[:-1]:
            run.progress(next(iter(action)))
            instance.act(action, 'VERIFY_RESIZE')
        scene = faults.Scene.of(run.cloud, instance, scenario.DESTINATION)
        run.progress(self.accident.text)
        instance.request(self.actions[-1])
        self.accident.happen(scene)
        self.wait(instance)
        found = remains.look(run.cloud, instance, before)
        run.check(f'recorded: {self.accident.text}', True,
                  f'{found.vm_state} on {found.host}, task '
                  f'{found.task_state}, record {found.record}; directories '
                  f'{directories(instance)}; resources on '
                  f'{found.allocations}, of the migration on {found.moving}')
        # The destination may lack a backing file until the repair.
        disks = remains.RULES['disks']
        run.check(f'recorded: {disks.text}', True,
                  disks.breach(found) or 'yes')
        # The source keeps the domain until the confirmation, shut off.
        running = running_on(instance)
        run.check('one host at most runs the guest', len(running) < 2,
                  running)
        self.repair(run, instance)
        run.check_equal('data that the guest reads',
                        faulted.data_sum(instance), data)
        run.progress('the next cold migration')
        instance.cold_migrate()
        run.check_equal('data after the next cold migration',
                        faulted.data_sum(instance), data)

    @staticmethod
    def wait(instance: guest.Guest) -> None:
        """Wait until Nova has no task for the guest, or does not go on."""
        with contextlib.suppress(process.LabError):
            process.wait_for('the end of the task', lambda: not (
                instance.task_state or instance.vm_state == 'RESIZE'),
                timeout=_PATIENCE, poll=1)

    @staticmethod
    def repair(run: scenario.Run, instance: guest.Guest) -> None:
        """Do what an administrator does, if anything."""
        run.progress('repair')
        if instance.vm_state == 'VERIFY_RESIZE':
            instance.act(_CONFIRM, 'ACTIVE')
        if instance.task_state or instance.vm_state != 'ACTIVE':
            instance.reset_state()
            instance.hard_reboot()
        elif not running_on(instance):
            # Nova takes it for a guest that its owner has switched off.
            instance.hard_reboot()
        instance.wait_reachable()


def running_on(instance: guest.Guest) -> list[str]:
    """Return the names of the hosts on which the guest runs."""
    return [host for host in topology.COMPUTES
            if instance.domain_state(host).startswith('running')]


def directories(instance: guest.Guest) -> Sequence[str]:
    """Return the guest's directories, as host and name."""
    return [f'{host}: {path.name.replace(instance.id, "UUID")}'
            for host in topology.COMPUTES
            for path in (instance.files(host), _renamed(instance.files(host)))
            if path.exists()]


SCENARIOS = (
    Cold('cold-source-copy',
         'nova-compute of the source is killed while it copies the disks.',
         faults.Accident(_SOURCE_DIES, COPY, faults.elapsed(10)), _MIGRATE),
    Cold('cold-destination-finishing',
         'nova-compute of the destination is killed while it prepares.',
         faults.Accident(faults.frozen('glance'), faults.NOW, inner=(
             faults.Accident(_DESTINATION_DIES, _task('resize_finish'),
                             faults.elapsed(10)))), _MIGRATE, fresh=True),
    Cold('cold-source-confirming',
         'nova-compute of the source is killed in the confirmation.',
         faults.Accident(_SOURCE_DIES, _record('confirming'),
                         faults.elapsed(10)),
         _MIGRATE, _CONFIRM),
    Cold('cold-destination-reverting',
         'nova-compute of the destination is killed in the reversion.',
         faults.Accident(_DESTINATION_DIES, _record('reverting'),
                         faults.elapsed(10)),
         _MIGRATE, _REVERT),
    Cold('cold-source-reverting',
         'nova-compute of the source is killed in the reversion.',
         faults.Accident(_SOURCE_DIES, _record('reverting'),
                         faults.elapsed(10)),
         _MIGRATE, _REVERT),
)
