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

"""Fetch files over the migration network: LP 1939869.

The destination copies files from the source that Glance has lost (base images,
kernel and ramdisk) or never had (an ISO config drive, up to Nova 30.0). Nova
sends it only the source's host name. That name leads over the management
network, although ``[libvirt] live_migration_inbound_addr`` keeps all other
traffic off it. If sshd listens on the migration network only, the copy fails.

With the fix the source sends its own ``live_migration_inbound_addr``. In a
live migration it sets ``source_connect_addr`` of the migrate_data twice, in
the precheck and before ``pre_live_migration``, as the conductor between them
drops the field. In a cold migration or resize it adds the address to the disk
info of each disk. If the option is unset, the source sends no address and the
destination does as Nova does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nova import exception
from nova.i18n import _
from oslo_config import cfg
from oslo_log import log as logging

from nova_migfix.fixes import base
from nova_migfix import peer
from nova_migfix.transport import address

LOG = logging.getLogger(__name__)
CONF = cfg.CONF
FIELD = peer.SOURCE_CONNECT_ADDR


class SourceAddress(base.Fix):
    name = 'source_address'
    bug = 'LP 1939869: images are fetched by the source\'s host name'

    @classmethod
    def not_needed(cls) -> str | None:
        if FIELD in peer.NOVA_FIELDS:
            return f'its migrate_data has {FIELD}'
        return None

    def check_can_live_migrate_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        self.set_source_fields(migrate_data, [])

    def set_source_fields(
        self, migrate_data: Any, disks: list[dict[str, Any]],
    ) -> None:
        own_address = CONF.libvirt.live_migration_inbound_addr
        if not own_address:
            return
        if migrate_data:
            migrate_data.source_connect_addr = own_address
        for disk in disks:
            disk[FIELD] = own_address

    def source_address(
        self, instance: Any, migrate_data: Any,
        disks: Iterable[dict[str, Any]] = (),
    ) -> str | None:
        value = peer.get(migrate_data, FIELD) if migrate_data else next(
            (disk[FIELD] for disk in disks if FIELD in disk), None)
        if value is None:
            return None
        try:
            source = address.check(value)
        except ValueError as error:
            raise exception.MigrationPreCheckError(reason=_(
                'The source\'s [libvirt] live_migration_inbound_addr cannot '
                'be used to fetch files from it: %s. Set it to the source\'s '
                'address on the migration network.') % error) from error
        LOG.info('Files that Glance does not have are fetched from the '
                 'source\'s migration address %(address)s instead of its host '
                 'name (LP 1939869)', {'address': source}, instance=instance)
        return source
