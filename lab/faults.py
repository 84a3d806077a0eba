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

"""Faults that hit a live migration, and the moments at which they do.

A `Fault` begins and ends; a `Moment` is read from libvirt, from Nova's
records or from its log, and each wait for one has a limit. An `Accident` is a
fault that begins at one moment and ends at another one. `Scene` is a guest and
the two hosts of its migration: the moments and faults refer to these by role.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import signal
import time
from typing import Any

from openstack import exceptions

from lab import cloud
from lab import evidence
from lab import fabric
from lab import guest
from lab import host
from lab import process
from lab import topology

# The field of a Scene hides the module.
Cloud = cloud.Cloud

# The roles, as in lab.scenario.
SOURCE, DESTINATION = topology.COMPUTES


@dataclasses.dataclass(frozen=True)
class Scene:
    """A guest and its migration.

    :param previous: the record of an earlier migration, or None
    :param logs: the logs of nova-compute since the request, by role
    """

    cloud: Cloud
    instance: guest.Guest
    hosts: Mapping[str, str]
    previous: Any
    logs: Mapping[str, evidence.Marked]

    @classmethod
    def of(cls, cloud: Cloud, instance: guest.Guest,
           destination: str) -> Scene:
        """Return the scene of a migration that is going to be requested."""
        hosts = {SOURCE: instance.host, DESTINATION: destination}
        return cls(cloud, instance, hosts, instance.last_record(), {
            role: evidence.Marked(name, cloud.compute[name].log)
            for role, name in hosts.items()})

    @property
    def source(self) -> str:
        return self.hosts[SOURCE]

    @property
    def destination(self) -> str:
        return self.hosts[DESTINATION]

    def host(self, role: str) -> host.Host:
        return self.cloud.hosts[self.hosts[role]]

    def record_status(self) -> str:
        """Return the status of the migration record; '' without one."""
        record = self.instance.last_record()
        if not record or self.previous and record.id == self.previous.id:
            return ''
        status: str = record.status
        return status

    def domain_state(self, role: str) -> str:
        return self.instance.domain_state(self.hosts[role])


@dataclasses.dataclass(frozen=True)
class Moment:
    """A state of a migration.

    :param text: completes "when ..."
    :param reached: returns whether a scene is in this state
    :param timeout: seconds to wait for it
    :param poll: seconds between two looks
    """

    text: str
    reached: Callable[[Scene], object]
    timeout: float = 120
    poll: float = 0.1

    def wait(self, scene: Scene) -> None:
        """Wait for the moment.

        :raises LabError: it has not come in time
        """
        process.wait_for(self.text, lambda: self._reached(scene),
                         timeout=self.timeout, poll=self.poll,
                         log=scene.logs[SOURCE].path)

    def _reached(self, scene: Scene) -> object:
        # A service may be down at the moment.
        try:
            return self.reached(scene)
        except (process.LabError, exceptions.SDKException):
            return False


def logged(role: str, pattern: str, text: str, **more: Any) -> Moment:
    """Return the moment at which nova-compute logs *pattern*."""
    return Moment(text, lambda scene: scene.logs[role].find(pattern), **more)


def record(*statuses: str) -> Moment:
    """Return the moment at which the record has one of these statuses."""
    return Moment(f'the migration is {" or ".join(statuses)}',
                  lambda scene: scene.record_status() in statuses)


def elapsed(seconds: float) -> Moment:
    """Return the moment that comes *seconds* after the wait for it begins."""
    begin: list[float] = []

    def over(scene: Scene) -> bool:
        begin.append(time.monotonic())
        if begin[-1] - begin[0] < seconds:
            return False
        begin.clear()
        return True
    return Moment(f'{seconds} s later', over, timeout=seconds + 60)


NOW = Moment('Nova has accepted it', lambda scene: True)
QUEUED = record('queued')
PREPARING = Moment(
    'the destination prepares', lambda scene: scene.instance.files(
        scene.destination).exists())
DISK = Moment('a disk is copied', lambda scene: scene.instance.copied_disk(
    scene.source))
MEMORY = Moment(
    'memory is copied', lambda scene: scene.instance.copied_memory(
        scene.source))
POSTCOPY = Moment(
    'post-copy has begun', lambda scene: 'post-copy' in scene.domain_state(
        SOURCE))
# Of nova-compute: libvirt's part is over, and Nova's follows.
SWITCH_OVER = logged(SOURCE, r'_post_live_migration\(\) is started',
                     'the guest has arrived and Nova follows', poll=0.02)
FINISHING = logged(DESTINATION, 'Post operation of migration started',
                   'Nova finishes on the destination', poll=0.02)
ARRIVED = Moment(
    'the guest has arrived', lambda scene: scene.domain_state(
        DESTINATION).startswith('running')
    and not scene.domain_state(SOURCE).startswith(('running', 'paused')),
    timeout=240)
OFF = Moment(
    'the guest is off', lambda scene: not scene.domain_state(
        SOURCE).startswith(('running', 'paused')), timeout=60)
OFF_IN_QUEUE = Moment(
    'the guest is off and its migration waits', lambda scene: OFF.reached(
        scene) and QUEUED.reached(scene), timeout=30)
ENDED = record('completed', 'failed', 'error', 'cancelled')


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault, and the repair of it.

    :param text: for the report
    :param end: restores the former state; not called if *begin* fails
    """

    text: str
    begin: Callable[[Scene], object]
    end: Callable[[Scene], object] = lambda scene: None


