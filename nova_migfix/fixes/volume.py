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

"""Keep the disks of volumes in a live migration, and open no others.

Nova looks for the volume of a disk by the disk's ``<serial>``, and takes the
destination's path of the volume from there. A disk that it does not find keeps
the source's path. QEMU on the destination opens that path, which there may be
another tenant's volume or a disk of the host. This affects:

- LUNs (``hw:scsi_passthrough``), which have had no serial since Nova 30
  (LP 2065084). The fix finds them by their alias, which has the volume's ID.
- Guests whose volume was swapped by another one directly: the disk has the
  serial of the former volume (LP 2112187). The source refuses them in the
  precheck if the path is of a block device. A file on a share and a network
  disk have the same path on each host, and are not refused.

Of a volume that it finds, Nova replaces the elements of the disk by those that
it would configure at present: from ``disk_cachemodes``, the options of Cinder
and its back end. With the fix, those that the guest sees stay as they are
until the next hard reboot, according to the table in
:mod:`nova_migfix.abi.disk`.
"""

from __future__ import annotations

from collections.abc import Iterator
import functools
import inspect
from typing import Any

from lxml import etree
from nova import context as nova_context
from nova import exception
from nova.i18n import _
from nova import objects
from oslo_log import log as logging
from oslo_utils import uuidutils

from nova_migfix.abi import disk as disk_abi
from nova_migfix.abi import domain as domain_xml
from nova_migfix.fixes import base

LOG = logging.getLogger(__name__)

# A user-defined alias of libvirt. Nova has set it since release 30.
_ALIAS = 'ua-'


class Volume(base.Fix):
    name = 'volume'
    bug = ('a volume is not found, or is recomputed, on live migration '
           '(LP 2112187, LP 2065084)')

    def check_can_live_migrate_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        running = domain_xml.parse(
            host.get_guest(instance).get_xml_desc(dump_migratable=True))
        found = [(disk, identifiers) for disk, identifiers in volumes(running)
                 if is_block_device(disk)]
        if not found:
            return
        attached = {
            mapping.volume_id for mapping in
            objects.BlockDeviceMappingList.get_by_instance_uuid(
                nova_context.get_admin_context(), instance.uuid)}
        for disk, identifiers in found:
            if attached.isdisjoint(identifiers):
                reason = _message(instance, disk, identifiers)
                LOG.info('Live migration refused: %s', reason,
                         instance=instance)
                raise exception.MigrationPreCheckError(reason=reason)

    def update_destination_xml(
        self, driver: Any, instance: Any, migrate_data: Any,
        destination: etree._Element, running: etree._Element,
    ) -> None:
        _connect(driver, instance, migrate_data, destination)
        self.log_kept(LOG, 'Disk', disk_abi.keep_disks(destination, running),
                      instance)


def volumes(
    document: etree._Element,
) -> Iterator[tuple[etree._Element, tuple[str, ...]]]:
    """Yield the disks of volumes, with the IDs that may be of the volume."""
    for disk in document.iterfind('./devices/disk'):
        if identifiers := _identifiers(disk):
            yield disk, identifiers


def is_block_device(disk: etree._Element) -> bool:
    """Return whether the path of a disk may be of another disk elsewhere."""
    return disk.get('type') == 'block'


def _identifiers(disk: etree._Element) -> tuple[str, ...]:
    alias = disk.find('alias')
    return tuple(filter(uuidutils.is_uuid_like, (
        '' if alias is None else alias.get('name', '').removeprefix(_ALIAS),
        disk.findtext('serial'))))


def _connect(driver: Any, instance: Any, migrate_data: Any,
             document: etree._Element) -> None:
    """Give the volumes that Nova does not find the destination's paths.

    :param document: the domain as Nova computed it, changed in place
    :raises MigrationError: the destination has not connected a volume
    """
    connected = {volume.serial: volume for volume in migrate_data.bdms}
    for disk, identifiers in volumes(document):
        if (disk.get('device') != 'lun'
                and disk.findtext('serial') in connected):
            continue
        found = list(filter(connected.get, identifiers))
        if found:
            disk_abi.connect(disk, _configured(
                driver, instance, connected[found[0]]))
        elif is_block_device(disk):
            raise exception.MigrationError(
                reason=_message(instance, disk, identifiers))


def _configured(driver: Any, instance: Any, volume: Any) -> etree._Element:
    """Return the disk that Nova would configure for a connected volume."""
    get_config = driver._get_volume_config
    # until Nova 29
    if 'instance' in inspect.signature(get_config).parameters:
        get_config = functools.partial(get_config, instance)
    return domain_xml.parse(get_config(
        volume.connection_info, volume.as_disk_info()).to_xml())


def _message(instance: Any, disk: etree._Element,
             identifiers: tuple[str, ...]) -> str:
    # Nova cuts the details of an event after 255 characters.
    message: str = _(
        'Disk %(disk)s of instance %(uuid)s is of volume %(volume)s, which is '
        'not attached to it. Hard reboot the instance: the destination would '
        'open another disk at this path.') % {
            'disk': disk.find('target').get('dev'), 'uuid': instance.uuid,
            'volume': identifiers[0]}
    return message
