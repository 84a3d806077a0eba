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

"""Abort the source's block pull for an unmodified destination.

libvirt then reports only that there is no job, as after a successful pull.
Unmodified Nova pulls nothing, so there is no run to compare with.
"""

from __future__ import annotations

from lab import guest
from lab import process
from lab import scenario
from lab.scenarios import ephemeral
from lab import topology

# Bytes of data, enough to abort the pull before it ends.
_SIZE = 200 << 20


class EphemeralPullAborted(ephemeral.OldDisks):
    name = 'ephemeral-pull-aborted'
    title = 'A block pull on the source is aborted; the next is not.'
    expected = {scenario.SOURCE_ONLY: scenario.Fails(said=(scenario.Said(
        scenario.SOURCE, 'nova-compute',
        'the block pull ended before (it|the disk) was complete',
        patched_since=None),),
        text='fails, guest goes on')}

    def run(self, run: scenario.Run) -> None:
        run.configure(both={scenario.EPHEMERAL_FORMAT: 'xfs'})
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        ephemeral.cache_heavy_base(run, _SIZE)
        instance = run.boot(ephemerals=ephemeral.ONE_GB)
        ephemeral.write(instance, 'xfs')
        run.migrate(instance, title='aborted',
                    during=lambda: self.abort(run, instance))
        failure = ephemeral.use(instance, 'xfs')
        run.check('guest can use the disk', not failure, failure)
        run.migrate(instance, title='the next migration',
                    expected=scenario.Arrives())
        failure = ephemeral.verify(instance, 'xfs')
        run.check('guest has its files', not failure, failure)

    @staticmethod
    def abort(run: scenario.Run, instance: guest.Guest) -> None:
        host = run.cloud.hosts[scenario.SOURCE]
        process.wait_for('a block pull', lambda: host.succeeds(
            'virsh', 'blockjob', instance.domain, 'vdb', '--abort'), poll=0)
