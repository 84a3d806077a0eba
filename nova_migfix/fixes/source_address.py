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

"""The destination fetches files over the migration network: LP 1939869.

What Glance no longer has (base images, kernel and ramdisk) and what never was
there (an ISO config drive, up to Nova 30.0) the destination copies from the
source. Nova tells it the source's host name only, which leads over the
management network even though ``[libvirt] live_migration_inbound_addr`` keeps
everything else off it, and nowhere at all where sshd listens on the migration
network alone.

With the fix the source tells its own ``live_migration_inbound_addr``: twice
in ``source_connect_addr`` of a live migration's migrate_data (precheck and
departure, as the conductor between them drops it), and in each disk's entry
of the description that a cold migration or resize sends along. Where the
option is unset nothing is told and the destination does as Nova does.
"""

from __future__ import annotations

import contextlib
from typing import Any

from nova import exception
from nova.i18n import _
from oslo_config import cfg
from oslo_log import log as logging

from nova_migfix.fixes import base
from nova_migfix import peer
from nova_migfix.transport import address
from nova_migfix.transport import transfer

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

    def check_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        self.depart(migrate_data)

    def depart(self, migrate_data: Any) -> None:
        if own := self._own_address():
            migrate_data.source_connect_addr = own

    def arriving(
        self, instance: Any, migrate_data: Any,
    ) -> contextlib.AbstractContextManager[None]:
        return self._fetching_from(
            instance, peer.get(migrate_data, FIELD))

    def describe_copies(self, disks: list[dict[str, Any]]) -> None:
        if own := self._own_address():
            for disk in disks:
                disk[FIELD] = own

    def arriving_cold(
        self, instance: Any, disks: list[dict[str, Any]],
    ) -> contextlib.AbstractContextManager[None]:
        return self._fetching_from(instance, next(
            (disk[FIELD] for disk in disks if FIELD in disk), None))

    def _own_address(self) -> str | None:
        own: str | None = CONF.libvirt.live_migration_inbound_addr
        return own

    def _fetching_from(
        self, instance: Any, told: object,
    ) -> contextlib.AbstractContextManager[None]:
        if source := self._checked(told):
            LOG.info('What Glance does not have is fetched from the source\'s '
                     'migration address %(address)s instead of its host name '
                     '(LP 1939869)', {'address': source}, instance=instance)
        return transfer.fetching_from(source)

    def _checked(self, value: object) -> str | None:
        if value is None:
            return None
        try:
            return address.check(value)
        except ValueError as error:
            raise exception.MigrationPreCheckError(reason=_(
                'The source\'s [libvirt] live_migration_inbound_addr cannot '
                'be used to fetch files from it: %s. Set it to the source\'s '
                'address on the migration network.') % error) from error
