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

"""What Kolla Ansible makes of ``kolla/``."""

import json
import os
import pathlib
import shlex
import subprocess
import sys

import ddt
import fixtures
import testtools
import yaml

from nova_migfix.tests import etc
from nova_migfix.tests import pages
from nova_migfix.tls import policy

_BIN = pathlib.Path(sys.executable).parent
_SHARE = pathlib.Path(sys.prefix) / 'share/kolla-ansible/ansible'
_LIMIT = 300    # seconds

POLICY = '/etc/kolla/gnutls.config'
MOUNT = f'{POLICY}:{policy.FAMILIES["debian"].path}:ro'



def ansible(*arguments):
    """Run a module here, with Kolla Ansible's plugins and variables.

    :returns: what it has returned
    """
    done = subprocess.run(
        [_BIN / 'ansible', 'localhost', '--connection', 'local',
         '--playbook-dir', _SHARE,
         '--inventory', _SHARE / 'inventory/all-in-one',
         '--extra-vars', f'ansible_python_interpreter={sys.executable}',
         '--extra-vars', f'@{_SHARE}/roles/nova-cell/defaults/main.yml',
         *arguments],
        capture_output=True, text=True, timeout=_LIMIT,
        env={**os.environ, 'ANSIBLE_NOCOLOR': '1'})
    if done.returncode:
        raise AssertionError(f'{done.stdout}{done.stderr}')
    return json.loads(done.stdout.partition(' => ')[2])


def service(container, attribute, globals_file, **variables):
    """What Kolla Ansible hands to the engine for one container.

    :param globals_file: below kolla/
    :param variables: what else stands in a deployer's globals.yml
    """
    result, = ansible(
        '--extra-vars', json.dumps(
            {'kolla_container_engine': 'docker', **variables}),
        '--extra-vars', f'@{pages.CHECKOUT}/kolla/{globals_file}',
        '--module-name', 'debug',
        '--args', f'var=nova_cell_services["{container}"].{attribute}',
    ).values()
    return result


class NovaConfTestCase(testtools.TestCase):
    """nova.conf of the containers, merged by Kolla Ansible's own module."""

    def sources(self, key):
        """The files that are merged for one service, the first ones first."""
        tasks = yaml.safe_load(
            (_SHARE / 'roles/nova-cell/tasks/config.yml').read_text())
        found, = (task['merge_configs'] for task in tasks
                  if '/nova.conf' in task.get('merge_configs', {}).get(
                      'dest', '') and 'item.key' in task['merge_configs'][
                      'dest'])
        return [source.replace('{{ item.key }}', key).replace(
            '{{ node_custom_config }}', f'{pages.CHECKOUT}/kolla/config')
            for source in found['sources']]

    def merged(self, key):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        template = directory / 'nova.conf.j2'
        # of the role's template, what is written over
        template.write_text('[DEFAULT]\ncompute_driver = '
                            'libvirt.LibvirtDriver\nmy_ip = 192.0.2.1\n')
        ours = [source for source in self.sources(key)
                if pathlib.Path(source).is_file()]
        ansible('--module-name', 'merge_configs', '--args', json.dumps({
            'sources': [str(template), *ours],
            'dest': str(directory / 'nova.conf')}))
        return (directory / 'nova.conf').read_text().strip().splitlines()

    def test_nova_compute(self):
        self.assertEqual(
            ['[DEFAULT]', 'compute_driver = migfix.LibvirtDriver',
             'my_ip = 192.0.2.1'], self.merged('nova-compute'))

    def test_no_other_service(self):
        for key in ('nova-compute-ironic', 'nova-conductor'):
            self.assertEqual(
                ['[DEFAULT]', 'compute_driver = libvirt.LibvirtDriver',
                 'my_ip = 192.0.2.1'], self.merged(key))

    def test_what_is_written_over(self):
        self.assertIn('compute_driver = libvirt.LibvirtDriver', (
            _SHARE / 'roles/nova-cell/templates/nova.conf.j2').read_text())


class ImageTestCase(testtools.TestCase):

    GLOBALS = 'globals.d/nova-migfix.yml'

    def test_nova_compute(self):
        self.assertEqual(
            'registry.example:4000/kolla/nova-compute:2026.1-migfix',
            service('nova-compute', 'image', self.GLOBALS,
                    openstack_tag='2026.1'))

    def test_no_other_image(self):
        self.assertNotIn('migfix', service(
            'nova-libvirt', 'image', self.GLOBALS))


@ddt.ddt
class ExtraVolumesTestCase(testtools.TestCase):

    @staticmethod
    def volumes(container, **variables):
        return service(container, 'volumes', 'globals.yml', **variables)

    @ddt.data('docker', 'podman')
    def test_the_policy_is_mounted(self, engine):
        volumes = self.volumes('nova-libvirt', kolla_container_engine=engine)
        self.assertIn(MOUNT, volumes)
        self.assertIn('libvirtd:/var/lib/libvirt', volumes)

    @ddt.data('nova_extra_volumes', 'default_extra_volumes')
    def test_what_a_deployer_mounts_stays(self, name):
        volumes = self.volumes('nova-libvirt', **{name: ['/site:/site']})
        self.assertIn('/site:/site', volumes)
        self.assertIn(MOUNT, volumes)

    def test_other_containers_are_left_alone(self):
        self.assertNotIn(MOUNT, self.volumes(
            'nova-compute'))


class CommandsTestCase(testtools.TestCase):
    """For want of a deployment they are not run: Kolla Ansible knows them."""

    def test_known(self):
        for command, _ in pages.commands('install/rollout.rst'):
            words = shlex.split(command)
            shown = subprocess.run(
                [_BIN / words[0], words[1], '--help'], check=True,
                capture_output=True, text=True, timeout=_LIMIT).stdout
            self.assertIn(f'usage: kolla-ansible {words[1]} ', shown)
            for option in words[2::2]:
                self.assertRegex(shown, rf'(?m)^  (-\w \w+, )?{option} ')


class DocumentationTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.etc = self.useFixture(etc.WritableEtc())
        self.etc.require(self)
        (self.etc.above / 'kolla').mkdir(parents=True)
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        (self.directory / 'multinode').write_text(
            '[compute]\nlocalhost ansible_connection=local '
            f'ansible_python_interpreter={sys.executable}\n')

    def test_commands(self):
        for command, _ in pages.commands('tls/kolla.rst'):
            done = self.etc.run(
                'sh', '-c', command, cwd=self.directory, env={
                    **os.environ, 'PATH': f'{_BIN}:{os.environ["PATH"]}'})
            self.assertEqual(0, done.returncode, f'{command}: {done}')
        file = self.etc.above / POLICY[len('/etc/'):]
        self.assertEqual(
            policy.merge(policy.FAMILIES['debian'], policy.TLS12, ''),
            file.read_text())
        self.assertEqual(0o644, file.stat().st_mode & 0o777)
