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

"""Two more fields in the object that travels with a live migration.

The class keeps the VERSION of Nova's own: peers without the plugin ignore
keys they do not know, and no service is asked for a backport that it would
not have been asked for anyway. A new version would be dropped by the first
unpatched conductor on the way.

That same conductor drops the values on their way back to the source, so the
source has to set what the destination shall know again, at the last moment:
see :func:`on_departure`.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

from nova import exception
from nova.objects import base
from nova.objects import fields
from nova.objects import migrate_data
from oslo_log import log as logging

LOG = logging.getLogger(__name__)

SOURCE_CONNECT_ADDR = 'source_connect_addr'
DEST_CAPABILITIES = 'dest_capabilities'


#: what this release of Nova has itself
NOVA_FIELDS = frozenset(migrate_data.LibvirtLiveMigrateData.fields)


class LibvirtLiveMigrateData(migrate_data.LibvirtLiveMigrateData):
    """Nova's object with what source and destination have to tell.

    ``source_connect_addr``
        Where the destination reaches the source on the migration network: a
        host name or an IP literal; the twin of ``target_connect_addr``.
    ``dest_capabilities``
        What the destination's kernel and plugin can do. Filled by the
        destination's precheck and read by the source's: that leg passes no
        conductor, unless the destination's release is newer by a version of
        the object. Then the source asks the conductor for a backport, in
        which an unpatched one drops the field: told nothing, the source has
        to take the safe way.
    """

    VERSION = migrate_data.LibvirtLiveMigrateData.VERSION
    fields = {
        SOURCE_CONNECT_ADDR: fields.StringField(nullable=True),
        DEST_CAPABILITIES: fields.DictOfStringsField(nullable=True),
    }


def register() -> None:
    """Put the class in the place of Nova's; harmless when repeated."""
    base.NovaObjectRegistry.register(LibvirtLiveMigrateData)


def get(data: Any, name: str) -> Any:
    """Return a field's value, None where the peer did not set it.

    :param data: a LibvirtLiveMigrateData, Nova's class or ours
    """
    return getattr(data, name) if name in data else None


def add_capabilities(data: Any, capabilities: Mapping[str, str]) -> None:
    """Add to what the destination tells of itself.

    :param data: a LibvirtLiveMigrateData of ours
    """
    if capabilities:
        data.dest_capabilities = {
            **(get(data, DEST_CAPABILITIES) or {}), **capabilities}


def on_departure(
    virtapi: Any, stamp: Callable[[Any], None],
    otherwise: Callable[[Any, str | None], str | None],
) -> None:
    """Call back before the object leaves for the destination, and if it fails.

    No method of the driver sees the object between the conductor and
    ``pre_live_migration`` on the destination, and none sees that call fail
    before Nova rolls the migration back. So this wraps a method of the one
    manager, and the method of its ``compute_rpcapi`` each time before it is
    used: Nova replaces that object when it has loaded the driver, and in
    ``ComputeManager.reset`` on SIGHUP.

    :param virtapi: what nova-compute gave the driver to call back by; one
        without a manager (only tests have such) sends nothing
    :param stamp: is called with the migrate_data
    :param otherwise: is called with the instance and the description of its
        disks, JSON or None, when the destination raises MigrationError;
        returns the description for a second attempt, or None
    """
    manager = getattr(virtapi, '_compute', None)
    if manager is None:
        return
    prepare = manager._do_pre_live_migration_from_source

    @functools.wraps(prepare)
    def stamped(context: Any, dest: Any, instance: Any, block_migration: Any,
                migration: Any, migrate_data: Any, source_bdms: Any) -> Any:
        try:
            stamp(migrate_data)
            _ask_twice(manager.compute_rpcapi, otherwise)
        except Exception:
            # Nova has no handler around this call: the instance would stay
            # MIGRATING. Without it, the destination does as Nova does.
            LOG.exception('The destination does not learn everything',
                          instance=instance)
        return prepare(context, dest, instance, block_migration, migration,
                       migrate_data, source_bdms)

    manager._do_pre_live_migration_from_source = stamped


def _ask_twice(
    rpcapi: Any, otherwise: Callable[[Any, str | None], str | None],
) -> None:
    """Have *rpcapi* make a second attempt at ``pre_live_migration``."""
    ask = rpcapi.pre_live_migration
    if hasattr(ask, 'asks_twice'):
        return

    @functools.wraps(ask)
    def asking(ctxt: Any, instance: Any, block_migration: Any, disk: Any,
               host: Any, migrate_data: Any) -> Any:
        try:
            return ask(
                ctxt, instance, block_migration, disk, host, migrate_data)
        except exception.MigrationError:
            disk = otherwise(instance, disk)
            if disk is None:
                raise
        return ask(ctxt, instance, block_migration, disk, host, migrate_data)

    asking.asks_twice = True    # type: ignore[attr-defined]
    rpcapi.pre_live_migration = asking
