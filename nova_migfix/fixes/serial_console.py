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

"""Migrate a guest whose serial console has been switched off.

A guest that booted with ``[serial_console] enabled`` has a serial device that
listens on a TCP port. A destination without that option has no address for it,
and Nova fails with a TypeError while it computes the destination's XML.

With the fix the serial device of such a guest becomes a pseudo terminal of the
host. The guest does not see its back end.
"""

from __future__ import annotations

from typing import Any

from lxml import etree
from oslo_log import log as logging

from nova_migfix.fixes import base
from nova_migfix import peer

LOG = logging.getLogger(__name__)

# of a TCP back end
_ELEMENTS = ('source', 'protocol')


class SerialConsole(base.Fix):
    name = 'serial_console'
    bug = 'a guest with a serial console migrates only to a host with one'

    def update_running_xml(
        self, migrate_data: Any, running: etree._Element,
    ) -> None:
        if peer.get(migrate_data, 'serial_listen_addr'):
            return
        devices = running.xpath(
            '(./devices/serial | ./devices/console)[@type="tcp"]')
        for device in devices:
            device.set('type', 'pty')
            for name in _ELEMENTS:
                for element in device.findall(name):
                    device.remove(element)
        if devices:
            LOG.info('The destination has no serial console, and the serial '
                     'device of domain %(domain)s becomes a pseudo terminal '
                     'there (%(bug)s)', {'domain': running.findtext('./name'),
                                         'bug': self.bug})
