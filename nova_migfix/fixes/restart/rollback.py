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

"""Roll back an interrupted live migration whose guest is on its source."""

from __future__ import annotations

from nova.compute import power_state
from nova.compute import task_states
from nova import exception
from nova.i18n import _
from nova.virt.libvirt import utils as libvirt_utils
from oslo_config import cfg
from oslo_log import log as logging

from nova_migfix import action
from nova_migfix.fixes.restart import destination
from nova_migfix.fixes.restart import interrupted
from nova_migfix import journal
from nova_migfix import place

LOG = logging.getLogger(__name__)
CONF = cfg.CONF


def cancel(migration: interrupted.Migration, status: str) -> None:
    """Roll back the changes that precede the preparation.

    As ``ComputeManager.live_migration_abort`` does for a queued migration;
    drops the claims on the destination too.

    :param status: new status of the record
    """
    manager, instance = migration.manager, migration.instance
    manager._revert_allocation(migration.context, instance, migration.record)
    if migration.dest:
        destination.drop_claims(
            manager, migration.context, instance, migration.dest)
        try:
            manager.network_api.setup_networks_on_host(
                migration.context, instance, host=migration.dest,
                teardown=True)
        except exception.PortBindingDeletionFailed as error:
            LOG.error('Inactive port bindings remain on %(dest)s: %(error)s',
                      {'dest': migration.dest, 'error': error},
                      instance=instance)
    instance.task_state = None
    instance.progress = 0
    instance.save(expected_task_state=[task_states.MIGRATING])
    migration.set_status(status)
    LOG.info('The interrupted live migration to %(dest)s is %(status)s, and '
             'the instance stays on %(host)s', {
                 'dest': migration.dest, 'status': status,
                 'host': instance.host}, instance=instance)


def roll_back(migration: interrupted.Migration, found: place.Place,
              is_running: bool) -> None:
    """Roll back on both hosts.

    Without an entry of the journal nothing is deleted on the destination.

    :param found: SOURCE or OFF
    :param is_running: whether the destination has finished its preparation
    :raises Exception: try again later
    """
    if migration.entry:
        _roll_back_with(migration, migration.entry, is_running)
        LOG.info('The interrupted live migration to %(dest)s is rolled back, '
                 'and the guest is %(place)s',
                 {'dest': migration.dest, 'place': found.value},
                 instance=migration.instance)
    else:
        cancel(migration, 'error')
        LOG.warning(
            'The data for a complete rollback of the interrupted live '
            'migration is missing. If %(dest)s has prepared for it, the '
            'directory %(path)s and connections of volumes remain there.',
            {'dest': migration.dest, 'path': libvirt_utils.get_instance_path(
                migration.instance)}, instance=migration.instance)
    if found is place.Place.OFF:
        _settle_off(migration)


def _roll_back_with(migration: interrupted.Migration, entry: journal.Entry,
                    is_running: bool) -> None:
    if is_running:
        migration.driver.rollback_live_migration_at_source(
            migration.context, migration.instance, entry.migrate_data)
    # The rest of a rollback is the same before libvirt was called.
    migration.manager._rollback_live_migration(
        migration.context, migration.instance, migration.dest,
        migrate_data=entry.migrate_data, source_bdms=entry.source_bdms,
        pre_live_migration=True)


def _settle_off(migration: interrupted.Migration) -> None:
    """Start the guest if its host has booted; otherwise it is SHUTOFF."""
    instance = migration.instance
    action.record_failure(
        migration.context, instance, exception.MigrationError(reason=_(
            'the guest stopped before it had arrived on %(dest)s. It is off, '
            'with its disks, on %(host)s.') % {
                'dest': migration.dest, 'host': instance.host}))
    if (CONF.resume_guests_state_on_host_boot
            and instance.power_state == power_state.RUNNING):
        migration.resume_guests_state(
            migration.context, instance, instance.get_network_info())
    else:
        place.report_off(migration.driver, instance)
