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

"""Decide how an interrupted live migration ends.

The status of the record decides, then the place of the guest.
"""

from __future__ import annotations

import datetime

from nova import exception
from nova.i18n import _
from nova.virt.libvirt import guest as libvirt_guest
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import timeutils

from nova_migfix import action
from nova_migfix.fixes import post_copy
from nova_migfix.fixes.restart import finish
from nova_migfix.fixes.restart import interrupted
from nova_migfix.fixes.restart import rollback
from nova_migfix import place

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

_POST_COPY = 'running (post-copy)'
# statuses of a live migration that has not ended
_IN_PROGRESS = frozenset(
    ('accepted', 'queued', 'preparing', 'running', _POST_COPY))


class NotSettled(Exception):
    """The migration cannot be settled yet, and nothing has failed."""


def settle(migration: interrupted.Migration, status: str) -> None:
    """Finish the migration or roll it back.

    :param status: of the record when nova-compute started
    :raises NotSettled: try again after some seconds
    :raises Exception: try again later
    """
    if status in ('queued', 'cancelled'):
        rollback.cancel(migration, 'cancelled')
    elif status == 'preparing' or (
            status == 'error' and migration.entry
            and not migration.entry.is_prepared):
        if status == 'preparing':
            _wait_for_preparation(migration)
        rollback.roll_back(migration, place.find(
            migration.driver, migration.context, migration.instance,
            migration.record, has_started=False), is_running=False)
    else:
        if status != _POST_COPY:
            _abort_job(migration)
        if migration.entry:
            post_copy.go_on(migration.driver, migration.context,
                            migration.instance, migration.entry.migrate_data)
        try:
            _settle_at(migration, place.find(
                migration.driver, migration.context, migration.instance,
                migration.record))
        except place.DestinationSilent:
            raise
        except place.PlaceUnknown as unknown:
            _give_up(migration, unknown)


def settle_record(migration: interrupted.Migration) -> None:
    """Complete the record of an instance that is not MIGRATING here."""
    record, instance = migration.record, migration.instance
    if record.status not in _IN_PROGRESS:
        return
    if instance.host == migration.dest:
        migration.complete()
    else:
        migration.set_status('error')
    LOG.info('The instance is on %(host)s after live migration %(id)s to '
             '%(dest)s; its record is now %(status)s', {
                 'host': instance.host, 'id': record.id,
                 'dest': migration.dest, 'status': record.status},
             instance=instance)


def _wait_for_preparation(migration: interrupted.Migration) -> None:
    """Let no rollback overtake the preparation of the destination.

    :raises NotSettled: it may still prepare
    """
    if migration.preparations and all(
            event.finish_time for event in migration.preparations):
        return
    begin = migration.record.updated_at or migration.record.created_at
    age = timeutils.utcnow(with_timezone=True) - begin
    # After that time the message broker drops the call.
    if age < datetime.timedelta(seconds=CONF.long_rpc_timeout):
        raise NotSettled(
            _('%s has not finished its preparation') % migration.dest)


def _abort_job(migration: interrupted.Migration) -> None:
    libvirt = libvirt_guest.libvirt
    try:
        guest = migration.driver._host.get_guest(migration.instance)
        if guest.get_job_info().type == libvirt.VIR_DOMAIN_JOB_UNBOUNDED:
            guest.abort_job()
    except (libvirt.libvirtError, exception.NovaException) as error:
        LOG.info('The interrupted live migration is not aborted: %s',
                 error, instance=migration.instance)


def _settle_at(migration: interrupted.Migration, found: place.Place) -> None:
    if found is place.Place.DESTINATION:
        finish.finish(migration)
    else:
        rollback.roll_back(migration, found, is_running=True)


def _give_up(migration: interrupted.Migration,
             unknown: place.PlaceUnknown) -> None:
    action.record_fault(migration.context, migration.instance, unknown)
    migration.set_error_state()
    LOG.error('The interrupted live migration is not settled: %s',
              unknown, instance=migration.instance)
