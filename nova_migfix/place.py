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

"""Find a guest after a live migration whose outcome is in doubt.

The state of the guest on the source decides, and the destination's
nova-compute if that state is ambiguous. No answer is never taken for a
negative one.

Source of the rules: ``qemuMigrationSrcRecover`` in libvirt, and the states in
which a killed, a stopped and a migrated guest were seen with libvirt 9.
"""

from __future__ import annotations

import enum
import time
from typing import Any

from nova.compute import power_state
from nova.compute import vm_states
from nova import exception
from nova.i18n import _
from nova import objects
from nova.virt import event as virtevent
from nova.virt.libvirt import guest as libvirt_guest
from oslo_log import log as logging

LOG = logging.getLogger(__name__)

# Seconds between two questions to libvirt or to the destination.
_INTERVAL = 5
# Seconds for which libvirt or the destination may be silent: it may restart.
_PATIENCE = 300
# Seconds after which no call of a failed migration can still reach the
# destination: by default libvirt closes a silent connection after 30.
_CERTAINTY = 40

#: VIR_DOMAIN_SHUTOFF_MIGRATED, of virDomainShutoffReason
MIGRATED = 4
# Reasons of virDomainPausedReason for which libvirt leaves a guest on the
# source that may run on the destination: UNKNOWN and MIGRATION
_SWITCHING = frozenset((0, 2))
#: the same for post-copy that runs, and that was interrupted (POSTCOPY and
#: POSTCOPY_FAILED): a guest that runs on the destination may still need memory
#: of the source
POST_COPY, POST_COPY_FAILED = 12, 13


class Place(enum.Enum):
    """The place of a guest after a migration."""

    SOURCE = 'active on the source'
    OFF = 'off, on the source'
    DESTINATION = 'on the destination'
    DELETED = 'deleted with its server'


class PlaceUnknown(exception.NovaException):
    """Neither host can say where the guest is."""

    msg_fmt = _(
        'It is unknown whether instance %(uuid)s has arrived on %(dest)s: '
        '%(reason)s. All its files are kept on both hosts. Run "virsh list '
        '--all" on both, and correct the host and the state of the instance '
        'as the documentation of nova-migfix describes (Administration, '
        'Repair).')


class DestinationSilent(PlaceUnknown):
    """Only the destination can say where the guest is, and it is silent."""


def find(
    driver: Any, context: Any, instance: Any, record: Any,
    has_started: bool = True,
) -> Place:
    """Find a guest, and leave it on one host only.

    Waits until libvirt responds and has no migration job for the guest, except
    one that has failed in post-copy: it does not end by itself. A guest that
    libvirt has left paused is stopped if it runs on the destination, and
    resumed if it is not there.

    :param driver: the LibvirtDriver of the source
    :param instance: nova.objects.Instance, on the source
    :param record: nova.objects.Migration
    :param has_started: whether libvirt was asked to migrate an active guest
    :raises PlaceUnknown: neither host can say where the guest is
    """
    return _Search(driver, context, instance, record, has_started).find()


def runs_on(
    driver: Any, context: Any, instance: Any, dest: str,
) -> bool | None:
    """Ask the destination whether the guest runs there.

    Each release of nova-compute answers this call.

    :param driver: the LibvirtDriver of the source
    :param instance: nova.objects.Instance, on the source
    :param dest: host name of the destination's nova-compute
    :returns: None if that is unknown
    """
    there = instance.obj_clone()
    there.host = dest
    rpcapi = driver.virtapi._compute.compute_rpcapi
    try:
        rpcapi.get_instance_diagnostics(context, there)
    except exception.InstanceInvalidState:
        return False
    except Exception as error:
        LOG.warning('%(dest)s does not say whether the guest runs there: '
                    '%(error)s', {'dest': dest, 'error': error},
                    instance=instance)
        return None
    return True


def report_off(driver: Any, instance: Any) -> None:
    """Report that a guest is off, so that Nova makes the instance SHUTOFF.

    Nova has ignored the event of libvirt while the guest was migrating.

    :param driver: the LibvirtDriver
    :param instance: nova.objects.Instance
    """
    driver.emit_event(virtevent.LifecycleEvent(
        instance.uuid, virtevent.EVENT_LIFECYCLE_STOPPED))


