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

"""What Kolla Ansible makes of ``kolla/globals.yml``."""

import json
import os
import pathlib
import subprocess
import sys

import ddt
import fixtures
import testtools

from nova_migfix.tests import etc
from nova_migfix.tests import pages
from nova_migfix.tls import policy

_BIN = pathlib.Path(sys.executable).parent
_SHARE = pathlib.Path(sys.prefix) / 'share/kolla-ansible/ansible'
_LIMIT = 300    # seconds

POLICY = '/etc/kolla/gnutls.config'
MOUNT = f'{POLICY}:{policy.FAMILIES["debian"].path}:ro'


@ddt.ddt
class ExtraVolumesTestCase(testtools.TestCase):

    def volumes(self, container, **variables):
        """Of one container, as Kolla Ansible hands them to the engine.

        :param variables: what else stands in a deployer's globals.yml
        """
        out = subprocess.run(
            [_BIN / 'ansible', 'localhost', '--connection', 'local',
             '--playbook-dir', _SHARE,
             '--inventory', _SHARE / 'inventory/all-in-one',
             '--extra-vars', f'@{_SHARE}/roles/nova-cell/defaults/main.yml',
             '--extra-vars', json.dumps(variables),
             '--extra-vars', f'@{pages.CHECKOUT}/kolla/globals.yml',
             '--module-name', 'debug',
             '--args', f'var=nova_cell_services["{container}"].volumes'],
            check=True, capture_output=True, text=True, timeout=_LIMIT,
            env={**os.environ, 'ANSIBLE_NOCOLOR': '1'}).stdout
        volumes, = json.loads(out.partition(' => ')[2]).values()
        return volumes

    @ddt.data('docker', 'podman')
    def test_the_policy_is_mounted(self, engine):
        volumes = self.volumes('nova-libvirt', kolla_container_engine=engine)
        self.assertIn(MOUNT, volumes)
        self.assertIn('libvirtd:/var/lib/libvirt', volumes)

    @ddt.data('nova_extra_volumes', 'default_extra_volumes')
    def test_what_a_deployer_mounts_stays(self, name):
        volumes = self.volumes('nova-libvirt', **{
            'kolla_container_engine': 'docker', name: ['/site:/site']})
        self.assertIn('/site:/site', volumes)
        self.assertIn(MOUNT, volumes)

    def test_other_containers_are_left_alone(self):
        self.assertNotIn(MOUNT, self.volumes(
            'nova-compute', kolla_container_engine='docker'))


class DocumentationTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.etc = self.useFixture(etc.WritableEtc())
        done = self.etc.run('true')
        if done.returncode:
            self.skipTest(f'no mount namespace of our own: {done.stderr}')
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
