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

"""Move ephemeral and swap disks of a guest that boots with the plugin.

On unmodified Nova all disks of a size share the base of the first one, and the
destination of a migration makes another base below the guest's overlay.
"""

from __future__ import annotations

from typing import Any

from lab import guest
from lab import scenario
from lab.scenarios import ephemeral
from lab import topology

# The filesystem of each disk, by its device in the guest; all have one size.
KINDS = {'vdb': 'xfs', 'vdc': 'ext4'}
SWAP, SWAP_DEVICE = 64, 'vdd'
_NAMES = ('disk.eph0', 'disk.eph1', 'disk.swap')

_SWAP_ON = f'swapon /dev/{SWAP_DEVICE} && grep -q {SWAP_DEVICE} /proc/swaps'
_USED = f'grep -q {SWAP_DEVICE} /proc/swaps'


class EphemeralNew(scenario.Scenario):
    name = 'ephemeral-new'
    title = ('XFS, ext4 and swap made by the plugin: there and back, suspend, '
             'hard reboot, cold migration; no base is left.')
    expected = {
        scenario.NEITHER: {0: ephemeral.LABEL_TOO_LONG,
                           30: ephemeral.DAMAGES},
        scenario.BOTH: scenario.Arrives(text='arrives, disks kept'),
    }

    def run(self, run: scenario.Run) -> None:
        run.configure()
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        ephemeral.forget_bases(run)
        wanted: dict[str, Any] = {
            'ephemerals': [guest.Ephemeral(1, kind)
                           for kind in KINDS.values()],
            'swap': SWAP}
        with run.guest(**wanted) as other:
            others = self.identities(run, other)
        instance = run.boot(**wanted)
        self.before = self.identities(run, instance)
        self.check_own(run, others)
        # Unmodified Nova makes the first disk's filesystem for all of them.
        devices = dict(KINDS) if run.protected else {'vdb': KINDS['vdb']}
        for device, kind in devices.items():
            ephemeral.write(instance, kind, device, device)
        instance.run(_SWAP_ON)
        ephemeral.forget_bases(run)
        if not run.migrate(instance):
            return
        failures = [ephemeral.use(instance, kind, device, device)
                    for device, kind in devices.items()]
        run.check_kept('written disks can be used', not any(failures),
                       failures)
        if run.protected:
            self.go_on(run, instance)

    def check_own(self, run: scenario.Run,
                  others: list[dict[str, str]]) -> None:
        """Check that each disk is as requested, with a UUID of its own."""
        found = [(disk.get('TYPE'), disk.get('LABEL'))
                 for disk in self.before]
        run.check_kept('types and labels as requested', found == [
            *((kind, f'ephemeral{number}')
              for number, kind in enumerate(KINDS.values())),
            ('swap', None)], found)
        uuids = [disk.get('UUID') for disk in (*self.before, *others)]
        run.check_kept('no two disks of two guests have one UUID',
                       len(set(uuids)) == len(uuids), uuids)

    def go_on(self, run: scenario.Run, instance: guest.Guest) -> None:
        """Check all other operations, without any base in the image cache."""
        self.check(run, instance, 'live migration', boots=False)
        for title, action, boots in (
                ('and back', lambda: run.migrate(
                    instance, scenario.SOURCE), False),
                ('suspend, resume and hard reboot', lambda: self.suspend(
                    run, instance), True),
                ('cold migration', lambda: self.migrate_cold(instance),
                 True)):
            run.progress(title)
            ephemeral.forget_bases(run)
            action()
            self.check(run, instance, title, boots)
        run.check_equal('host of the instance', instance.host,
                        scenario.DESTINATION)

    @staticmethod
    def suspend(run: scenario.Run, instance: guest.Guest) -> None:
        """Suspend and resume; the guest answers after a hard reboot only."""
        instance.suspend()
        instance.resume()
        boot_id, _ = instance.says(instance.host)
        run.check_equal('boot id of the guest', boot_id, instance.boot_id)
        instance.hard_reboot()

    def migrate_cold(self, instance: guest.Guest) -> None:
        """Migrate cold; Nova makes a new swap disk on the destination."""
        instance.cold_migrate()
        del self.before[-1]['UUID']

    def check(self, run: scenario.Run, instance: guest.Guest, title: str,
              boots: bool) -> None:
        """Check all disks, in the guest and from the host."""
        made = [base.name for host in topology.COMPUTES
                for base in ephemeral.bases(run, host)]
        run.check(f'{title}: no base', not made, made)
        ephemeral.check_complete(run, instance, _NAMES)
        for device, kind in KINDS.items():
            failure = ephemeral.verify(instance, kind, device, device)
            run.check(f'{title}: files on {device}', not failure, failure)
        run.check(f'{title}: swap', instance.succeeds(
            _SWAP_ON if boots else _USED))
        found = [{key: value for key, value in disk.items() if key in was}
                 for disk, was in zip(self.identities(run, instance),
                                      self.before)]
        run.check_equal(f'{title}: types, labels and UUIDs', found,
                        self.before)
        for name in ephemeral.names(instance):
            faults = run.snapshot(instance, name).faults()
            run.check(f'{title}: {name} has no faults', not faults, faults)

    @staticmethod
    def identities(run: scenario.Run,
                   instance: guest.Guest) -> list[dict[str, str]]:
        return [run.snapshot(instance, name).identity() for name in _NAMES]