def _post_copy_has_failed(guest: Any) -> bool:
    """Return whether libvirt keeps a job only for the case of a resume."""
    paused = libvirt_guest.libvirt.VIR_DOMAIN_PAUSED
    return bool(guest._domain.state()[:2] == [paused, POST_COPY_FAILED])


class _Search:

    def __init__(self, driver: Any, context: Any, instance: Any, record: Any,
                 has_started: bool) -> None:
        self._driver = driver
        self._context = context
        self._instance = instance
        self._record = record
        self._dest = record.dest_compute
        self._has_started = has_started

    def find(self) -> Place:
        guest, state = self._guest_on_source()
        if guest is None:
            return self._place_of_undefined()
        if state == power_state.PAUSED:
            return self._place_of_paused(guest)
        if guest.is_active():
            return Place.SOURCE
        return self._place_of_inactive(guest)

    def _guest_on_source(self) -> tuple[Any, Any]:
        """Wait until libvirt responds and has no job for the guest.

        :returns: nova.virt.libvirt.guest.Guest and its nova.compute
            power_state; None and None if it is not defined
        :raises PlaceUnknown: libvirt does not respond
        """
        libvirt = libvirt_guest.libvirt
        silent_since = time.monotonic()
        while True:
            try:
                guest = self._driver._host.get_guest(self._instance)
                state = guest.get_power_state(self._driver._host)
                job = guest.get_job_info().type
                if (job != libvirt.VIR_DOMAIN_JOB_UNBOUNDED
                        or _post_copy_has_failed(guest)):
                    return guest, state
                silent_since = time.monotonic()
                problem = _('its migration job has not ended')
            except exception.InstanceNotFound:
                return None, None
            except (libvirt.libvirtError, exception.NovaException) as error:
                problem = str(error)
            if time.monotonic() - silent_since > _PATIENCE:
                raise self._unknown(problem)
            LOG.warning('The place of the guest is not yet known: %s',
                        problem, instance=self._instance)
            time.sleep(_INTERVAL)

    def _place_of_undefined(self) -> Place:
        if not self._has_started:
            return Place.OFF
        # libvirt undefines it after a success only, also in post-copy.
        if self._runs_on_destination():
            return Place.DESTINATION
        # Nova undefines the domain before it deletes the instance.
        if self._is_deleted():
            return Place.DELETED
        raise self._unknown(_('it is not defined on %s')
                            % self._instance.host)

    def _place_of_inactive(self, guest: Any) -> Place:
        if not self._has_started:
            return Place.OFF
        if guest._domain.state()[1] == MIGRATED:
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
        if reason in (POST_COPY, POST_COPY_FAILED):
            self._require_no_post_copy(has_failed=True)
        if self._is_paused_by_owner or reason not in _SWITCHING:
            return Place.SOURCE
        if self._runs_on_destination():
            # Nova deletes its disks next.
            guest.poweroff()
            return Place.DESTINATION
        guest.resume()
        return Place.SOURCE

    def _is_deleted(self) -> bool:
        try:
            objects.Instance.get_by_uuid(self._context, self._instance.uuid)
        except exception.InstanceNotFound:
            return True
        except Exception as error:
            LOG.debug('Whether the server was deleted is unknown: %s', error,
                      instance=self._instance)
        return False

    @property
    def _is_paused_by_owner(self) -> bool:
        return bool(self._instance.vm_state == vm_states.PAUSED)

    def _require_no_post_copy(self, has_failed: bool = False) -> None:
        if has_failed or self._record.status == 'running (post-copy)':
            raise self._unknown(_(
                'post-copy failed, so that either host may have memory that '
                'the other one lacks'))

    def _runs_on_destination(self) -> bool:
        """Ask the destination until its answer is certain.

        :raises PlaceUnknown: it does not respond
        """
        begin = time.monotonic()
        negative_since = None
        while time.monotonic() - begin < _PATIENCE:
            answer = runs_on(
                self._driver, self._context, self._instance, self._dest)
            if answer:
                return True
            if answer is None:
                negative_since = None
            elif negative_since is None:
                negative_since = time.monotonic()
            elif time.monotonic() - negative_since >= _CERTAINTY:
                return False
            time.sleep(_INTERVAL)
        raise self._unknown(_('%s does not answer') % self._dest,
                            DestinationSilent)

    def _unknown(
        self, reason: str, kind: type[PlaceUnknown] = PlaceUnknown,
    ) -> PlaceUnknown:
        return kind(uuid=self._instance.uuid, dest=self._dest, reason=reason)
