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

"""Migrate a guest whose image is deleted from Glance.

Nova then copies the base image from the source's host name, by ssh or rsync,
over the management network. Here sshd answers on the migration network only,
and then on both.
"""

from __future__ import annotations

import hashlib

from lab import guest
from lab import scenario
from lab import topology


class ImageGone(scenario.Scenario):
    """The scenario for one transport."""

    title = 'The image is gone from Glance; copied from the source by {}.'
    transport: str
    expected = {
        scenario.NEITHER: scenario.Fails(said=(scenario.Said(
            scenario.DESTINATION, 'nova-compute',
            r'ssh: connect to host compute\d port 22: Connection refused'),)),
        scenario.BOTH: scenario.Arrives(said=(scenario.Said(
            scenario.DESTINATION, 'nova-compute',
            r'fetched from .*migration address'),)),
    }

    def run(self, run: scenario.Run) -> None:
        run.configure(both={scenario.TRANSPORT: self.transport})
        migrate_twice(run, boot_without_image(run))


def migrate_twice(run: scenario.Run, guest: guest.Guest) -> None:
    """Migrate with sshd on the migration network, then with it on both.

    A guest that arrives the first time migrates back the second time.
    """
    migrate(run, guest, topology.MIGRATION)
    migrate(run, guest, topology.MANAGEMENT, topology.MIGRATION,
            expected=scenario.Arrives())


def boot_without_image(run: scenario.Run) -> guest.Guest:
    """Boot a guest and delete its image from Glance."""
    image = run.cloud.upload('gone')
    guest = run.boot(image)
    run.cloud.api.image.delete_image(image)
    return guest


def migrate(run: scenario.Run, guest: guest.Guest, *networks: topology.Network,
            expected: scenario.Outcome | None = None) -> None:
    """Migrate to a host without the image, sshd answering on *networks*."""
    source = guest.host
    destination, = set(topology.COMPUTES) - {source}
    guest.base_image(destination).unlink(missing_ok=True)
    run.listen_ssh(*networks)
    names = ' and '.join(network.name for network in networks)
    if run.migrate(guest, destination, expected=expected,
                   title=f'{source} to {destination}, sshd on {names}'):
        check_copied(run, guest, source, destination)
        run.check_wire([topology.MIGRATION if run.fixed
                        else topology.MANAGEMENT])


def check_copied(run: scenario.Run, guest: guest.Guest, source: str,
                 destination: str) -> None:
    """Check that the base image is equal on both hosts."""
    digests = [hashlib.sha256(
        guest.base_image(host).read_bytes()).hexdigest()
        for host in (source, destination)]
    run.check('base image equal on both hosts, sha256',
              digests[0] == digests[1], ' '.join(digests))
