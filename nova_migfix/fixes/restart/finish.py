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

"""Finish an interrupted live migration whose guest has arrived."""

from __future__ import annotations

from nova import exception
from nova.i18n import _
from nova import objects
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from nova_migfix import action
from nova_migfix.fixes.restart import interrupted
from nova_migfix import journal

LOG = logging.getLogger(__name__)


def finish(migration: interrupted.Migration) -> None:
    """Finish the migration as Nova does after each arrival.

    Without an entry of the journal nothing is deleted on the source.

    :raises Exception: try again later
    """
    if migration.entry:
        _finish_with(migration, migration.entry)
    else:
        _finish_without_entry(migration)


def _finish_with(
    migration: interrupted.Migration, entry: journal.Entry,
) -> None:
    instance, data = migration.instance, entry.migrate_data
    try:
        migration.manager._post_live_migration_update_host(
            migration.context, instance, migration.dest,
            'block_migration' in data and data.block_migration,
            migrate_data=data, source_bdms=entry.source_bdms)
    except Exception as error:
        instance.refresh()
        if instance.host != migration.dest:
            raise
        # As Nova does after an arrival whose end has failed.
        action.record_failure(migration.context, instance, error)
        migration.set_error_state()
        return
    _require_new_host(migration)
    _log_arrival(migration)


def _finish_without_entry(migration: interrupted.Migration) -> None:
    manager, instance = migration.manager, migration.instance
    manager.network_api.migrate_instance_start(
        migration.context, instance, objects.Migration(
            source_compute=manager.host, dest_compute=migration.dest))
    manager.compute_rpcapi.post_live_migration_at_destination(
        migration.context, instance, False, migration.dest)
    _require_new_host(migration)
    migration.complete()
    _log_arrival(migration)
    LOG.warning(
        'The data to clean up after the interrupted live migration is '
        'missing. The files of the guest, as far as its hosts do not share '
        'them, remain in %s, and connections of its volumes remain on this '
        'host.', libvirt_utils.get_instance_path(instance), instance=instance)


def _require_new_host(migration: interrupted.Migration) -> None:
    # Nova 29 ignores an error of the destination.
    migration.instance.refresh()
    if migration.instance.host != migration.dest:
        raise exception.MigrationError(reason=_(
            '%s has not completed the migration') % migration.dest)


def _log_arrival(migration: interrupted.Migration) -> None:
    LOG.info('The interrupted live migration is completed: the guest had '
             'arrived on %s', migration.dest, instance=migration.instance)
