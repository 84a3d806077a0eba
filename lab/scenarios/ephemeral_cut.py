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
"""Cut the migration network while the destination fetches the base.

Unmodified Nova does not transfer it, so there is no run to compare with.
"""

from __future__ import annotations

from lab import evidence
from lab import fabric
from lab import process
from lab import scenario
from lab.scenarios import ephemeral
from lab import topology

# Slow enough to cut the network during the transfer.
_RATE = '20mbit'

_COMPLETES = r'QEMU completes disk\.eph0'
_COMPLETED = r'disk\.eph0: made complete by (QEMU|a block pull) in [\d.]+ s'

# The base during the transfer, with the plugin and with the patches.
_PLACES = ('migfix-*/*', '*/pull-*/*')


class EphemeralCut(ephemeral.OldDisks):
    name = 'ephemeral-cut'
    title = 'The migration network is cut while the base of a disk is pulled.'
    expected = {scenario.BOTH: scenario.Arrives(
        said=(ephemeral.not_fetched('Unexpected EOF'), scenario.Said(
            scenario.SOURCE, 'nova-compute', _COMPLETED)),
        text='completed on the source, arrives, disk kept')}

    def run(self, run: scenario.Run) -> None:
        instance = ephemeral.boot_on_heavy_base(run)
        link = fabric.Link(run.cloud.controller, topology.MIGRATION,
                           scenario.DESTINATION)
        run.migrate(instance, title='cut in the middle',
                    during=lambda: self.cut(run, link))
        failure = ephemeral.use(instance, 'xfs')
        run.check('guest can use the disk', not failure, failure)
        ephemeral.check_complete(run, instance)

    @staticmethod
    def cut(run: scenario.Run, link: fabric.Link) -> None:
        """Cut the network while it transfers the base, and restore it."""
        instances = run.instances(scenario.DESTINATION)
        log = evidence.Marked(scenario.SOURCE,
                              run.cloud.compute[scenario.SOURCE].log)
        with link.limited(_RATE):
            process.wait_for('the base to be on its way', lambda: any(
                path.stat().st_size > 0 for place in _PLACES
                for path in instances.glob(place)), poll=0.05)
            link.cut()
        process.wait_for('the source to complete the disk itself', lambda:
                         log.find(_COMPLETES), log=log.path)
        link.restore()
