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

"""Measure the transfer of a backing file to the destination.

``python -m bench DIRECTORY`` copies new file systems of several sizes from one
directory to another through a real sshd on loopback, by the plugin, rsync and
scp, and plots time against size.

The modules ``abi``, ``ciphers``, ``creation``, ``fleet`` and ``preflight`` are
further benchmarks, such as ``python -m bench.ciphers DIRECTORY``.
"""

from __future__ import annotations

from collections.abc import Iterable


def print_problems(problems: Iterable[str]) -> int:
    """Print each requirement that does not hold.

    :returns: the exit code, 1 if there is one
    """
    failed = list(problems)
    for problem in failed:
        print(problem)
    return 1 if failed else 0
