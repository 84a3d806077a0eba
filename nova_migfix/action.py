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

"""Reasons as events of an instance's action.

The migration record has no field for a reason. ``openstack server event show``
shows the events of the action that began the migration.
"""

from __future__ import annotations

from typing import Any

from nova.compute import utils as compute_utils
from nova import exception
from oslo_log import log as logging

LOG = logging.getLogger(__name__)

EVENT = 'compute__live_migration_operation'


def record_failure(context: Any, instance: Any, error: Exception) -> None:
    """Record an error, with message and traceback, as a failed event.

    A failure to do so is logged only.

    :param context: of the request that began the action
    :param instance: nova.objects.Instance
    """
    reason = error
    if not isinstance(error, exception.MigrationError):
        # Of other exceptions the event records the class only.
        reason = exception.MigrationError(reason=str(error))
        reason.__cause__ = error
    try:
        with compute_utils.EventReporter(
                context, EVENT, instance.host, instance.uuid):
            raise reason
    except Exception as raised:
        if raised is not reason:
            LOG.warning('The reason for the failed live migration could '
                        'not be recorded: %s', raised, instance=instance)


def record_fault(context: Any, instance: Any, error: Exception) -> None:
    """Record an error as a failed event and as the fault of the instance.

    Parameters are those of :func:`record_failure`.
    """
    record_failure(context, instance, error)
    compute_utils.add_instance_fault_from_exc(context, instance, error)
