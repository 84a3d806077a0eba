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

"""A deployment by Kolla Ansible with this machine as all hosts.

Command, variables, templates and plugins are the real ones. Of the role
nova-cell only the tasks that write configuration run, which need neither a
container engine nor a service.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import fixtures
import yaml

from nova_migfix.tests import pages

BIN = pathlib.Path(sys.executable).parent
SHARE = pathlib.Path(sys.prefix) / 'share/kolla-ansible'
LIMIT = 600    # seconds

#: Addresses of a host by network, as Ansible finds them.
API = '192.0.2.1'
MIGRATION = '198.51.100.1'

FACTS = {
    'ansible_hostname': 'compute01',
    'ansible_nodename': 'compute01.example',
    'ansible_architecture': 'x86_64',
    'ansible_distribution': 'Rocky',
    'ansible_os_family': 'RedHat',
    'ansible_processor_vcpus': 2,
    **{f'ansible_{interface}': {
        'device': interface, 'ipv4': {'address': address}, 'active': True}
        for interface, address in (('api0', API), ('migration0', MIGRATION))},
}

#: The tasks of the role nova-cell that write configuration.
_TASKS = ('Ensuring config directories exist', 'Copying over nova.conf',
          'Copying over config.json files for services',
          'Copying files for nova-ssh')

_PLAYBOOK = [{
    'hosts': 'compute', 'gather_facts': False, 'roles': ['nova-cell'],
    'pre_tasks': [{'ansible.builtin.set_fact': {**FACTS, 'cacheable': True}}],
}]


class Deployment(fixtures.Fixture):
    """The configuration of a deployment that also has nova-compute-ironic.

    :param variables: further variables of globals.yml
    :ivar etc: the directory that is /etc/kolla of the deployment host
    """

    def __init__(self, **variables):
        super().__init__()
        self.globals = {
            'kolla_internal_vip_address': '192.0.2.254',
            # otherwise set by a collection that no package index has
            'kolla_same_external_internal_vip': True,
            'network_interface': 'api0',
            'migration_interface': 'migration0',
            'enable_ironic': True,
            **variables,
        }

    def _setUp(self):
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.etc = self.directory / 'kolla'
        self.etc.mkdir()
        (self.etc / 'globals.yml').write_text(yaml.safe_dump(self.globals))
        shutil.copy(SHARE / 'etc_examples/kolla/passwords.yml', self.etc)
        self.inventory = self.directory / 'all-in-one'
        self.inventory.write_text(
            (SHARE / 'ansible/inventory/all-in-one').read_text().replace(
                'localhost', 'compute01'))
        self._make_playbook()

    def _make_playbook(self):
        """Make a playbook with the variables and plugins of Kolla Ansible."""
        for name in ('action_plugins', 'filter_plugins', 'group_vars',
                     'library', 'module_utils'):
            (self.directory / name).symlink_to(SHARE / 'ansible' / name)
        self.playbook = self.directory / 'configuration.yml'
        self.playbook.write_text(yaml.safe_dump(_PLAYBOOK))
        real = SHARE / 'ansible/roles/nova-cell'
        role = self.directory / 'roles/nova-cell'
        (role / 'tasks').mkdir(parents=True)
        for name in ('defaults', 'filter_plugins', 'templates', 'vars'):
            (role / name).symlink_to(real / name)
        tasks = {task['name']: task for task in yaml.safe_load(
            (real / 'tasks/config.yml').read_text())}
        (role / 'tasks/main.yml').write_text(yaml.safe_dump(
            [tasks[name] for name in _TASKS]))

    def configure(self):
        """Write the configuration of the host's containers.

        :returns: the text of each file, by container and name
        """
        hosts = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.run(
            'genconfig', '--playbook', str(self.playbook),
            '--inventory', str(self.inventory), '--extra-vars', json.dumps({
                'node_config_directory': str(hosts),
                'config_owner_user': os.getuid(),
                'config_owner_group': os.getgid(),
                'ansible_become': False,
                'ansible_python_interpreter': sys.executable,
            }))
        return {str(path.relative_to(hosts)): path.read_text()
                for path in sorted(hosts.rglob('*')) if path.is_file()}

    def run(self, *arguments):
        """Run kolla-ansible; return its output."""
        done = subprocess.run(
            [BIN / 'kolla-ansible', *arguments, '--configdir', self.etc],
            text=True, capture_output=True, timeout=LIMIT,
            stdin=subprocess.DEVNULL, cwd=self.directory, env={
                **os.environ,
                'PATH': f'{BIN}:{os.environ["PATH"]}',
                'ANSIBLE_NOCOLOR': '1',
            })
        if done.returncode:
            raise AssertionError(
                f'{arguments} ended with {done.returncode}:\n'
                f'{done.stdout}{done.stderr}')
        return done.stdout

    def take_over(self):
        """Copy the files of kolla/ to their places on a deployment host."""
        for name in ('config', 'globals.d'):
            shutil.copytree(pages.CHECKOUT / 'kolla' / name, self.etc / name)

    def add(self, path, text):
        """Add lines to a file below config/nova."""
        file = self.etc / 'config/nova' / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open('a') as lines:
            lines.write(text)
