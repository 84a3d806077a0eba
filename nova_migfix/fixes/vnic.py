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

"""The vNIC that arrives is the one that left.

``nova.virt.libvirt.migration._update_vif_xml`` clears every interface of the
guest and rebuilds it, on the source, from what the source would give a guest
that boots now: ``max_queues``, ``rx_queue_size``, the kernel's number, flavor
and image. A guest booted before any of that changed meets a device with other
queues or features on the destination, where QEMU exits while it loads the
device's state. No release up to 34 keeps any of it.

With the fix the destination's XML says of each interface what the running
guest has, by the table in :mod:`nova_migfix.guest_abi`. What the destination
could not provide is refused in the precheck: a kernel that opens fewer queues
of a tap device than the guest has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nova import exception
from nova.i18n import _
from oslo_log import log as logging

from nova_migfix import guest_abi
from nova_migfix import migrate_data as migfix_data
from nova_migfix import tap
from nova_migfix.fixes import base

LOG = logging.getLogger(__name__)

MAX_TAP_QUEUES = 'max_tap_queues'


class Vnic(base.Fix):
    name = 'vnic'
    bug = 'the vNIC is recomputed instead of kept on live migration'

    def capabilities(self) -> Mapping[str, str]:
        try:
            return {MAX_TAP_QUEUES: str(tap.max_queues())}
        except Exception as error:
            # Whoever tells nothing is not refused: a probe that fails must
            # not stop migrations that have always worked.
            LOG.info('How many queues a tap device of this host takes could '
                     'not be found out: %s', error)
            return {}

    def check_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        told = migfix_data.get(migrate_data, migfix_data.DEST_CAPABILITIES)
        possible = (told or {}).get(MAX_TAP_QUEUES, '')
        if not possible.isdecimal():
            return
        running_xml = host.get_guest(instance).get_xml_desc(
            dump_migratable=True)
        for mac, needed in guest_abi.tap_queues(running_xml):
            if needed > int(possible):
                self._refuse(instance, mac, needed, int(possible))

    def _refuse(
        self, instance: Any, mac: str, needed: int, possible: int,
    ) -> None:
        reason = _(
            'Instance %(uuid)s runs with %(needed)s queues on the vNIC '
            '%(mac)s, but the kernel of the destination opens only '
            '%(possible)s of a tap device. Choose a destination with a newer '
            'kernel (Linux 4.0 and later: 256), or set [libvirt] max_queues '
            'to %(possible)s on the source and reboot the instance hard.') % {
                'uuid': instance.uuid, 'mac': mac, 'needed': needed,
                'possible': possible}
        LOG.info('Live migration refused: %s', reason, instance=instance)
        raise exception.MigrationPreCheckError(reason=reason)

    def update_destination_xml(
        self, instance: Any, destination_xml: str, running_xml: str,
    ) -> str:
        kept_xml, kept = guest_abi.keep_vnics(destination_xml, running_xml)
        for change in kept:
            LOG.info('vNIC %(mac)s: kept %(path)s %(running)s where Nova '
                     'would have set %(computed)s (%(bug)s)',
                     {'mac': change.mac, 'path': change.path,
                      'running': change.running,
                      'computed': change.computed, 'bug': self.bug},
                     instance=instance)
        return kept_xml
