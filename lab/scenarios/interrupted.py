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

"""Networks are cut and operators interfere during a live migration."""

from __future__ import annotations

import contextlib
import pathlib

from lab import faults
from lab import guest
from lab import process
from lab import scenario
from lab.scenarios import faulted
from lab import topology

POST_COPY = ('libvirt', 'live_migration_permit_post_copy')

# Seconds, longer than libvirt waits for a peer that does not answer.
_LONG = 60

_HERE = scenario.Leaves(
    text='guest goes on on the source', host=scenario.SOURCE,
    record=('failed', 'cancelled'))
_THERE = scenario.Leaves(
    text='arrives', host=scenario.DESTINATION, record=('completed',))

_USERFAULTFD = pathlib.Path('/proc/sys/vm/unprivileged_userfaultfd')


class PostCopyCut(faulted.Faulted):
    name = 'cut-post-copy'
    title = 'The migration network is cut while a guest is copied post-copy.'
    options = {**faulted.Faulted.options, POST_COPY: True}
    accident = faults.Accident(
        faults.FORCED, faults.MEMORY, inner=faults.Accident(
            faults.slowed(1), faults.NOW, inner=faults.Accident(
                faults.cut(topology.MIGRATION, scenario.DESTINATION),
                faults.POSTCOPY, faults.elapsed(_LONG))))
    expected = {
        # QEMU may go on by itself: see doc/source/fixes/post_copy.rst.
        scenario.NEITHER: faulted.RECORDED,
        scenario.BOTH: scenario.Leaves(
            text='arrives when the network is back',
            host=scenario.DESTINATION, record=('completed',)),
    }

    def impossible(self, major: int) -> str:
        if _USERFAULTFD.exists() and _USERFAULTFD.read_text().strip() == '0':
            return 'vm.unprivileged_userfaultfd is 0'
        return ''


class Deleted(faulted.Faulted):
    name = 'deleted'
    title = 'The server is deleted while memory is copied.'
    expected = {
        scenario.NEITHER: scenario.Leaves(text='result recorded'),
        scenario.BOTH: scenario.Leaves(text='nothing is left'),
    }

    def run(self, run: scenario.Run) -> None:
        run.configure()
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        instance, _ = faulted.boot(run)
        domain = instance.domain
        scene = faults.Scene.of(run.cloud, instance, scenario.DESTINATION)
        run.progress('delete')
        instance.request_migration(scenario.DESTINATION)
        faults.Accident(faults.DELETED, faults.MEMORY).happen(scene)
        process.wait_for('the guest to be deleted', instance.gone)
        self.check(run, instance, domain)

    @staticmethod
    def check(run: scenario.Run, instance: guest.Guest, domain: str) -> None:
        """Check that no host has anything of the guest."""
        def left() -> dict[str, list[str]]:
            found = {}
            for name in topology.COMPUTES:
                there = [what for what, exists in (
                    ('domain', run.cloud.libvirt[name].state(domain)),
                    ('files', instance.files(name).exists())) if exists]
                if there:
                    found[name] = there
            allocations = run.cloud.allocations(instance.id)
            if allocations:
                found['placement'] = allocations
            return found
        with contextlib.suppress(process.LabError):
            process.wait_for('nothing to be left', lambda: not left(),
                             timeout=faulted.LATER, poll=2)
        found = left()
        if run.protected:
            run.check('nothing is left', not found, found)
        else:
            run.check('recorded: what is left', True, found or 'nothing')


SCENARIOS = (
    faulted.Accidental(
        'cut-migration',
        'The migration network is cut while memory is copied.',
        faults.Accident(
            faults.cut(topology.MIGRATION, scenario.DESTINATION),
            faults.MEMORY, faults.elapsed(_LONG)),
        faulted.RECORDED, _HERE),
    faulted.Accidental(
        'cut-management',
        'The management network of the source is cut while memory is copied.',
        faults.Accident(
            faults.cut(topology.MANAGEMENT, scenario.SOURCE),
            faults.MEMORY, faults.elapsed(_LONG)),
        faulted.RECORDED, _THERE),
    Deleted(),
    faulted.Accidental(
        'aborted-late', 'An operator aborts a migration that has arrived.',
        faults.Accident(faults.ABORTED, faults.SWITCH_OVER),
        faulted.RECORDED, _THERE),
    faulted.Accidental(
        'forced-late',
        'An operator forces the completion of a migration that has arrived.',
        faults.Accident(faults.FORCED, faults.SWITCH_OVER),
        faulted.RECORDED, _THERE),
    PostCopyCut(),
)
