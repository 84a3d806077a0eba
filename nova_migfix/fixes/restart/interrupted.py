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

"""An interrupted live migration, as the database and the journal have it."""

from __future__ import annotations

from typing import Any

from nova import objects

from nova_migfix import journal

_ACTION = 'live-migration'
_PREPARATION = 'compute_pre_live_migration'


class Migration:
    """An interrupted live migration, in one attempt to settle it.

    :ivar entry: of the journal; None without a valid one
    :ivar preparations: events of the destination's preparation
    :ivar resume_guests_state: Nova's method, which starts a guest that ran
        before its host booted
    """

    def __init__(self, driver: Any, manager: Any, resume_guests_state: Any,
                 context: Any, instance: Any, record: Any) -> None:
        self.driver = driver
        self.manager = manager
        self.resume_guests_state = resume_guests_state
        self.context = context
        self.instance = instance
        self.record = record
        self.dest = record.dest_compute
        self.preparations: list[Any] = []
        self._find_action()
        self.entry = self._read_entry()

    def _find_action(self) -> None:
        """Let events belong to the action that began the migration."""
        found = max(
            (one for one in objects.InstanceActionList.get_by_instance_uuid(
                self.context, self.instance.uuid) if one.action == _ACTION),
            key=lambda one: one.id, default=None)
        if found:
            self.context.request_id = found.request_id
            self.preparations = [
                event for event in objects.InstanceActionEventList
                .get_by_action(self.context, found.id)
                if event.event == _PREPARATION]

    def _read_entry(self) -> journal.Entry | None:
        entry = journal.read(
            self.manager.host, self.instance.uuid, self.context)
        if entry and (entry.migration, entry.dest) == (
                self.record.id, self.dest):
            entry.migrate_data.migration = self.record
            return entry
        return None

    def set_status(self, status: str) -> None:
        """Save a new status of the record."""
        self.record.status = status
        self.record.save()

    def complete(self) -> None:
        """Free the source's resources, and complete the record."""
        self.manager._delete_allocation_after_move(
            self.context, self.instance, self.record)
        self.set_status('completed')

    def set_error_state(self) -> None:
        """Set the record to error, and the instance to ERROR."""
        self.set_status('error')
        self.manager._set_instance_obj_error_state(
            self.instance, clean_task_state=True)
