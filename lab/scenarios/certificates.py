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


"""Migrate over QEMU's native TLS with wrong credentials of the destination.

``upgrade check`` on the destination predicts each failure. ``preflight``
cannot, because libvirt does not show the credentials of QEMU.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import re

from lab import cloud
from lab import credentials
from lab import scenario
from lab.scenarios import predicted
from lab import status
from lab import topology

_CHECK = 'Certificates of QEMU'
_ADDRESS = re.escape(topology.MIGRATION.address(scenario.DESTINATION))


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Wrong credentials of the destination.

    :param make: makes them of right ones
    :param details: pattern of the check's text
    :param reason: pattern of the reason why the migration fails
    :param fault: that ``explain`` names
    """

    text: str
    make: Callable[[cloud.Cloud], object]
    details: str
    reason: str
    fault: str


WRONG = (
    Wrong('certificate with DNS names only',
          lambda cloud: credentials.give(cloud, topology.COMPUTES),
          rf'server-cert\.pem: .*not valid for {_ADDRESS}, but for DNS:',
          rf'Certificate does not match the hostname {_ADDRESS}',
          'certificate-name'),
    Wrong('expired certificate',
          lambda cloud: credentials.expire(cloud, scenario.DESTINATION),
          r'server-cert\.pem: the certificate ended 2 days ago',
          r'The server certificate \S+server-cert\.pem has expired',
          'certificate-expired'),
    Wrong('credentials that QEMU cannot read',
          lambda cloud: credentials.take(cloud, scenario.DESTINATION),
          r'QEMU \(user ID \d+\) cannot read \S+server-key\.pem',
          r'Unable to access credentials \S+: Permission denied',
          'tls-credentials'),
    # as Kolla Ansible's keys of libvirt
    Wrong('key that QEMU cannot read',
          lambda cloud: credentials.take(cloud, scenario.DESTINATION,
                                         'server-key.pem'),
          r'QEMU \(user ID \d+\) cannot read \S+server-key\.pem',
          r"Cannot load certificate '\S+' & key '\S+': Error while reading",
          'tls-credentials'),
)


class Certificates(predicted.Predicted):
    name = 'certificates'
    title = ('upgrade check predicts, and explain names, wrong TLS '
             'credentials of the destination.')

    def run(self, run: scenario.Run) -> None:
        run.configure(both={credentials.NATIVE_TLS: True})
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        instance = run.boot()
        self.check_right(run)
        for wrong in WRONG:
            credentials.give(run.cloud)
            wrong.make(run.cloud)
            self.check(run, wrong.text, wrong.details, status.FAILURE)
            predicted.migrate_in_vain(run, instance, wrong.text, wrong.reason,
                                      wrong.fault)
        self.check_right(run)
        run.migrate(instance, title='right credentials',
                    expected=scenario.Arrives())

    def check_right(self, run: scenario.Run) -> None:
        """Give right credentials, which last an hour, and check them."""
        credentials.give(run.cloud)
        self.check(run, 'right credentials', 'ends in 0 days', status.WARNING)

    @staticmethod
    def check(run: scenario.Run, text: str, details: str,
              result: int) -> None:
        """Check the result of ``upgrade check`` on the destination.

        :param details: pattern of the check's text
        """
        run.progress(f'upgrade check, {text}')
        found = status.check(run.cloud, scenario.DESTINATION, _CHECK)
        run.check(f'upgrade check, {text}: result {result}, /{details}/',
                  found['result'] == result
                  and re.search(details, found['details']), found)
