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

"""Compare the report of ``ansible/report.yml`` with real migrations.

A guest on each host has another number of queues than the configuration gives
to new guests. According to the report the host with the plugin keeps it, and a
migration from the host without the plugin fails; then both guests migrate. The
playbook runs on the controller and reaches the hosts by ssh over the
management network.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import pathlib
import sys
from typing import Any

from lab import cloud
from lab import environments
from lab import guest
from lab import scenario
from lab.scenarios import queues_grow
from lab import topology
from lab import workdir

_FAILS = queues_grow.QueuesGrow.expected[scenario.NEITHER]
_ARRIVES = queues_grow.QueuesGrow.expected[scenario.BOTH]


class Fleet(scenario.Scenario):
    name = 'fleet'
    title = ('ansible/report.yml predicts the migration of a guest on each '
             'host, whose queues differ.')
    variants = (environments.PLUGIN,)
    booted_with = 2
    configured = 4
    expected = {scenario.NEITHER: _FAILS, scenario.SOURCE_ONLY: _ARRIVES}

    def run(self, run: scenario.Run) -> None:
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        run.configure(both={scenario.MAX_QUEUES: self.booted_with})
        guests = {host: run.boot(host=host) for host in topology.COMPUTES}
        run.configure(both={scenario.MAX_QUEUES: self.configured})
        report = ask(run)
        self.check(run, report, guests, scenario.SOURCE, run.protected)
        self.check(run, report, guests, scenario.DESTINATION, False)
        run.migrate(guests[scenario.SOURCE])
        run.migrate(guests[scenario.DESTINATION], scenario.SOURCE,
                    expected=_FAILS)
        self.check_mute(run)

    def check(self, run: scenario.Run, report: Mapping[str, Any],
              guests: Mapping[str, guest.Guest], host: str,
              covered: bool) -> None:
        """Check the report about a host and the guest there."""
        row = report[host]
        guest = guests[host]
        run.check_equal(f'{host} has answered', row['state'], 'told')
        run.check_equal(f'guests on {host}', row['guests'], 1)
        run.check_equal(
            f'findings on {host}',
            [(one['instance'], one['finding'], one['running'],
              one['computed'], one['covered']) for one in row['findings']],
            [(guest.id, 'vnic', str(self.booted_with), str(self.configured),
              'yes' if covered else 'no')])
        run.check_equal(f'{host} can be drained', row['drain'],
                        'yes' if covered else 'no')

    @staticmethod
    def check_mute(run: scenario.Run) -> None:
        """Check that the report lists a host that does not answer."""
        run.cloud.ssh[scenario.DESTINATION].listen(())
        report = ask(run)
        for host, state in ((scenario.SOURCE, 'told'),
                            (scenario.DESTINATION, 'unreachable')):
            run.check_equal(f'one does not answer: {host}',
                            report[host]['state'], state)


def ask(run: scenario.Run) -> dict[str, Any]:
    """Run the playbook on the controller; return the hosts by name."""
    run.progress('ansible-playbook report.yml')
    controller = run.cloud.controller
    report = controller.root / 'report'
    inventory = controller.write('inventory.json', json.dumps(
        inventory_of(run.cloud)))
    controller.run(
        'env', 'ANSIBLE_HOME=/run/ansible',
        f'PYTHONPATH={workdir.CHECKOUT}',
        pathlib.Path(sys.executable).with_name('ansible-playbook'),
        '--inventory', inventory, '--extra-vars',
        f'nova_migfix_report={report}',
        workdir.CHECKOUT / 'ansible/report.yml')
    merged = json.loads(report.with_suffix('.json').read_text())
    return {host['host']: host for host in merged['hosts']}


def inventory_of(cloud: cloud.Cloud) -> dict[str, Any]:
    """Return an inventory as Kolla Ansible's, but without containers."""
    return {'compute': {
        'hosts': {host: {
            'ansible_host': topology.MANAGEMENT.address(host),
            'nova_migfix_options': [
                '--config-file', str(cloud.compute[host].configuration)],
        } for host in topology.COMPUTES},
        'vars': {
            'ansible_user': 'root',
            'ansible_ssh_private_key_file': str(cloud.ssh[
                scenario.SOURCE].key),
            'ansible_ssh_common_args': '-o StrictHostKeyChecking=no '
                                       '-o UserKnownHostsFile=/dev/null',
            'ansible_python_interpreter': '/usr/bin/python3',
            'ansible_remote_tmp': '/run/ansible',
            'nova_migfix_container_engine': '',
            'nova_migfix_bin': str(cloud.venvs.nova[
                environments.FIXED].bin('')),
        },
    }}
