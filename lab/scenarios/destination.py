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


"""Migrate to a destination that lacks something that the guest needs.

``preflight --dest`` predicts each failure: libvirt of the destination shows
what it has. The destination's QEMU is a real one, without a machine type or
CPU feature; its libvirt has no secret, and no emulator at the guest's path.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import pathlib
import re
import signal
from typing import Any
import uuid

from lxml import etree

from lab import guest
from lab import host
from lab import scenario
from lab.scenarios import predicted
from lab import secret
from lab import status
from lab import topology

# Of the guests' CPU model, qemu64, in libvirt and in QEMU.
_FEATURE = 'cx16'

# The destination lacks something during the context, which yields its name.
Lacking = Callable[[scenario.Run, guest.Guest],
                   contextlib.AbstractContextManager[str]]


def _in_xml(instance: guest.Guest, path: str) -> str:
    """Return a text in the XML of a guest on the source."""
    xml = etree.fromstring(instance.live_xml(scenario.SOURCE))
    return str(xml.xpath(f'string({path})'))


@contextlib.contextmanager
def _without_machine(run: scenario.Run,
                     instance: guest.Guest) -> Iterator[str]:
    name = _in_xml(instance, 'os/type/@machine')
    libvirt = run.cloud.libvirt[scenario.DESTINATION]
    with libvirt.other_qemu(libvirt.tools.qemu.without_machine(name)):
        yield name


@contextlib.contextmanager
def _without_feature(run: scenario.Run,
                     instance: guest.Guest) -> Iterator[str]:
    libvirt = run.cloud.libvirt[scenario.DESTINATION]
    with libvirt.other_qemu(libvirt.tools.qemu.without_feature(_FEATURE)):
        yield _FEATURE


@contextlib.contextmanager
def _without_secret(run: scenario.Run,
                    instance: guest.Guest) -> Iterator[str]:
    """Give the guest an encrypted disk, on storage that the hosts share."""
    source, destination = (run.cloud.hosts[name]
                           for name in topology.COMPUTES)
    name = str(uuid.uuid4())
    disk = run.cloud.directories.run / f'luks-{name}'
    # The guest needs both until its end.
    run.addCleanup(disk.unlink, missing_ok=True)
    _define_secret(run, source, name)
    secret.attach_disk(source, instance.domain, name, disk)
    yield name
    _define_secret(run, destination, name)


def _define_secret(run: scenario.Run, on: host.Host, name: str) -> None:
    secret.define(on, name)
    run.addCleanup(secret.undefine, on, name)


@contextlib.contextmanager
def _without_emulator(run: scenario.Run,
                      instance: guest.Guest) -> Iterator[str]:
    yield _in_xml(instance, 'devices/emulator')
    run.cloud.libvirt[scenario.DESTINATION].add_emulator()


@contextlib.contextmanager
def _own_emulator(run: scenario.Run) -> Iterator[None]:
    """Let libvirt of the source start guests with an emulator of its own.

    It is at another path than that of the destination, as QEMU of two
    distributions may be.
    """
    try:
        _search_emulators(
            run, run.cloud.libvirt[scenario.SOURCE].add_emulator())
        yield
    finally:
        _search_emulators(run, None)
        for name in topology.COMPUTES:
            run.cloud.libvirt[name].remove_emulator()


def _search_emulators(run: scenario.Run,
                      directory: pathlib.Path | None) -> None:
    service = run.cloud.compute[scenario.SOURCE]
    service.end(signal.SIGKILL)
    run.cloud.libvirt[scenario.SOURCE].search_emulators(directory)
    service.restart()


@dataclasses.dataclass(frozen=True)
class Lack:
    """A thing that a guest needs, and the destination lacks.

    :param lacking: begins when the guest runs; the end is the repair
    :param finding: kind of the finding of ``preflight``
    :param reason: pattern of the reason why the migration fails; ``{thing}``
        is the name of the thing
    :param fault: that ``explain`` names
    :param around: a context for the guest's whole life
    """

    text: str
    lacking: Lacking
    finding: str
    reason: str
    fault: str
    around: Callable[[scenario.Run], contextlib.AbstractContextManager[
        None]] = lambda run: contextlib.nullcontext()


LACKS = (
    Lack('machine type', _without_machine, 'dest-machine',
         "does not support machine type '{thing}'|unsupported machine type",
         'machine-type'),
    Lack('CPU feature', _without_feature, 'dest-cpu',
         "guest CPU doesn't match specification: .*missing features: {thing}",
         'cpu-features'),
    Lack('secret', _without_secret, 'dest-secret',
         "no secret with matching uuid '{thing}'", 'secret-missing'),
    Lack('emulator', _without_emulator, 'dest-emulator',
         'Cannot check QEMU binary {thing}', 'qemu-binary',
         around=_own_emulator),
)


class Destination(predicted.Predicted):
    name = 'destination'
    title = ('preflight --dest predicts, and explain names, that the '
             'destination lacks something.')

    def run(self, run: scenario.Run) -> None:
        run.configure()
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        for lack in LACKS:
            # One CPU: see guest.Guest.
            with lack.around(run), run.guest(cpus=1) as instance:
                self.migrate(run, lack, instance)

    def migrate(self, run: scenario.Run, lack: Lack,
                instance: guest.Guest) -> None:
        with lack.lacking(run, instance) as thing:
            found = self.findings(run, lack, instance)
            run.check(
                f'preflight, {lack.text}: {lack.finding} of {thing}',
                any(row['result'] == status.FAILURE
                    and thing in f'{row["running"]} {row["computed"]}'
                    for row in found), found)
            predicted.migrate_in_vain(
                run, instance, lack.text,
                lack.reason.format(thing=re.escape(thing)), lack.fault)
        found = self.findings(run, lack, instance)
        run.check(f'preflight, {lack.text} repaired: no {lack.finding}',
                  not found, found)
        run.migrate(instance, title=f'{lack.text} repaired',
                    expected=scenario.Arrives())

    @staticmethod
    def findings(run: scenario.Run, lack: Lack,
                 instance: guest.Guest) -> list[dict[str, Any]]:
        """Return the findings of this kind about the guest."""
        run.progress(f'preflight, {lack.text}')
        return [row for row in status.findings(
            run.cloud, scenario.SOURCE, scenario.DESTINATION, instance.id)
            if row['finding'] == lack.finding]
