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
"""Let mkfs fail once for the base of an ephemeral disk.

Nova leaves the empty file in the image cache as the base, and all later guests
get a blank disk.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib

from lab import host
from lab import process
from lab import scenario
from lab.scenarios import ephemeral


class EphemeralMkfsFails(ephemeral.OldDisks):
    name = 'ephemeral-mkfs-fails'
    title = 'mkfs fails for one guest; the next one gets the requested disk.'
    expected = {
        scenario.NEITHER: scenario.Arrives(text='next guest has a blank disk'),
        scenario.BOTH: scenario.Arrives(text='next guest has its disk'),
    }

    def run(self, run: scenario.Run) -> None:
        run.configure(both={scenario.EPHEMERAL_FORMAT: 'xfs'})
        ephemeral.forget_bases(run)
        with failing_mkfs(run.cloud.hosts[scenario.SOURCE]):
            error = ephemeral.boot_failure(run)
        run.check('the guest is not started', 'mkfs' in error, error)
        left = [base.name for base in ephemeral.bases(run, scenario.SOURCE)]
        run.check_kept('no base is left in the image cache', not left, left)
        self.check_next_guest(run, 'the next guest')
        self.leave_blank_base(run)
        # the default
        run.configure(both={scenario.EPHEMERAL_FORMAT: 'xfs', **{
            option: False for option in self.options}})
        self.check_next_guest(run, 'with a blank base in the image cache')
        ephemeral.forget_bases(run)

    @staticmethod
    def check_next_guest(run: scenario.Run, title: str) -> None:
        with run.guest(ephemerals=ephemeral.ONE_GB) as instance:
            found = run.snapshot(instance, 'disk.eph0').identity()
        run.check_kept(f'{title}: the disk has a filesystem', (
            found.get('TYPE'), found.get('LABEL')) == ('xfs', 'ephemeral0'),
            found)

    @staticmethod
    def leave_blank_base(run: scenario.Run) -> None:
        """Put a blank base into the image cache, as an earlier Nova does."""
        base, = ephemeral.bases(run, scenario.SOURCE)
        size = base.stat().st_size
        base.unlink()
        process.run(['qemu-img', 'create', '-f', 'raw', base, size])
        host.Host.give_to_nova(base)


@contextlib.contextmanager
def failing_mkfs(on: host.Host) -> Iterator[None]:
    """Make mkfs fail on one host during the context."""
    on.run('mount', '--bind', '/bin/false', '/usr/sbin/mkfs')
    try:
        yield
    finally:
        on.run('umount', '/usr/sbin/mkfs')
