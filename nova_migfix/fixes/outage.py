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

"""Keep track of a live migration while services are down.

A live migration takes minutes or hours, and Nova's monitor saves statistics
through the conductor every few seconds. If the conductor, the database or the
message broker does not answer, the monitor ends with an error and aborts the
migration; an abort that fails is ignored, and the guest arrives on a host that
the database does not name (LP 1905944). If it happens at the end, Nova deletes
the files on the source and then cannot save the new host (LP 1628606). If the
destination's nova-compute restarts in that moment, the instance goes to ERROR.

The fix starts the monitor again after an error, as long as Nova has not begun
to finish the migration or to roll it back. Before Nova does either, the fix
waits until the conductor and the database answer. It repeats the last call to
the destination until that call has succeeded. If that fails all the same, the
fix saves the new host.

An outage extends ``[libvirt] live_migration_completion_timeout``: the monitor
counts from its start.
"""

from __future__ import annotations

import collections
import functools
import time
from typing import Any

from nova.compute import task_states
from nova import exception
from nova import objects
from oslo_log import log as logging
import oslo_messaging

from nova_migfix.fixes import base
from nova_migfix import migration
from nova_migfix import nova_release
from nova_migfix import place

LOG = logging.getLogger(__name__)

# Seconds between two attempts.
_INTERVAL = 5
# Seconds for which the destination may be silent after the arrival, and for
# which the monitor may fail after the end of libvirt's call.
_PATIENCE = 600

#: errors of a call that may or may not have had its effect
_NO_ANSWER = (oslo_messaging.MessagingTimeout,
              oslo_messaging.MessageDeliveryFailure)


class Outage(base.Fix):
    name = 'outage'
    bug = ('an outage makes Nova lose track of a live migration '
           '(LP 1905944, LP 1628606)')

    def live_migration_monitor(
        self, driver: Any, outgoing: migration.Outgoing,
    ) -> None:
        if outgoing.operation is None:
            return
        watch = _Watch(driver, outgoing, outgoing.operation)
        outgoing.monitor = watch.monitor
        outgoing.post_method = watch.post
        outgoing.recover_method = watch.recover


class _Watch:
    """Nova's monitor and the functions that it calls, made persistent."""

    def __init__(self, driver: Any, outgoing: migration.Outgoing,
                 operation: migration.Operation) -> None:
        self._driver = driver
        self._outgoing = outgoing
        self._operation = operation
        self._context = outgoing.context
        self._instance = outgoing.instance
        self._monitor = outgoing.monitor
        self._post_method = outgoing.post_method
        self._recover_method = outgoing.recover_method
        self._ends = False

    def monitor(self) -> None:
        """Monitor the migration, again after each error.

        :raises Exception: Nova has begun to end the migration, the guest's
            place is unknown, or the instance was deleted
        """
        ended_at = None
        while True:
            try:
                self._monitor()
                return
            except (place.PlaceUnknown, exception.InstanceNotFound):
                raise
            except Exception as error:
                if self._operation.has_ended:
                    ended_at = ended_at or time.monotonic()
                if self._ends or (
                        ended_at and time.monotonic() - ended_at > _PATIENCE):
                    raise
                LOG.warning('The monitor of the live migration has failed and '
                            'starts again (%(bug)s): %(error)s', {
                                'bug': Outage.bug, 'error': error},
                            instance=self._instance)
            time.sleep(_INTERVAL)
            # Nova's monitor may have removed its list of pending requests.
            self._driver.active_migrations.setdefault(
                self._instance.uuid, collections.deque())

    def post(self, *args: Any, **kwargs: Any) -> None:
        """Finish the migration of a guest that has arrived."""
        self._ends = True
        _read_when_possible(self._context, self._instance)
        _repeat_last_call(self._driver.virtapi._compute.compute_rpcapi)
        try:
            self._post_method(*args, **kwargs)
        except Exception:
            self._save_new_host()
            raise
        if nova_release.major() == 29:
            # It ignores an error of the destination.
            self._save_new_host()

    def recover(self, *args: Any, **kwargs: Any) -> None:
        """Roll the migration back."""
        self._ends = True
        _read_when_possible(self._context, self._instance)
        self._recover_method(*args, **kwargs)

    def _save_new_host(self) -> None:
        """Save the host if Nova, which does the same, could not."""
        instance = _read_when_possible(self._context, self._instance)
        dest = self._outgoing.dest
        if (instance is None or instance.host == dest
                or instance.task_state != task_states.MIGRATING):
            return
        node = objects.ComputeNode.get_first_node_by_host_for_old_compat(
            self._context, dest)
        instance.apply_migration_context()
        instance.drop_migration_context()
        instance.host = dest
        instance.node = node.hypervisor_hostname
        instance.compute_id = node.id
        instance.task_state = None
        instance.progress = 0
        instance.save()
        LOG.info('Saved the new host %(host)s after an outage (%(bug)s)', {
            'host': dest, 'bug': Outage.bug}, instance=instance)


def _read_when_possible(context: Any, instance: Any) -> Any:
    """Wait until the conductor returns the instance from the database.

    :returns: nova.objects.Instance, None if it was deleted
    """
    while True:
        try:
            return objects.Instance.get_by_uuid(
                context, instance.uuid, expected_attrs=['migration_context'])
        except exception.InstanceNotFound:
            return None
        except Exception as error:
            LOG.warning('The end of the live migration has to wait for the '
                        'conductor and the database (%(bug)s): %(error)s', {
                            'bug': Outage.bug, 'error': error},
                        instance=instance)
        time.sleep(_INTERVAL)


def _repeat_last_call(rpcapi: Any) -> None:
    """Make *rpcapi* repeat the last call to a destination until it answers."""
    call = rpcapi.post_live_migration_at_destination
    if hasattr(call, 'repeats'):
        return

    @functools.wraps(call)
    def repeat(ctxt: Any, instance: Any, block_migration: Any,
               host: Any) -> Any:
        begin = time.monotonic()
        while True:
            try:
                return call(ctxt, instance, block_migration, host)
            except _NO_ANSWER as error:
                found = _read_when_possible(ctxt, instance)
                if found and found.host == host:
                    return None
                if time.monotonic() - begin > _PATIENCE:
                    raise
                LOG.warning('%(host)s does not answer after the arrival and '
                            'is called again (%(bug)s): %(error)s', {
                                'host': host, 'bug': Outage.bug,
                                'error': error}, instance=instance)
            time.sleep(_INTERVAL)

    repeat.repeats = True       # type: ignore[attr-defined]
    rpcapi.post_live_migration_at_destination = repeat
