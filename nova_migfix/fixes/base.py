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

"""What a fix is, and when it is asked what.

A fix removes one fault of Nova. It is one class in one module, registered in
the stevedore namespace ``nova_migfix.fixes``, and overrides those of the
methods below that concern it. They stand in the order in which a migration
calls them; each says on which host it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import contextlib
from typing import Any
from typing import ClassVar

from nova_migfix import nova_release
from nova_migfix.transport import arrival


class Fix:
    """One fault of Nova and its removal."""

    #: name of the entry point, as in ``[migfix] enabled_fixes``
    name: ClassVar[str]
    #: the bug or the fault, as it stands in the log
    bug: ClassVar[str]
    #: the dotted path of what a Nova has only where the fault is mended in
    #: it: see the patches that come with the plugin
    mended_by: ClassVar[str | None] = None
    #: the same for Nova 29, if that has less of the fault, and other patches
    mended_in_29_by: ClassVar[str | None] = None

    @classmethod
    def not_needed(cls) -> str | None:
        """Say why the running Nova does not need this fix, or return None."""
        by = cls.mended_by
        if cls.mended_in_29_by and nova_release.major() == 29:
            by = cls.mended_in_29_by
        return f'it has {by}' if by and nova_release.has(by) else None

    # -- nova-compute starts -------------------------------------------------

    def extend(self, driver: Any) -> None:
        """Either host: replace parts of the driver that Nova has made.

        :param driver: the LibvirtDriver, which knows no host yet
        """

    def started(self, host: Any) -> None:
        """Either host: tidy up what an earlier nova-compute has left.

        :param host: nova.virt.libvirt.host.Host, the connection to libvirt
        """

    # -- precheck: nothing has been touched yet -----------------------------

    def capabilities(self) -> Mapping[str, str]:
        """Destination, first: what the source has to know of this host."""
        return {}

    def check_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        """Source: refuse what cannot be kept, before anything is moved.

        :param instance: nova.objects.Instance
        :param host: nova.virt.libvirt.host.Host, the connection to libvirt
        :param migrate_data: LibvirtLiveMigrateData from the destination
        :raises MigrationPreCheckError: with the instance, the thing, the
            reason and the remedy
        """

    def before_description(self, instance: Any, host: Any) -> None:
        """Source: the disks will be described to the destination next.

        Only if they are migrated with the guest.

        :param instance: nova.objects.Instance
        :param host: nova.virt.libvirt.host.Host, the connection to libvirt
        :raises MigrationError: Nova rolls the migration back
        """

    def describe_disks(self, disks: list[dict[str, Any]]) -> None:
        """Source: add to the description that the destination gets as JSON.

        :param disks: Nova's description, a dict for each; changed in place
        """

    # -- the destination is prepared ----------------------------------------

    def depart(self, migrate_data: Any) -> None:
        """Source: tell the destination what the conductor has dropped.

        :param migrate_data: LibvirtLiveMigrateData, about to be sent; what
            cannot be told is left unset, an error is logged and ignored
        """

    def arriving(
        self, instance: Any, migrate_data: Any,
    ) -> contextlib.AbstractContextManager[None]:
        """Destination: what holds while Nova prepares for the guest.

        :param instance: nova.objects.Instance, still on the source
        :param migrate_data: LibvirtLiveMigrateData, as it arrived
        :raises MigrationPreCheckError: the guest cannot be received
        """
        return contextlib.nullcontext()

    def files_to_pull(
        self, instance: Any, instance_dir: str, disks: list[dict[str, Any]],
    ) -> Iterable[arrival.Wanted]:
        """Destination: what to have from the source beforehand.

        All that the fixes want comes in one session, before Nova makes what
        is not there by then.

        :param instance: nova.objects.Instance, still on the source
        :param instance_dir: where its files will be, on this host
        :param disks: the local disks that are migrated, as the source
            described them; from a peer, so to be checked
        """
        return ()

    def preparation_failed(self, instance: Any, host: Any) -> bool:
        """Source: see whether the destination can do with less.

        :param instance: nova.objects.Instance
        :param host: nova.virt.libvirt.host.Host, the connection to libvirt
        :returns: True if something has changed, so that the destination is
            asked once more
        :raises MigrationError: Nova rolls the migration back
        """
        return False

    # -- the guest is moved -------------------------------------------------

    def update_destination_xml(
        self, instance: Any, destination_xml: str, running_xml: str,
    ) -> str:
        """Source: correct the XML that libvirt starts the guest from.

        :param instance: nova.objects.Instance
        :param destination_xml: as Nova computed it
        :param running_xml: ``dumpxml --migratable`` of the running guest
        :returns: the XML for the destination
        """
        return destination_xml

    def settles_failure(
        self, context: Any, instance: Any, host: Any, migrate_data: Any,
        error: Exception,
    ) -> bool:
        """Source: say whether nothing is left to do about a failure.

        Nova's monitor has ended; what it did stands in the migration record,
        ``migrate_data.migration``.

        :param host: nova.virt.libvirt.host.Host, the connection to libvirt
        :param error: what the migration or its monitor raised
        :returns: True when Nova need not hear of the error again
        """
        return False

    # -- cold migration and resize ------------------------------------------

    def leaving(
        self, driver: Any, instance: Any, dest: str, block_device_info: Any,
    ) -> None:
        """Source: the guest will be stopped next, and its disks moved.

        :param driver: the LibvirtDriver
        :param instance: nova.objects.Instance
        :param dest: address of the destination
        :param block_device_info: as Nova gets it; may be None
        :raises Exception: the guest stays as it is
        """

    def describe_copies(self, disks: list[dict[str, Any]]) -> None:
        """Source: :meth:`describe_disks` of a cold migration or resize.

        They have been copied, and may not be where they are said to be.
        """

    def arriving_cold(
        self, instance: Any, disks: list[dict[str, Any]],
    ) -> contextlib.AbstractContextManager[None]:
        """Destination: :meth:`arriving` of a cold migration or resize.

        :param disks: what the source described
        """
        return contextlib.nullcontext()

    def complete_disks(
        self, instance: Any, instance_dir: str, source: str,
    ) -> None:
        """Destination: see to the disks that were copied to it.

        Not called when both hosts share them.

        :param source: where to fetch what is missing
        """

    # -- the guest is stopped, or started again -----------------------------

    def stopping(self, instance: Any, host: Any) -> None:
        """Either host: the guest will be stopped, if it runs.

        :param host: nova.virt.libvirt.host.Host, the connection to libvirt
        :raises Exception: the guest stays as it is
        """

    def restarting(
        self, driver: Any, context: Any, instance: Any, network_info: Any,
        block_device_info: Any,
    ) -> None:
        """Either host: the guest will be stopped, if it runs, and started.

        :param driver: the LibvirtDriver
        :param block_device_info: as Nova gets it; may be None
        :raises Exception: the guest stays as it is
        """
