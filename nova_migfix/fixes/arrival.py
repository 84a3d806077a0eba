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
switches off, counts as arrived. The same is true of a guest that is off before
its migration begins, as migrations wait in a queue. Nova then deletes its disks
on the source and its volume attachments there. The destination has only half
of the disks, or blank ones.

The fix gives Nova's monitor a guest whose job ends when libvirt's call ends,
and no sooner. A call that succeeds proves the arrival: in a peer-to-peer
migration the source's libvirt returns success only after the destination has
reported a running domain. A call that fails proves nothing, as the failure may
be that of the connection. Then the state of the guest on the source decides,
and the destination's nova-compute where that state is ambiguous.

If the outcome stays unknown, Nova deletes nothing on either host: the instance
goes to ERROR, and the fault has the reason and the remedy.

Source of the rules: ``qemuMigrationSrcPerformPeer2Peer3`` and
``qemuMigrationSrcRecover`` in libvirt; ``Guest.get_job_info`` in Nova.
"""

from __future__ import annotations

import enum
import time
from typing import Any

from nova.compute import power_state
from nova.compute import utils as compute_utils
from nova.compute import vm_states
from nova import exception
from nova.i18n import _
from nova.virt import event as virtevent
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging

from nova_migfix import action
from nova_migfix.fixes import base
from nova_migfix import migration

LOG = logging.getLogger(__name__)

# Seconds between two questions to libvirt or to the destination.
_INTERVAL = 5
# Seconds for which a destination may be silent: it may be restarting.
_PATIENCE = 300
# Seconds after which no call of a failed migration can still reach the
# destination: by default libvirt closes a silent connection after 30.
_CERTAINTY = 40

# VIR_ERR_OPERATION_ABORTED
_ABORTED = 78
# VIR_DOMAIN_SHUTOFF_MIGRATED, of virDomainShutoffReason
_MIGRATED = 4
# Reasons of virDomainPausedReason for which libvirt leaves a guest on the
# source that may run on the destination: UNKNOWN and MIGRATION
_SWITCHING = frozenset((0, 2))
# The same for post-copy: POSTCOPY and POSTCOPY_FAILED. A guest that runs on
# the destination may still need memory of the source.
_POST_COPY = frozenset((12, 13))


class Place(enum.Enum):
    """The place of a guest after a migration."""

    SOURCE = 'active on the source'
    OFF = 'off, on the source'
    DESTINATION = 'on the destination'


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
        self._place: Place | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guest, name)

    # -- Nova's monitor calls these ------------------------------------------

    def get_job_info(self) -> Any:
        """Return Nova's JobInfo, with a final type only after the call.

        :raises MigrationError: it is unknown whether the guest has arrived
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

        :raises MigrationError: see get_job_info
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
        self._recover_method(context, instance, dest, migrate_data, **kwargs)
        if self._place is Place.OFF:
            # Nova has ignored this event while the guest was migrating.
            self._driver.emit_event(virtevent.LifecycleEvent(
                instance.uuid, virtevent.EVENT_LIFECYCLE_STOPPED))
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
        self._place = self._find_place()
        LOG.info('libvirt has ended the migration with an error (%(error)s), '
                 'and the guest is %(place)s (%(bug)s)', {
                     'error': error, 'place': self._place.value,
                     'bug': Arrival.bug}, instance=self._instance)
        if self._place is Place.DESTINATION:
            return libvirt.VIR_DOMAIN_JOB_COMPLETED
        if (self._is_cancelled or isinstance(error, libvirt.libvirtError)
                and error.get_error_code() == _ABORTED):
            return libvirt.VIR_DOMAIN_JOB_CANCELLED
        return libvirt.VIR_DOMAIN_JOB_FAILED

    def _find_place(self) -> Place:
        guest = self._guest_on_source()
        if guest is None:
            return self._place_of_undefined()
        if not guest.is_active():
            return self._place_of_inactive(guest)
        if guest.get_power_state(self._driver._host) == power_state.PAUSED:
            return self._place_of_paused(guest)
        return Place.SOURCE

    def _guest_on_source(self) -> Any:
        """Wait until libvirt responds and has no job for the guest.

        :returns: nova.virt.libvirt.guest.Guest, None if it is not defined
        """
        libvirt = libvirt_guest.libvirt
        while True:
            try:
                guest = self._driver._host.get_guest(self._instance)
                job = guest.get_job_info().type
                if job != libvirt.VIR_DOMAIN_JOB_UNBOUNDED:
                    return guest
                problem = _('its migration job has not ended')
            except exception.InstanceNotFound:
                return None
            except (libvirt.libvirtError, exception.NovaException) as error:
                problem = str(error)
            LOG.warning('The call of libvirt has ended, but not the live '
                        'migration: %s. Waiting.', problem,
                        instance=self._instance)
            time.sleep(_INTERVAL)

    def _place_of_undefined(self) -> Place:
        if not self._operation.has_started:
            return Place.OFF
        self._require_no_post_copy()
        if self._runs_on_destination():
            return Place.DESTINATION
        raise self._unknown(_('it is not defined on %s')
                            % self._instance.host)

    def _place_of_inactive(self, guest: Any) -> Place:
        if not self._operation.has_started:
            return Place.OFF
        if guest._domain.state()[1] == _MIGRATED:
            return Place.DESTINATION
        self._require_no_post_copy()
        if self._runs_on_destination():
            return Place.DESTINATION
        if self._is_paused_by_owner:
            raise self._unknown(_('it is off on %s, and was paused')
                                % self._instance.host)
        return Place.OFF

    def _place_of_paused(self, guest: Any) -> Place:
        reason = guest._domain.state()[1]
        if reason in _POST_COPY:
            self._require_no_post_copy(has_failed=True)
        if self._is_paused_by_owner or reason not in _SWITCHING:
            return Place.SOURCE
        if self._runs_on_destination():
            # Nova deletes its disks next.
            guest.poweroff()
            return Place.DESTINATION
        guest.resume()
        return Place.SOURCE

    @property
    def _is_paused_by_owner(self) -> bool:
        return bool(self._instance.vm_state == vm_states.PAUSED)

    def _require_no_post_copy(self, has_failed: bool = False) -> None:
        record = self._outgoing.migrate_data.migration.status
        if has_failed or record == 'running (post-copy)':
            raise self._unknown(_(
                'post-copy failed, so that either host may have memory that '
                'the other one lacks'))

    def _runs_on_destination(self) -> bool:
        """Ask the destination until its answer is certain.

        :raises MigrationError: it does not respond
        """
        begin = time.monotonic()
        negative_since = None
        while time.monotonic() - begin < _PATIENCE:
            answer = self._ask_destination()
            if answer:
                return True
            if answer is None:
                negative_since = None
            elif negative_since is None:
                negative_since = time.monotonic()
            elif time.monotonic() - negative_since >= _CERTAINTY:
                return False
            time.sleep(_INTERVAL)
        raise self._unknown(_('%s does not answer') % self._outgoing.dest)

    def _ask_destination(self) -> bool | None:
        """Return whether the guest runs there, None if that is unknown.

        Each release of nova-compute answers this call.
        """
        there = self._instance.obj_clone()
        there.host = self._outgoing.dest
        rpcapi = self._driver.virtapi._compute.compute_rpcapi
        try:
            rpcapi.get_instance_diagnostics(self._outgoing.context, there)
        except exception.InstanceInvalidState:
            return False
        except Exception as error:
            LOG.warning('%(dest)s does not say whether the guest runs there: '
                        '%(error)s', {'dest': there.host, 'error': error},
                        instance=self._instance)
            return None
        return True

    def _unknown(self, reason: str) -> exception.MigrationError:
        """Return the error that makes Nova keep all files; record it."""
        instance = self._instance
        error = exception.MigrationError(reason=_(
            'it is unknown whether instance %(uuid)s has arrived on %(dest)s: '
            '%(reason)s. All its files are kept on both hosts. Run "virsh '
            'list --all" on both, and correct the host and the state of the '
            'instance as the documentation of nova-migfix describes '
            '(Administration, Repair).') % {
                'uuid': instance.uuid, 'dest': self._outgoing.dest,
                'reason': reason})
        action.record_failure(self._outgoing.context, instance, error)
        compute_utils.add_instance_fault_from_exc(
            self._outgoing.context, instance, error)
        return error
