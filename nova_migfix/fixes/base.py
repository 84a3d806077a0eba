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

"""Base class for fixes, and the hooks that the driver calls.

A fix removes one fault of Nova. It is one class in one module, registered in
the stevedore namespace ``nova_migfix.fixes``, and overrides the hooks that it
needs. The hooks are in the order of a migration. A hook has the name of Nova's
method where one exists. Its docstring begins with the host that calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import ClassVar

from lxml import etree

from nova_migfix.abi import table
from nova_migfix import migration
from nova_migfix import nova_release
from nova_migfix.transport import fetch


class Fix:
    """One fault of Nova and its removal."""

    #: name of the entry point, as in ``[migfix] enabled_fixes``
    name: ClassVar[str]
    #: the bug or the fault, as log messages quote it
    bug: ClassVar[str]
    #: dotted path of an object that only a Nova without the fault has: see the
    #: patches that come with the plugin
    fixed_upstream_marker: ClassVar[str | None] = None
    #: the same for Nova 29, if the fault is smaller there, and the patches
    #: differ
    fixed_upstream_marker_29: ClassVar[str | None] = None

    @classmethod
    def not_needed(cls) -> str | None:
        """Say why the running Nova does not need this fix, or return None."""
        marker = cls.fixed_upstream_marker
        if cls.fixed_upstream_marker_29 and nova_release.major() == 29:
            marker = cls.fixed_upstream_marker_29
        if marker and nova_release.has(marker):
            return f'it has {marker}'
        return None

    def log_kept(self, log: Any, kind: str, kept: Iterable[table.Kept],
                 instance: Any) -> None:
        """Log one line for each value that the fix has kept.

        :param log: the logger of the fix
        :param kind: of the devices
        """
        for change in kept:
            log.info('%(kind)s %(device)s: kept %(path)s %(running)s where '
                     'Nova would have set %(computed)s (%(bug)s)',
                     {'kind': kind, 'bug': self.bug,
                      **dataclasses.asdict(change)}, instance=instance)

    # -- nova-compute starts -------------------------------------------------

    def extend_driver(self, driver: Any) -> None:
        """Either host: replace parts of Nova's driver or compute manager.

        :param driver: the LibvirtDriver, before it connects to libvirt and
            before Nova has completed the compute manager
        """

    # -- precheck: nothing has changed yet ----------------------------------

    def dest_capabilities(self) -> Mapping[str, str]:
        """Destination: return the capabilities of this host, for the source.

        :returns: for the field ``dest_capabilities`` of the migrate_data
        """
        return {}

    def check_can_live_migrate_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        """Source: refuse a migration that would harm the guest.

        :param instance: nova.objects.Instance
        :param host: nova.virt.libvirt.host.Host, the connection to libvirt
        :param migrate_data: LibvirtLiveMigrateData from the destination
        :raises MigrationPreCheckError: with the instance, the thing, the
            reason and the remedy
        """

    def prepare_disks(
        self, instance: Any, host: Any, has_failed: bool = False,
    ) -> bool:
        """Source: prepare the disks that are migrated with the guest.

        :param instance: nova.objects.Instance
        :param host: nova.virt.libvirt.host.Host, the connection to libvirt
        :param has_failed: whether the destination failed in its preparation
        :returns: whether a second attempt of the destination can succeed
        :raises MigrationError: Nova rolls the migration back
        """
        return False

    def set_source_fields(
        self, migrate_data: Any, disks: list[dict[str, Any]],
    ) -> None:
        """Source: set fields that the destination reads.

        The conductor drops the values that the precheck has set.

        :param migrate_data: LibvirtLiveMigrateData of a live migration, just
            before the RPC ``pre_live_migration``; None in a cold migration or
            resize, after the copy
        :param disks: disk info, a dict for each local disk, empty if the
            hosts share them; changed in place
        :raises Exception: Nova rolls the migration back
        """

    # -- the destination prepares -------------------------------------------

    def source_address(
        self, instance: Any, migrate_data: Any,
        disks: Iterable[dict[str, Any]] = (),
    ) -> str | None:
        """Destination: return the address to fetch the guest's files from.

        :param instance: nova.objects.Instance
        :param migrate_data: LibvirtLiveMigrateData of a live migration, as
            the source sent it, else None
        :param disks: disk info of a cold migration or resize, as the source
            sent it
        :returns: a host name or an IP literal, None for Nova's choice
        :raises MigrationPreCheckError: this host cannot use the address
        """
        return None

    def files_to_fetch(
        self, instance: Any, instance_dir: str, disks: list[dict[str, Any]],
    ) -> Iterable[fetch.FileRequest]:
        """Destination: return the files to fetch from the source.

        One session fetches the files of all fixes. Nova makes missing files
        afterwards.

        :param instance: nova.objects.Instance, still on the source
        :param instance_dir: its directory on this host
        :param disks: disk info of the local disks, as the source sent it; a
            fix has to check these values, as they come from a peer
        """
        return ()

    def images_created(
        self, driver: Any, instance: Any, instance_dir: str,
        disks: list[dict[str, Any]],
    ) -> None:
        """Destination, or a hard reboot: change disks that Nova has made.

        :param driver: the LibvirtDriver
        :param instance: nova.objects.Instance
        :param instance_dir: its directory on this host
        :param disks: disk info of the local disks, as the source sent it
        """

    # -- the guest migrates -------------------------------------------------

    def update_running_xml(
        self, migrate_data: Any, running: etree._Element,
    ) -> None:
        """Source: change the XML from which Nova computes the destination's.

        :param migrate_data: LibvirtLiveMigrateData, as the destination
            returned it
        :param running: ``dumpxml --migratable`` of the running guest, changed
            in place
        """

    def update_destination_xml(
        self, driver: Any, instance: Any, migrate_data: Any,
        destination: etree._Element, running: etree._Element,
    ) -> None:
        """Source: correct the XML from which libvirt starts the guest.

        :param driver: the LibvirtDriver
        :param instance: nova.objects.Instance
        :param migrate_data: LibvirtLiveMigrateData, as the destination
            returned it
        :param destination: the domain as Nova computed it, changed in place
        :param running: ``dumpxml --migratable`` of the running guest
        """

    def migrate_failed(
        self, driver: Any, context: Any, instance: Any, migrate_data: Any,
        uri: str, migrate: Callable[..., None],
    ) -> bool:
        """Source: handle a failure of libvirt's call, in the call's thread.

        Nova's monitor does not know the failure yet.

        :param driver: the LibvirtDriver
        :param instance: nova.objects.Instance
        :param uri: of the destination's libvirt
        :param migrate: makes the call again; takes the
            nova.virt.libvirt.guest.Guest and flags to add
        :returns: True if the guest has arrived all the same
        """
        return False

    def live_migration_monitor(
        self, driver: Any, outgoing: migration.Outgoing,
    ) -> None:
        """Source: replace the monitor, or the functions that it uses.

        :param driver: the LibvirtDriver
        :param outgoing: changed in place
        """

    def live_migration_failed(
        self, context: Any, instance: Any, host: Any, migrate_data: Any,
        error: Exception, operation: migration.Operation,
    ) -> bool:
        """Source: handle a failure after Nova's monitor has ended.

        The monitor records the outcome in ``migrate_data.migration``.

        :param host: nova.virt.libvirt.host.Host, the connection to libvirt
        :param error: the exception of the operation or of its monitor
        :param operation: libvirt's migration of the guest
        :returns: True if the fix has handled the failure, and Nova must not
            see it
        """
        return False

    # -- cold migration and resize ------------------------------------------

    def migrate_disk_and_power_off(
        self, driver: Any, instance: Any, dest: str, block_device_info: Any,
    ) -> None:
        """Source: prepare the disks. Nova stops the guest next.

        :param driver: the LibvirtDriver
        :param instance: nova.objects.Instance
        :param dest: address of the destination
        :param block_device_info: as Nova gets it; may be None
        :raises Exception: Nova does not stop the guest
        """

    def finish_migration(
        self, instance: Any, instance_dir: str, source: str,
    ) -> None:
        """Destination: complete the disks that the source has copied here.

        The driver does not call it if both hosts share the disks.

        :param instance_dir: the instance's directory on this host
        :param source: the host to fetch missing files from
        """

    # -- Nova stops or restarts the guest -----------------------------------

    def power_off(self, instance: Any, host: Any) -> None:
        """Either host: prepare the disks. Nova stops the guest next.

        :param host: nova.virt.libvirt.host.Host, the connection to libvirt
        :raises Exception: Nova does not stop the guest
        """

    def hard_reboot(
        self, driver: Any, context: Any, instance: Any, network_info: Any,
        block_device_info: Any,
    ) -> None:
        """Either host: prepare the disks. Nova restarts the guest next.

        :param driver: the LibvirtDriver
        :param block_device_info: as Nova gets it; may be None
        :raises Exception: Nova does not restart the guest
        """
