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
"""The host to which guests are to be migrated."""

from __future__ import annotations

from collections.abc import Callable
import json
from typing import NamedTuple

from oslo_concurrency import processutils

from nova_migfix.status import results
from nova_migfix.transport import address
from nova_migfix.transport import transfer


class Destination(NamedTuple):
    """The answer of the host to which the guests are to be migrated."""

    name: str
    #: fixes whose faults do not occur there; None: not known
    fixes: frozenset[str] | None = None
    #: TLS sessions with it never rekey
    is_safe: bool = False


def ask(name: str | None,
        note: Callable[[str], None]) -> Destination:
    """Run ``upgrade check`` on the destination, by ssh, as this user."""
    if not name:
        return Destination('')
    try:
        checks = {check['check']: check for check in json.loads(
            transfer.execute(
                address.check(name), 'nova-migfix-status', 'upgrade',
                'check', '--json', check_exit_code=[0, 1, 2]))['checks']}
    except (OSError, ValueError, KeyError, TypeError,
            processutils.ProcessExecutionError) as error:
        note(f'{name} did not report its fixes: {error}')
        return Destination(name)
    loaded = checks['Plugin']['result'] != results.failure().code
    return Destination(name, frozenset(
        check.removeprefix('Fix ') for check in checks
        if check.startswith('Fix ') and checks[check]['details'].startswith(
            ('active', 'not needed') if loaded else 'not needed')),
        is_safe='safe.' in checks['TLS']['details'])
