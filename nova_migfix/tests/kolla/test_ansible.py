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

"""Kolla Ansible with the files of ``kolla/``."""

import configparser
import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import ddt
import fixtures
from oslo_config import cfg
import testtools

from nova_migfix.tests import etc
from nova_migfix.tests.kolla import changes
from nova_migfix.tests.kolla import deployment
from nova_migfix.tests import pages
from nova_migfix.tls import policy

_BIN = pathlib.Path(sys.executable).parent
_SHARE = pathlib.Path(sys.prefix) / 'share/kolla-ansible/ansible'
_LIMIT = 300    # seconds

POLICY = '/etc/kolla/gnutls.config'
MOUNT = f'{POLICY}:{policy.FAMILIES["debian"].path}:ro'


def container(name, attribute, file, **variables):
    """Return an attribute of a container as the engine gets it.

    :param file: a file of kolla/ with variables
    :param variables: further variables of a deployer's globals.yml
    """
    out = subprocess.run(
        [_BIN / 'ansible', 'localhost', '--connection', 'local',
         '--playbook-dir', _SHARE,
         '--inventory', _SHARE / 'inventory/all-in-one',
         '--extra-vars', f'@{_SHARE}/roles/nova-cell/defaults/main.yml',
         '--extra-vars', json.dumps(
             {'kolla_container_engine': 'docker', **variables}),
         '--extra-vars', f'@{pages.CHECKOUT}/kolla/{file}',
         '--module-name', 'debug',
         '--args', f'var=nova_cell_services["{name}"].{attribute}'],
        check=True, capture_output=True, text=True, timeout=_LIMIT,
        env={**os.environ, 'ANSIBLE_NOCOLOR': '1'}).stdout
    value, = json.loads(out.partition(' => ')[2]).values()
    return value


@ddt.ddt
class ImageTestCase(testtools.TestCase):

    def test_nova_compute_image_is_the_one_that_was_built(self):
        builds = [command for command, _ in pages.commands(
            'install/kolla.rst') if command.startswith('kolla-build')]
        self.assertEqual(2, len(builds))
        for command in builds:
            given = dict(re.findall(r'--(\S+) ([^-]\S*)', command))
            self.assertEqual(
                '{registry}/{namespace}/nova-compute:{tag}'.format(**given),
                container('nova-compute', 'image',
                          'globals.d/nova-migfix.yml'))

    @ddt.data('nova-libvirt', 'nova-conductor', 'nova-compute-ironic')
    def test_other_images_stay_unchanged(self, name):
        self.assertNotIn('migfix', container(
            name, 'image', 'globals.d/nova-migfix.yml'))


@ddt.ddt
class ExtraVolumesTestCase(testtools.TestCase):

    def volumes(self, name, **variables):
        return container(name, 'volumes', 'globals.yml', **variables)

    @ddt.data('docker', 'podman')
    def test_policy_is_mounted_into_nova_libvirt(self, engine):
        volumes = self.volumes('nova-libvirt', kolla_container_engine=engine)
        self.assertIn(MOUNT, volumes)
        self.assertIn('libvirtd:/var/lib/libvirt', volumes)

    @ddt.data('nova_extra_volumes', 'default_extra_volumes')
    def test_volumes_of_a_deployer_stay(self, name):
        volumes = self.volumes('nova-libvirt', **{name: ['/site:/site']})
        self.assertIn('/site:/site', volumes)
        self.assertIn(MOUNT, volumes)

    def test_native_tls_is_mounted_into_nova_libvirt(self):
        volumes = container('nova-libvirt', 'volumes',
                            'globals-native-tls.yml', nova_extra_volumes=[
                                '/site:/site'])
        self.assertLessEqual(
            {'/etc/kolla/qemu-pki:/etc/pki/qemu:ro', '/site:/site',
             'libvirtd:/var/lib/libvirt'}, set(volumes))

    def test_policy_is_not_mounted_into_nova_compute(self):
        self.assertNotIn(MOUNT, self.volumes('nova-compute'))


@functools.cache
def stock(**variables):
    """Return the configuration of a deployment without the plugin."""
    with deployment.Deployment(**variables) as made:
        return made.configure()


