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

"""Migrate a guest that writes to its memory over QEMU's native TLS.

Guests of the lab are small, so a modified copy of the machine's GnuTLS changes
keys every 32 MiB of pages instead of every 32 GiB. The second change kills
QEMU on the source, and the guest with it. A TLS policy on the destination
prevents that; the plugin can only warn.

Nova polls the migration job of libvirt twice a second. If the guest is gone
before libvirt reports the reason, Nova takes the migration for completed and
deletes the guest's disks on the source.
"""

from __future__ import annotations

import shutil
import tempfile

from lab import credentials
from lab import emulator
from lab import evidence
from lab import guest
from lab import scenario
from lab import topology
from nova_migfix.tests import eager_gnutls
from nova_migfix.tls import files
from nova_migfix.tls import policy

# MiB/s: one change of keys in a second; GnuTLS accepts no more than eight.
LIMIT = 32
COUNTED = (1 << 14) - 1

# Write 96 MiB that are not zero, for three changes of keys; then rewrite 4 MiB
# in a loop.
WRITES = '''
mkdir /memory && mount -t tmpfs -o size=112m memory /memory || exit
dd if=/dev/urandom of=/memory/file bs=1M count=96 2>/dev/null || exit
while sleep 1; do
    dd if=/dev/urandom of=/memory/file bs=1M count=4 conv=notrunc
done >/dev/null 2>&1 &
'''


class TlsRekey(scenario.Scenario):
    name = 'tls-rekey'
    title = 'Over TLS 1.3 keys change twice while memory is copied.'
    expected = {
        scenario.NEITHER: scenario.Fails(
            said=(
                scenario.Said(scenario.SOURCE, 'qemu', 'reason=crashed'),
                scenario.Said(scenario.SOURCE, 'nova-compute',
                              'Live Migration failure: .*'),
            ), vm_state=scenario.ERROR_SINCE_32, survives=False,
            text='kills the guest'),
        # with a TLS policy on the destination
        scenario.BOTH: scenario.Arrives(
            said=(scenario.Said(scenario.SOURCE, 'nova-compute',
                                "dest_capabilities={.*tls='safe'",
                                patched_since=None),)),
    }

    def impossible(self, major: int) -> str:
        with tempfile.TemporaryDirectory() as directory:
            try:
                eager_gnutls.make(emulator.QEMU, directory, COUNTED)
            except eager_gnutls.CannotBeMade as error:
                return str(error)
        return ''

    def run(self, run: scenario.Run) -> None:
        credentials.give(run.cloud)
        for host in topology.COMPUTES:
            self.give_library(run, host)
        if run.fixed:
            self.give_policy(run, scenario.DESTINATION)
        run.configure(both={credentials.NATIVE_TLS: True},
                      source={scenario.BANDWIDTH: LIMIT})
        guest = run.boot()
        guest.run(WRITES, timeout=120)
        log = evidence.Marked(scenario.SOURCE,
                              run.cloud.compute[scenario.SOURCE].log)
        arrived = run.migrate(guest)
        warned = log.find('live migration over TLS')
        run.check('no warning: the guest is small', not warned, warned)
        if not arrived:
            self.record(run, guest)

    @staticmethod
    def record(run: scenario.Run, guest: guest.Guest) -> None:
        """Record the remains, which depend on the time of Nova's poll."""
        left = [host for host in topology.COMPUTES
                if guest.files(host).exists()]
        run.check('recorded: host of the instance', True, guest.host)
        run.check('recorded: hosts with files of it', True, left)

    @staticmethod
    def give_library(run: scenario.Run, host: str) -> None:
        place = run.cloud.libvirt[host].gnutls
        place.mkdir()
        run.addCleanup(shutil.rmtree, place)
        eager_gnutls.make(emulator.QEMU, place, COUNTED)

    @staticmethod
    def give_policy(run: scenario.Run, host: str) -> None:
        files.write(
            run.cloud.libvirt[host].gnutls / 'config', policy.merge(
                policy.FAMILIES['debian'], policy.TLS12, ''), force=False)
