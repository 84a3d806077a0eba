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

"""Measure the cost of a migration under each TLS policy.

``python -m bench.ciphers DIRECTORY`` migrates a guest over TLS between two
real QEMUs on loopback, several times under each policy in turn, and plots the
processor time of both QEMUs. Processor time limits the speed of a migration
and, unlike the duration, does not depend on other load of the machine. The
policy applies to the destination, as in production. Only ratios count:
machines differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import os
import pathlib
import statistics
import sys
from typing import NamedTuple

import matplotlib
import prettytable

import bench
from nova_migfix.tests import qemu_pair
from nova_migfix.tls import policy
from nova_migfix.tls import probe
from nova_migfix.tls import users

matplotlib.use('svg')
from matplotlib import pyplot  # noqa: E402

MEMORY = 512 * qemu_pair.MIB
ROUNDS = 7

# The default of Debian's QEMU, and the priorities of the policies.
PRIORITIES = {
    'TLS 1.2, AES-256-GCM': policy.PRIORITIES[policy.TLS12],
    'TLS 1.3, AES-256-GCM': 'NORMAL',
    'TLS 1.3, ChaCha20-Poly1305': policy.PRIORITIES[policy.CHACHA20],
}
DEFAULT, UNRESTRICTED, CHACHA20 = PRIORITIES

# Requirements: the default policy costs at most AT_MOST times as much as no
# policy, and the other one at least AT_LEAST times as much as the default, if
# the processor has instructions for AES.
AT_MOST, AT_LEAST = 1.25, 2


class Cost(NamedTuple):
    """The cost of one migration, in seconds."""

    processor: float
    duration: float


# The costs of all rounds, by name of the policy.
Found = dict[str, list[Cost]]


def measure(name: str) -> Cost:
    with qemu_pair.Pair(MEMORY, priority=PRIORITIES[name]) as qemus:
        before = processor_time(qemus)
        qemus.migrate('return-path')
        found = qemus.wait(*qemu_pair.ENDED)
        cost = Cost(processor_time(qemus) - before,
                    found.get('total-time', 0) / 1000)
    if found['status'] != 'completed':
        raise RuntimeError(f'{name}: {found}')
    return cost


def processor_time(qemus: qemu_pair.Pair) -> float:
    """Return the processor seconds of both QEMUs, in user and kernel mode."""
    stats = [pathlib.Path(f'/proc/{process.pid}/stat').read_text()
             for process in qemus.processes.values()]
    ticks = [int(ticks) for stat in stats
             for ticks in stat.rpartition(')')[2].split()[11:13]]
    return sum(ticks) / os.sysconf('SC_CLK_TCK')


def measure_all() -> Found:
    """Return every Cost by name; policies are measured in turn."""
    found: Found = {name: [] for name in PRIORITIES}
    for _ in range(ROUNDS):
        for name, costs in found.items():
            costs.append(measure(name))
    return found


def medians(found: Found) -> dict[str, Cost]:
    return {name: Cost(*map(statistics.median, zip(*costs)))
            for name, costs in found.items()}


def negotiated(name: str) -> str:
    """Return the TLS version and the cipher of QEMU under a policy."""
    answer = probe.probe(probe.find_qemu(), users.find_user(),
                         priority=PRIORITIES[name])
    return f'{answer.version} {answer.cipher}'


def ratios(found: Found) -> dict[str, float]:
    """Return each policy's processor time relative to the default's."""
    costs = medians(found)
    return {name: cost.processor / costs[DEFAULT].processor
            for name, cost in costs.items()}


def table(found: Found) -> prettytable.PrettyTable:
    result = prettytable.PrettyTable(
        ['', 'negotiated', 'processor, s', 'ratio', 'duration, s'])
    result.align = 'l'
    ratio = ratios(found)
    for name, cost in medians(found).items():
        result.add_row([name, negotiated(name), f'{cost.processor:.2f}',
                        f'{ratio[name]:.2f}', f'{cost.duration:.2f}'])
    return result


def draw(found: Found, path: pathlib.Path) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 3), layout='constrained')
    default = medians(found)[DEFAULT].processor
    axes.boxplot([[cost.processor / default for cost in costs]
                  for costs in found.values()], vert=False)
    axes.set_yticklabels(found)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(f'processor time of a migration, {DEFAULT} = 1')
    figure.savefig(path)


def problems(found: Found) -> Iterator[str]:
    """Yield a line for each requirement that does not hold."""
    ratio = ratios(found)
    if ratio[UNRESTRICTED] * AT_MOST < 1:
        yield f'TLS 1.2 takes {1 / ratio[UNRESTRICTED]:.2f} times as much'
    has_aes = ' aes ' in pathlib.Path('/proc/cpuinfo').read_text()
    if has_aes and ratio[CHACHA20] < AT_LEAST:
        yield f'ChaCha20 takes only {ratio[CHACHA20]:.2f} times as much'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('directory', type=pathlib.Path,
                        help='for the plot')
    directory = parser.parse_args().directory
    found = measure_all()
    draw(found, directory / 'ciphers.svg')
    print(table(found))
    return bench.print_problems(problems(found))


if __name__ == '__main__':
    sys.exit(main())
