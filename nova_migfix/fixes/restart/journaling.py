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

"""Keep the journal of a live migration, and see to its end."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from nova.compute import task_states
from nova import context as nova_context
from nova import exception
from nova import objects
from oslo_log import log as logging

from nova_migfix import journal

LOG = logging.getLogger(__name__)


def wrap(manager: Any, settle: Callable[[Any, Any], None]) -> None:
    """Keep an entry of the journal from the preparation to the end.

    :param settle: called with the instance and the record of a migration that
        Nova has left without an end
    """
    prepare = manager._do_pre_live_migration_from_source
    migrate = manager._do_live_migration

    @functools.wraps(prepare)
    def prepare_with_journal(
        context: Any, dest: Any, instance: Any, block_migration: Any,
        migration: Any, migrate_data: Any, source_bdms: Any,
    ) -> Any:
        entry = journal.Entry(
            instance.uuid, migration.id, dest, False, migrate_data,
            source_bdms)
        _write(manager, instance, entry)
        data = prepare(context, dest, instance, block_migration, migration,
                       migrate_data, source_bdms)
        _write(manager, instance, dataclasses.replace(
            entry, is_prepared=True, migrate_data=data))
        return data

    @functools.wraps(migrate)
    def migrate_with_journal(
        context: Any, dest: Any, instance: Any, block_migration: Any,
        migration: Any, migrate_data: Any,
    ) -> None:
        try:
            migrate(context, dest, instance, block_migration, migration,
                    migrate_data)
        except Exception:
            end(instance, migration)
            raise
        # The end of the process, which is no Exception, leaves the entry.
        end(instance, migration)

    def end(instance: Any, migration: Any) -> None:
        if _is_settled(manager, instance):
            journal.remove(manager.host, instance.uuid)
        else:
            settle(instance, migration)

    manager._do_pre_live_migration_from_source = prepare_with_journal
    manager._do_live_migration = migrate_with_journal


def _write(manager: Any, instance: Any, entry: journal.Entry) -> None:
    try:
        journal.write(manager.host, entry)
    except Exception as error:
        LOG.warning('The data of the live migration could not be kept, so '
                    'that a restart of nova-compute cannot finish it or roll '
                    'it back completely: %s', error, instance=instance)


def _is_settled(manager: Any, instance: Any) -> bool:
    try:
        now = objects.Instance.get_by_uuid(
            nova_context.get_admin_context(), instance.uuid)
    except exception.InstanceNotFound:
        return True
    except Exception as error:
        LOG.debug('The state of the instance after its live migration is '
                  'unknown: %s', error, instance=instance)
        return False
    return not migrates_from(manager, now)


def migrates_from(manager: Any, instance: Any) -> bool:
    return bool(instance.host == manager.host
                and instance.task_state == task_states.MIGRATING)
