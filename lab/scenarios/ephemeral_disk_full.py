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
"""Leave no space for the base of an ephemeral disk on the destination.

Unmodified Nova does not fetch it, so there is no run to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib

from lab import configuration
from lab import evidence
from lab import process
from lab import scenario
from lab.scenarios import ephemeral
from lab import users

_SIZE = ephemeral.HEAVY // 2


class EphemeralDiskFull(ephemeral.OldDisks):
    name = 'ephemeral-disk-full'
    title = 'No space on the destination for the base of a disk.'
    expected = {scenario.BOTH: scenario.Fails(
        said=(ephemeral.not_fetched('No space left on device'), scenario.Said(
            scenario.SOURCE, 'nova-compute', 'Live Migration failure: .*')),
        text='fails, guest goes on')}

    def run(self, run: scenario.Run) -> None:
        instance = ephemeral.boot_on_heavy_base(run)
        wait_for_report(run, scenario.DESTINATION)
        with small_file_system(run, scenario.DESTINATION):
            run.migrate(instance, title='no space')
            ephemeral.check_nothing_left(run, instance)
        run.cloud.wait_for_space(scenario.DESTINATION)
        # The disk is already complete: the source has completed it.
        ephemeral.check_next_migration(run, instance, scenario.Arrives())


def wait_for_report(run: scenario.Run, name: str) -> None:
    """Wait for a host's report of its space, which is due each minute.

    A later report would have the small file system, and Nova itself would
    refuse the migration.
    """
    log = evidence.Marked(name, run.cloud.compute[name].log)
    process.wait_for('the report of resources', lambda: log.find(
        f'Compute_service record updated for {name}'), log=log.path)


@contextlib.contextmanager
def small_file_system(run: scenario.Run, name: str) -> Iterator[None]:
    """Leave a host almost no space for the files of guests."""
    host = run.cloud.hosts[name]
    place = configuration.instances(host.own)
    options = f'size={_SIZE},mode=755,uid={users.NOVA},gid={users.NOVA}'
    host.run('mount', '-t', 'tmpfs', '-o', options, 'tmpfs', place)
    try:
        yield
    finally:
        host.run('umount', '--lazy', place)