def _killed(scene: Scene) -> None:
    scene.instance.kill_qemu(scene.source)


def _powered_off(scene: Scene) -> None:
    # The guest is off before it can answer.
    with contextlib.suppress(process.LabError):
        scene.instance.run('poweroff -f', timeout=5)


def _destroyed(scene: Scene) -> None:
    scene.host(SOURCE).run('virsh', 'destroy', scene.instance.domain)


def slowed(limit: int) -> Fault:
    """Return the slowdown of the copy.

    :param limit: in MiB/s; libvirt applies it to memory
    """
    return Fault(f'the copy is slowed down to {limit} MiB/s', lambda scene:
                 scene.host(SOURCE).run('virsh', 'migrate-setspeed',
                                        scene.instance.domain, limit))


KILLED = Fault("the guest's QEMU is killed", _killed)
OFF_INSIDE = Fault('the guest is switched off from inside', _powered_off)
DESTROYED = Fault('an operator destroys the domain', _destroyed)
DELETED = Fault('the server is deleted', lambda scene:
                scene.cloud.api.compute.delete_server(scene.instance.id))


def compute_killed(role: str, number: int = signal.SIGKILL) -> Fault:
    """Return the end of nova-compute by a signal; it starts again later."""
    def service(scene: Scene) -> Any:
        return scene.cloud.compute[scene.hosts[role]]
    name = signal.Signals(number).name
    return Fault(f'nova-compute of the {_NAMES[role]} gets {name}',
                 lambda scene: service(scene).end(number),
                 lambda scene: service(scene).restart())


def libvirtd_restarted(role: str) -> Fault:
    return Fault(
        f'libvirtd of the {_NAMES[role]} is restarted', lambda scene:
        scene.cloud.libvirt[scene.hosts[role]].restart())


def frozen(name: str) -> Fault:
    """Return the stop of a daemon of the controller, which goes on later."""
    def send(scene: Scene, number: int) -> None:
        scene.cloud.controller.daemons[name].send(number)
    return Fault(f'{name} stands still',
                 lambda scene: send(scene, signal.SIGSTOP),
                 lambda scene: send(scene, signal.SIGCONT))


def down(name: str) -> Fault:
    """Return the death of a daemon of the controller; its end is the start."""
    def daemon(scene: Scene) -> process.Daemon:
        return scene.cloud.controller.daemons[name]
    return Fault(f'{name} is down', lambda scene: daemon(scene).stop(),
                 lambda scene: daemon(scene).start())


def cut(network: topology.Network, role: str) -> Fault:
    """Return the loss of all packets between a host and a network."""
    def link(scene: Scene) -> fabric.Link:
        return fabric.Link(scene.cloud.controller, network,
                           scene.hosts[role])
    return Fault(f'the {network.name} network of the {_NAMES[role]} is cut',
                 lambda scene: link(scene).cut(),
                 lambda scene: link(scene).restore())


def _migration_url(scene: Scene) -> str:
    record = scene.instance.last_record()
    return f'/servers/{scene.instance.id}/migrations/{record.id}'


def _abort(scene: Scene) -> None:
    scene.cloud.api.compute.delete(_migration_url(scene),
                                   microversion='2.90')


def _force_complete(scene: Scene) -> None:
    scene.cloud.api.compute.post(
        f'{_migration_url(scene)}/action', microversion='2.90',
        json={'force_complete': None})


# Nova may refuse both; the migration's end is judged, not the answer.
ABORTED = Fault('an operator aborts the migration', _abort)
FORCED = Fault('an operator forces the migration to complete',
               _force_complete)

_NAMES = {SOURCE: 'source', DESTINATION: 'destination'}


@dataclasses.dataclass(frozen=True)
class Accident:
    """A fault from one moment to another one.

    :param inner: another accident, which happens after the first moment and
        ends before the wait for the other one
    """

    fault: Fault
    moment: Moment
    until: Moment = NOW
    inner: Accident | None = None

    @property
    def text(self) -> str:
        last = '' if self.until is NOW else f' until {self.until.text}'
        more = f'; {self.inner.text}' if self.inner else ''
        return f'{self.fault.text} when {self.moment.text}{last}{more}'

    def happen(self, scene: Scene) -> None:
        """Wait for the moment, let the fault happen, and repair it."""
        self.moment.wait(scene)
        self.fault.begin(scene)
        try:
            if self.inner:
                self.inner.happen(scene)
            self.until.wait(scene)
        finally:
            self.fault.end(scene)
