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

"""Data from and for the other host of a live migration.

There are two more fields in its migrate_data.

The class keeps the VERSION of Nova's class. Peers without the plugin ignore
unknown keys, and no service requests a backport that it would not request
without the plugin. The first unpatched conductor on the way would drop a new
version.

That conductor also drops the values on their way back to the source. So the
source sets its field once more, just before it calls the destination: see
:func:`wrap_pre_live_migration`.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import functools
from typing import Any

from nova import exception
from nova.i18n import _
from nova.objects import base
from nova.objects import fields
from nova.objects import migrate_data


SOURCE_CONNECT_ADDR = 'source_connect_addr'
DEST_CAPABILITIES = 'dest_capabilities'


# Types of the values of a disk in the disk info of all releases.
_DISK = {'path': (str,), 'type': (str,), 'virt_disk_size': (int,),
         'backing_file': (str, type(None))}

#: the fields that this release of Nova has itself
NOVA_FIELDS = frozenset(migrate_data.LibvirtLiveMigrateData.fields)


class LibvirtLiveMigrateData(migrate_data.LibvirtLiveMigrateData):
    """Nova's object with one field of the source and one of the destination.

    ``source_connect_addr``
        The source's address on the migration network, for the destination: a
        host name or an IP literal; the counterpart of
        ``target_connect_addr``.
    ``dest_capabilities``
        The capabilities of the destination's kernel, QEMU and plugin. The
        destination sets them in its precheck, and the source reads them in
        its own. No conductor is between the two, unless the destination's
        release has a newer version of the object. Then the source requests a
        backport from the conductor, and an unpatched conductor drops the
        field. A source that gets no capabilities takes the safe way.
    """

    VERSION = migrate_data.LibvirtLiveMigrateData.VERSION
    fields = {
        SOURCE_CONNECT_ADDR: fields.StringField(nullable=True),
        DEST_CAPABILITIES: fields.DictOfStringsField(nullable=True),
    }


def register() -> None:
    """Replace Nova's class in the registry; repeated calls do no harm."""
    base.NovaObjectRegistry.register(LibvirtLiveMigrateData)


def get(data: Any, name: str) -> Any:
    """Return a field's value, None if the peer did not set it.

    :param data: a LibvirtLiveMigrateData, Nova's class or ours
    """
    return getattr(data, name) if name in data else None


def add_capabilities(data: Any, capabilities: Mapping[str, str]) -> None:
    """Add capabilities of the destination.

    :param data: a LibvirtLiveMigrateData of our class
    """
    if capabilities:
        data.dest_capabilities = {
            **(get(data, DEST_CAPABILITIES) or {}), **capabilities}


def check_disks(disks: Iterable[Any]) -> None:
    """Check that the disk info from a source has the values that Nova sends.

    :param disks: disk info, decoded
    :raises MigrationError: a value is missing, or of another type
    """
    for number, disk in enumerate(disks, 1):
        for name, types in _DISK.items():
            value = disk.get(name, ...) if isinstance(disk, dict) else ...
            if not isinstance(value, types):
                raise exception.MigrationError(reason=_(
                    'The source sent no valid %(name)s of disk %(number)d: is '
                    'its Nova a supported one?') % {
                        'name': name, 'number': number})


def wrap_pre_live_migration(
    virtapi: Any, set_source_fields: Callable[[Any, str | None], str | None],
    can_retry: Callable[[Any], bool],
) -> None:
    """Call back before the RPC ``pre_live_migration``, and if it fails.

    No method of the driver sees the migrate_data between the conductor and
    ``pre_live_migration`` on the destination, and none sees that call fail
    before Nova rolls the migration back. So this wraps a method of the
    compute manager. That wrapper wraps the method of ``compute_rpcapi`` each
    time, as Nova replaces that object after it has loaded the driver, and in
    ``ComputeManager.reset`` on SIGHUP.

    :param virtapi: the virtapi that nova-compute gave the driver; one without
        a manager (in tests only) sends nothing
    :param set_source_fields: called before each attempt, with the migrate_data
        and Nova's disk info, JSON or None; returns the disk info to send. Nova
        rolls the migration back if it raises
    :param can_retry: called with the instance when the destination raises
        MigrationError; returns whether a second attempt can succeed
    """
    manager = getattr(virtapi, '_compute', None)
    if manager is None:
        return
    prepare = manager._do_pre_live_migration_from_source

    @functools.wraps(prepare)
    def prepare_with_source_fields(*args: Any, **kwargs: Any) -> Any:
        _send_source_fields(
            manager.compute_rpcapi, set_source_fields, can_retry)
        return prepare(*args, **kwargs)

    manager._do_pre_live_migration_from_source = prepare_with_source_fields


def _send_source_fields(
    rpcapi: Any, set_source_fields: Callable[[Any, str | None], str | None],
    can_retry: Callable[[Any], bool],
) -> None:
    """Make *rpcapi* send the fields, and call again if that can succeed."""
    call = rpcapi.pre_live_migration
    if hasattr(call, 'sends_source_fields'):
        return

    @functools.wraps(call)
    def pre_live_migration(
        ctxt: Any, instance: Any, block_migration: Any, disk: Any, host: Any,
        migrate_data: Any,
    ) -> Any:
        def attempt() -> Any:
            return call(ctxt, instance, block_migration,
                        set_source_fields(migrate_data, disk), host,
                        migrate_data)
        try:
            return attempt()
        except exception.MigrationError:
            if not (disk and can_retry(instance)):
                raise
        return attempt()

    pre_live_migration.sends_source_fields = (  # type: ignore[attr-defined]
        True)
    rpcapi.pre_live_migration = pre_live_migration
