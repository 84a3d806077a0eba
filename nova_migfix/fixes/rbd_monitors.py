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

"""Give the local RBD disks of a guest the monitors that Ceph has now.

Nova 29 to 33 keep the monitors' addresses with which a guest booted. If Ceph
has moved its monitors since, QEMU on the destination cannot open the disks
(LP 1741364). Nova 34 asks Ceph for the monitors; so does the fix. The disks of
volumes get theirs from Cinder.
"""

from __future__ import annotations

from typing import Any

from lxml import etree
from nova.storage import rbd_utils
from oslo_log import log as logging

from nova_migfix.fixes import base

LOG = logging.getLogger(__name__)

#: XPath to the sources of disks that are no volumes
SOURCES = ('./devices/disk[not(serial)]'
           '[not(starts-with(alias/@name, "ua-"))]/source[@protocol="rbd"]')


class RbdMonitors(base.Fix):
    name = 'rbd_monitors'
    bug = 'local RBD disks keep the monitors from the boot (LP 1741364)'
    fixed_upstream_marker = 'nova.virt.libvirt.migration._update_rbd_xml'

    def update_destination_xml(
        self, driver: Any, instance: Any, migrate_data: Any,
        destination: etree._Element, running: etree._Element,
    ) -> None:
        sources = destination.xpath(SOURCES)
        if not sources:
            return
        try:
            monitors = list(zip(*rbd_utils.RBDDriver().get_mon_addrs()))
        except Exception as error:
            # The guest uses the monitors that it has.
            LOG.warning('Ceph does not return its monitors, and the disks '
                        'keep those from the boot: %s', error,
                        instance=instance)
            return
        before = etree.tostring(destination)
        for source in sources:
            for host in source.findall('host'):
                source.remove(host)
            for name, port in monitors:
                etree.SubElement(source, 'host', name=name, port=port)
        if etree.tostring(destination) != before:
            LOG.info('The RBD disks get the monitors %(monitors)s (%(bug)s)', {
                'monitors': ', '.join(':'.join(one) for one in monitors),
                'bug': self.bug}, instance=instance)
