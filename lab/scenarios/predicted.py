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


"""Migrations that fail as nova-migfix-status predicts and explains.

No fix prevents such a failure: an operator has to repair a host. The guest
keeps running in any case. After the repair it arrives.
"""

from __future__ import annotations

import dataclasses

from lab import environments
from lab import guest
from lab import scenario
from lab import status


class Predicted(scenario.Scenario):
    """The base class of scenarios with such migrations."""

    variants = (environments.PLUGIN,)
    expected = {
        scenario.NEITHER: scenario.Fails(
            said=(), vm_state=scenario.ERROR_SINCE_32,
            text='fails as predicted'),
        scenario.BOTH: scenario.Fails(
            said=(), text='fails as predicted, stays ACTIVE'),
    }


def migrate_in_vain(run: scenario.Run, instance: guest.Guest, title: str,
                    pattern: str, fault: str) -> None:
    """Check that a migration fails, and that ``explain`` knows why.

    The instance is ACTIVE afterwards, as after an administrator's reset.

    :param pattern: of the reason, in nova-compute's log of the source
    :param fault: that the command names
    """
    assert isinstance(run.expected, scenario.Fails)
    run.migrate(instance, title=title, expected=dataclasses.replace(
        run.expected, said=(scenario.Said(
            scenario.SOURCE, 'nova-compute',
            f'Live Migration failure: .*(?:{pattern})'),)))
    run.progress('nova-migfix-status explain')
    found = status.explanation(run.cloud, scenario.SOURCE, instance.id)
    run.check(f'explain, {title}: failed, {fault}',
              (found['outcome'], found['fault']) == ('failed', fault),
              {name: found[name] for name in (
                  'outcome', 'fault', 'meaning', 'evidence', 'notes')})
    if instance.vm_state == 'ERROR':
        instance.reset_state()
