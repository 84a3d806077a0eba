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

"""Keep the guest-visible attributes of a vNIC in a live migration.

``nova.virt.libvirt.migration._update_vif_xml`` clears each interface of the
guest on the source and rebuilds it with the values that a guest would get if
it booted on the source now: from ``max_queues``, ``rx_queue_size``, the kernel
version, flavor and image. If any of these has changed since the guest booted,
the device on the destination has other queues or features, and QEMU there
exits while it loads the device's state. Releases up to 34 keep only the PCI
address, and the absence of an MTU; LP 1800511 is the closest report.

With the fix the destination's XML has the values of the running guest for each
interface, according to the table in :mod:`nova_migfix.abi.vnic`. The source
refuses in the precheck, before the guest moves, two things that the
destination cannot provide:

- more queues than its kernel opens on a tap device;
- the other kind of tap device: from Nova 33 on os-vif may create the tap first
  (LP 2069718), with one queue or with several, by the *present* flavor and
  image. The kernel does not let libvirt open it in the other mode.
"""

from __future__ import annotations

from collections.abc import Mapping
import re
from typing import Any

from lxml import etree
from nova import exception
from nova.i18n import _
from nova.network import model as network_model
from nova.virt import hardware
from os_vif.objects import vif as osv_vif
from oslo_log import log as logging

from nova_migfix.abi import domain as domain_xml
from nova_migfix.abi import tap
from nova_migfix.abi import vnic as vnic_abi
from nova_migfix.fixes import base
from nova_migfix import peer

LOG = logging.getLogger(__name__)

# keys of dest_capabilities
MAX_TAP_QUEUES = 'max_tap_queues'
CREATES_TAP = 'os_vif_creates_tap'

# binding:vif_details of a port whose tap os-vif creates (LP 2069718)
OVS_CREATE_TAP = 'ovs_create_tap'


class Vnic(base.Fix):
    name = 'vnic'
    bug = 'the vNIC is recomputed instead of kept on live migration'
    fixed_upstream_marker = 'nova.virt.libvirt.migration.VNIC_GUEST_ABI'

    def dest_capabilities(self) -> Mapping[str, str]:
        try:
            capabilities = {MAX_TAP_QUEUES: str(tap.max_queues())}
        except Exception as error:
            # A failed probe must not stop migrations that have always worked:
            # the source refuses nothing without these capabilities.
            LOG.info('Cannot determine how many queues a tap device of this '
                     'host can have: %s', error)
            return {}
        if _os_vif_creates_taps():
            capabilities[CREATES_TAP] = 'yes'
        return capabilities

    def check_can_live_migrate_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        capabilities = peer.get(migrate_data, peer.DEST_CAPABILITIES) or {}
        if not capabilities:
            return
        queues = vnic_abi.tap_queues(domain_xml.parse(
            host.get_guest(instance).get_xml_desc(dump_migratable=True)))
        if possible := re.fullmatch(
                '[0-9]{1,4}', capabilities.get(MAX_TAP_QUEUES, '')):
            _check_kernel(instance, queues, int(possible[0]))
        if CREATES_TAP in capabilities:
            _check_created_taps(instance, queues)

    def update_destination_xml(
        self, driver: Any, instance: Any, migrate_data: Any,
        destination: etree._Element, running: etree._Element,
    ) -> None:
        self.log_kept(LOG, 'vNIC', vnic_abi.keep_vnics(destination, running),
                      instance)


def _os_vif_creates_taps() -> bool:
    """Return whether Nova (33) and os-vif (4.3) both support it."""
    return hasattr(network_model, 'VIF_DETAILS_OVS_CREATE_TAP') and {
        'create_tap', 'multiqueue'}.issubset(
            osv_vif.VIFPortProfileOpenVSwitch.fields)


def _check_kernel(
    instance: Any, queues: list[tuple[str, int]], possible: int,
) -> None:
    for mac, needed in queues:
        if needed > possible:
            _refuse(instance, _(
                'Instance %(uuid)s runs with %(needed)s queues on the vNIC '
                '%(mac)s; a tap of the destination has %(possible)s at most. '
                'Choose another destination, or set [libvirt] max_queues to '
                '%(possible)s and hard reboot the instance.') % {
                    'uuid': instance.uuid, 'mac': mac, 'needed': needed,
                    'possible': possible})


def _check_created_taps(
    instance: Any, queues: list[tuple[str, int]],
) -> None:
    created = {
        vif['address'].lower()
        for vif in instance.get_network_info()
        if vif['details'].get(OVS_CREATE_TAP)}
    for mac, running in queues:
        if mac in created and (running > 1) != (
                hardware.get_vif_multiqueue_constraint(
                    instance.flavor, instance.image_meta)):
            _refuse(instance, _(
                'Instance %(uuid)s runs with %(running)s queue(s) on the '
                'vNIC %(mac)s, which does not fit the tap that os-vif would '
                'create from the flavor. Hard reboot the instance, or unset '
                'ovs_create_tap in Neutron.') % {
                    'uuid': instance.uuid, 'mac': mac, 'running': running})


def _refuse(instance: Any, reason: str) -> None:
    LOG.info('Live migration refused: %s', reason, instance=instance)
    raise exception.MigrationPreCheckError(reason=reason)
