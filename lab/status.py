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


"""The operators' command ``nova-migfix-status``, run on a compute host.

It runs as root in the environment with the plugin, and reads nova.conf of the
host, whichever Nova runs there.
"""

from __future__ import annotations

from typing import Any

import json

from lab import cloud
from lab import environments
from lab import process

# The codes of oslo.upgradecheck, which are exit statuses, too.
SUCCESS, WARNING, FAILURE = range(3)


def ask(cloud: cloud.Cloud, host: str, *arguments: str) -> Any:
    """Run a command of nova-migfix-status on a host; return its JSON.

    :raises LabError: it could not do its work
    """
    on = cloud.hosts[host]
    log = on.log('nova-migfix-status')
    program = cloud.venvs.nova[environments.FIXED].bin('nova-migfix-status')
    try:
        with open(log, 'a') as errors:
            output = on.run(
                program, '--config-file', cloud.compute[host].configuration,
                *arguments, '--json', timeout=300, errors=errors,
                success=(SUCCESS, WARNING, FAILURE))
        return json.loads(output)
    except (process.LabError, ValueError) as error:
        raise process.LabError(f'{error}{process.tail(log)}') from error


def check(cloud: cloud.Cloud, host: str, name: str) -> dict[str, Any]:
    """Return a result of ``upgrade check``, by the name of the check."""
    checks = ask(cloud, host, 'upgrade', 'check')['checks']
    return {each['check']: each for each in checks}[name]


def findings(cloud: cloud.Cloud, host: str, destination: str,
             uuid: str) -> list[dict[str, Any]]:
    """Return the findings of ``preflight --dest`` about a guest."""
    found: list[dict[str, Any]] = ask(
        cloud, host, 'preflight', '--dest', destination, '--instance',
        uuid)['findings']
    return found


def explanation(cloud: cloud.Cloud, host: str, uuid: str) -> dict[str, Any]:
    """Return what ``explain`` says of a guest's last migration."""
    found: dict[str, Any] = ask(cloud, host, 'explain', uuid)
    return found
