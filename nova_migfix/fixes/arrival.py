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

"""Take a guest for arrived only if its arrival is proven.

libvirt has no job for a guest that is off or undefined. Nova takes that error
for the end of a successful migration, and does not wait for libvirt's call to
return. So a guest whose QEMU is killed while it migrates, or that its owner
switches off, counts as arrived. The same is true of a guest that stops before
its migration begins, as migrations wait in a queue. Nova then deletes its
disks and volume attachments on the source. The destination has only half of
the disks, or blank ones.

The fix gives Nova's monitor a guest whose job ends when libvirt's call ends,
and no sooner. A call that succeeds proves the arrival: in a peer-to-peer
migration the source's libvirt returns success only after the destination has
reported a running domain. After a call that fails, :mod:`nova_migfix.place`
finds the guest.

If the server was deleted meanwhile, Nova leaves the disks on the destination,
as its rollback needs the instance in the database. The fix lets the
destination delete them.

If its place stays unknown, Nova deletes nothing on either host: the instance
goes to ERROR, and the fault has the reason and the remedy.

Source of the rules: ``qemuMigrationSrcPerformPeer2Peer3`` in libvirt and
``Guest.get_job_info`` in Nova.
"""

from __future__ import annotations

from typing import Any

from nova import exception
from nova.i18n import _
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging

from nova_migfix import action
from nova_migfix.fixes import base
from nova_migfix import migration
from nova_migfix import place

LOG = logging.getLogger(__name__)

# VIR_ERR_OPERATION_ABORTED
_ABORTED = 78


class Arrival(base.Fix):
    name = 'arrival'
    bug = 'a guest that dies during its live migration counts as arrived'

    def live_migration_monitor(
        self, driver: Any, outgoing: migration.Outgoing,
    ) -> None:
        if outgoing.operation:
            guest = _MonitoredGuest(driver, outgoing, outgoing.operation)
            outgoing.guest = guest
            outgoing.recover_method = guest.recover

    def live_migration_failed(
        self, context: Any, instance: Any, host: Any, migrate_data: Any,
        error: Exception, operation: migration.Operation,
    ) -> bool:
        # From Nova 32 on it raises the error of the operation once more, also
        # if the guest has arrived. Its attempt to abort the migration then
        # fails with another error, as the domain is gone.
        cause: BaseException | None = error
        while cause and cause is not operation.error:
            cause = cause.__context__
        return bool(cause and migrate_data.migration.status == 'completed')


class _MonitoredGuest:
    """A proxy for Nova's Guest: its job ends when libvirt's call has ended."""

    def __init__(
        self, driver: Any, outgoing: migration.Outgoing,
        operation: migration.Operation,
    ) -> None:
        self._driver = driver
        self._outgoing = outgoing
        self._instance = outgoing.instance
        self._guest = outgoing.guest
        self._recover_method = outgoing.recover_method
        self._operation = operation
        self._is_cancelled = False
        self._place: place.Place | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guest, name)

    # -- Nova's monitor calls these ------------------------------------------

    def get_job_info(self) -> Any:
        """Return Nova's JobInfo, with a final type only after the call.

        :raises PlaceUnknown: nothing must be deleted on either host
        """
        libvirt = libvirt_guest.libvirt
        if self._operation.has_ended:
            return libvirt_guest.JobInfo(type=self._final_type())
        try:
            info = self._guest.get_job_info()
        except libvirt.libvirtError as error:
            LOG.debug('libvirt does not report the job: %s', error,
                      instance=self._instance)
            return libvirt_guest.JobInfo()
        if info.type != libvirt.VIR_DOMAIN_JOB_UNBOUNDED:
            self._is_cancelled |= info.type == libvirt.VIR_DOMAIN_JOB_CANCELLED
            info.type = libvirt.VIR_DOMAIN_JOB_NONE
        return info

    def is_active(self) -> bool:
        """Return whether the guest has stayed on the source.

        Nova asks if the call has ended since ``get_job_info``.

        :raises PlaceUnknown: see get_job_info
        """
        completed = libvirt_guest.libvirt.VIR_DOMAIN_JOB_COMPLETED
        return bool(self._final_type() != completed)

    def abort_job(self) -> None:
        """Abort the migration, unless it has just ended.

        Nova's monitor would end with an error and leave the guest alone.
        """
        try:
            self._guest.abort_job()
        except libvirt_guest.libvirt.libvirtError as error:
            LOG.warning('libvirt does not abort the migration: %s', error,
                        instance=self._instance)

    def recover(
        self, context: Any, instance: Any, dest: str, migrate_data: Any,
        **kwargs: Any,
    ) -> None:
        """Roll the migration back; a guest that is off becomes SHUTOFF."""
        if self._place is place.Place.DELETED:
            _clean_up_destination(self._driver.virtapi._compute, context,
                                  instance, dest, migrate_data)
            return
        self._recover_method(context, instance, dest, migrate_data, **kwargs)
        if self._place is place.Place.OFF:
            place.report_off(self._driver, instance)
            action.record_failure(context, instance, exception.MigrationError(
                reason=_('the guest stopped before it had arrived on '
                         '%(dest)s: %(error)s. It is off, with its disks, on '
                         '%(host)s.') % {
                    'dest': dest, 'host': instance.host,
                    'error': self._operation.error}))

    # -- the place of the guest ----------------------------------------------

    def _final_type(self) -> Any:
        libvirt = libvirt_guest.libvirt
        error = self._operation.error
        if error is None:
            return libvirt.VIR_DOMAIN_JOB_COMPLETED
        self._place = self._find()
        LOG.info('libvirt has ended the migration with an error (%(error)s), '
                 'and the guest is %(place)s (%(bug)s)', {
                     'error': error, 'place': self._place.value,
                     'bug': Arrival.bug}, instance=self._instance)
        if self._place is place.Place.DESTINATION:
            return libvirt.VIR_DOMAIN_JOB_COMPLETED
        if (self._is_cancelled or isinstance(error, libvirt.libvirtError)
                and error.get_error_code() == _ABORTED):
            return libvirt.VIR_DOMAIN_JOB_CANCELLED
        return libvirt.VIR_DOMAIN_JOB_FAILED

    def _find(self) -> place.Place:
        context = self._outgoing.context
        try:
            return place.find(
                self._driver, context, self._instance,
                self._outgoing.migrate_data.migration,
                has_started=self._operation.has_started)
        except place.PlaceUnknown as unknown:
            action.record_fault(context, self._instance, unknown)
            raise


def _clean_up_destination(manager: Any, context: Any, instance: Any, dest: str,
                          migrate_data: Any) -> None:
    """End the migration of a server that was deleted.

    Its own allocations are deleted, and those of the migration are not.
    """
    needs_cleanup, destroy_disks = manager._live_migration_cleanup_flags(
        migrate_data)
    if needs_cleanup:
        manager.compute_rpcapi.rollback_live_migration_at_destination(
            context, instance, dest, destroy_disks=destroy_disks,
            migrate_data=migrate_data)
    record = migrate_data.migration
    manager.reportclient.delete_allocation_for_instance(context, record.uuid)
    record.status = 'failed'
    record.save()
    LOG.info('The server was deleted during its live migration, and %(dest)s '
             'deletes its files (%(bug)s)', {
                 'dest': dest, 'bug': Arrival.bug}, instance=instance)
