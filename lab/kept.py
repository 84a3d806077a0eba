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

"""A lab that ``--keep`` leaves up: remember it, and end it later."""

from __future__ import annotations

from collections.abc import Iterable
import json
import pathlib

from lab import host
from lab import process


def _begin(pid: int) -> str | None:
    """Return the start time of a process in clock ticks; None if it is gone.

    Start time and process id together identify a process uniquely.
    """
    try:
        stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
    except OSError:
        return None
    return stat.rpartition(')')[2].split()[19]


def remember(path: pathlib.Path, hosts: Iterable[host.Host]) -> None:
    """Write the first process of each host to *path*."""
    path.write_text(json.dumps(
        [{'host': host.name, 'pid': host.pid, 'begin': _begin(host.pid)}
         for host in hosts]))


def end(path: pathlib.Path) -> list[str]:
    """End the hosts in the file *path*; return the names of those ended."""
    if not path.exists():
        return []
    left = [entry for entry in json.loads(path.read_text())
            if _begin(entry['pid']) == entry['begin']]
    for entry in left:
        process.kill(entry['pid'])
    process.wait_for('the hosts left up to end', lambda: not any(
        _begin(entry['pid']) == entry['begin'] for entry in left))
    path.unlink()
    return [entry['host'] for entry in left]
