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

"""Migrate without the image, over a migration network with IPv6 addresses.

The hosts use different transports, so both are tested: compute2 fetches from
compute1 by ssh, compute1 from compute2 by rsync.
"""

from __future__ import annotations

from lab import configuration
from lab import scenario
from lab.scenarios import image_gone
from lab import topology


class ImageGoneIpv6(image_gone.ImageGone):
    name = 'image-gone-ipv6'
    title = ('The same by ssh and by rsync, with an IPv6 literal as '
             'live_migration_inbound_addr.')

    def run(self, run: scenario.Run) -> None:
        run.configure(source=options_of(scenario.SOURCE, 'rsync'),
                      destination=options_of(scenario.DESTINATION, 'ssh'))
        guest = image_gone.boot_without_image(run)
        image_gone.migrate_twice(run, guest)
        if guest.host == scenario.DESTINATION:
            # Until now it has only migrated there, by ssh.
            image_gone.migrate(run, guest, topology.MIGRATION)


def options_of(host: str, transport: str) -> configuration.Options:
    """Return the options of nova.conf of one host."""
    return {scenario.INBOUND_ADDRESS: topology.MIGRATION.address(host, 6),
            scenario.TRANSPORT: transport}