class ConfigurationTestCase(testtools.TestCase):
    """The changed lines of the configuration with the plugin."""

    def changes(self, ours):
        """Return the changed lines of each changed file."""
        before, after = stock(), ours.configure()
        self.assertEqual(before.keys(), after.keys())
        return {name: changes.changes(before[name], after[name])
                for name in before if before[name] != after[name]}

    def test_configuration_changes_only_nova_compute_conf(self):
        ours = self.useFixture(deployment.Deployment())
        ours.take_over()
        self.assertEqual(
            {'nova-compute/nova.conf': changes.golden('nova-compute.conf')},
            self.changes(ours))

    def test_snippet_for_one_host_changes_only_that_host(self):
        snippet = (pages.CHECKOUT / 'kolla/config/nova/nova-compute.conf'
                   ).read_text()
        ours = self.useFixture(deployment.Deployment())
        ours.add('compute01/nova-compute.conf', snippet)
        ours.add('compute02/nova-compute.conf', '[DEFAULT]\nmy_ip = other\n')
        self.assertEqual(
            {'nova-compute/nova.conf': changes.golden('nova-compute.conf')},
            self.changes(ours))

    def test_compute_driver_of_the_role_overrides_that_of_a_deployer(self):
        """ansible/ adds its own section at the end of the file."""
        ours = self.useFixture(deployment.Deployment())
        ours.add('nova-compute.conf',
                 '[DEFAULT]\ncompute_driver = libvirt.LibvirtDriver\n'
                 '[libvirt]\ncpu_mode = host-model\n'
                 '[DEFAULT]\ncompute_driver = migfix.LibvirtDriver\n')
        path = self.useFixture(fixtures.TempDir()).join('nova.conf')
        pathlib.Path(path).write_text(
            ours.configure()['nova-compute/nova.conf'])
        conf = cfg.ConfigOpts()
        conf.register_opt(cfg.StrOpt('compute_driver'))
        conf(['--config-file', path])
        self.assertEqual('migfix.LibvirtDriver', conf.compute_driver)

    def test_documented_lines_for_cold_migrations_are_merged(self):
        lines, = (text for text in pages.blocks('install/kolla.rst', 'ini')
                  if 'migration_inbound_addr' in text)
        ours = self.useFixture(deployment.Deployment())
        ours.take_over()
        ours.add('nova-compute.conf', lines)
        self.assertEqual(
            {'nova-compute/nova.conf':
                changes.golden('nova-compute-cold.conf')},
            self.changes(ours))

    def test_documented_lines_for_native_tls_are_merged(self):
        ours = self.useFixture(deployment.Deployment(libvirt_tls=True))
        ours.take_over()
        ours.add('nova-compute.conf', next(iter(pages.blocks(
            'tls/kolla.rst', 'ini'))))
        conf = configparser.ConfigParser(interpolation=None)
        conf.read_string(ours.configure()['nova-compute/nova.conf'])
        self.assertEqual(
            ('true', 'tls'),
            (conf['libvirt']['live_migration_with_native_tls'],
             conf['libvirt']['live_migration_scheme']))

    def test_compute_driver_in_nova_conf_would_reach_ironic(self):
        ours = self.useFixture(deployment.Deployment())
        ours.add('../nova.conf', '[DEFAULT]\ncompute_driver = a.Driver\n')
        self.assertIn('+compute_driver = a.Driver', self.changes(ours)[
            'nova-compute-ironic/nova.conf'])


class AddressTestCase(testtools.TestCase):
    """The address that files are fetched from, and its sshd."""

    def configured(self, **variables):
        files = stock(**variables)
        nova = configparser.ConfigParser(interpolation=None)
        nova.read_string(files['nova-compute/nova.conf'])
        return nova['libvirt'], files

    def test_sshd_listens_on_the_migration_address(self):
        libvirt, files = self.configured()
        self.assertEqual(deployment.MIGRATION,
                         libvirt['live_migration_inbound_addr'])
        sshd = files['nova-ssh/sshd_config'].splitlines()
        self.assertIn(f'ListenAddress {deployment.MIGRATION}', sshd)
        self.assertIn('Port 8022', sshd)

    def test_ssh_knows_the_port_and_accepts_the_keys(self):
        _, files = self.configured()
        self.assertEqual(
            ['Host *', 'StrictHostKeyChecking no',
             'UserKnownHostsFile /dev/null', 'port 8022'],
            [line.strip() for line in
             files['nova-ssh/ssh_config'].splitlines()])
        placed = {file['dest'] for file in json.loads(
            files['nova-ssh/config.json'])['config_files']}
        self.assertIn('/var/lib/nova/.ssh/config', placed)

    def test_migration_address_with_libvirt_tls_is_the_host_name(self):
        libvirt, _ = self.configured(libvirt_tls=True)
        self.assertEqual(deployment.FACTS['ansible_nodename'],
                         libvirt['live_migration_inbound_addr'])

    def test_cold_migration_address_is_not_set(self):
        libvirt, _ = self.configured()
        self.assertNotIn('migration_inbound_addr', libvirt)


class DocumentationTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.etc = self.useFixture(etc.WritableEtc())
        self.etc.require(self)
        (self.etc.above / 'kolla').mkdir(parents=True)
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        (self.directory / 'nova-migfix').symlink_to(pages.CHECKOUT)
        self.distribute_certificates()
        (self.directory / 'multinode').write_text(
            '[compute]\nlocalhost ansible_connection=local '
            f'ansible_python_interpreter={sys.executable}\n')

    def distribute_certificates(self):
        """Write those of libvirt as Kolla Ansible does."""
        place = self.etc.above / 'kolla/nova-libvirt'
        place.mkdir()
        for end in ('ca', 'server', 'client'):
            for kind in ('cert', 'key'):
                (place / f'{end}{kind}.pem').touch()

    def test_commands_of_the_tls_page_for_kolla_succeed(self):
        for command, _ in pages.commands('tls/kolla.rst'):
            done = self.etc.run(
                'sh', '-c', command, cwd=self.directory, env={
                    **os.environ, 'PATH': f'{_BIN}:{os.environ["PATH"]}'})
            self.assertEqual(0, done.returncode, f'{command}: {done}')
        self.assertTrue(
            (self.etc.above / 'kolla/qemu-pki/server-key.pem').exists())
        file = self.etc.above / POLICY[len('/etc/'):]
        self.assertEqual(
            policy.merge(policy.FAMILIES['debian'], policy.TLS12, ''),
            file.read_text())
        self.assertEqual(0o644, file.stat().st_mode & 0o777)
