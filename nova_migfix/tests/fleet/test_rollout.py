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

"""``ansible/rollout.yml`` installs and removes the plugin."""

import json
import pathlib
import subprocess
import sys
import sysconfig
import venv
import zipfile

from oslo_config import cfg
import testtools
import yaml

from nova_migfix import nova_release
from nova_migfix.tests import distribution
from nova_migfix.tests import etc
from nova_migfix.tests.fleet import playbook
from nova_migfix.tests import hosts
from nova_migfix.tests import pages

_KOLLA = pathlib.Path(sys.prefix) / 'share/kolla-ansible/ansible'

# A nova.conf before the rollout; Debian's sets the driver.
NOVA_CONF = '''\
[DEFAULT]
compute_driver=libvirt.LibvirtDriver
host = compute1

[libvirt]
virt_type = kvm
'''

# Ansible finds neither systemd nor another service manager on this machine.
_SERVICE = '''#!/bin/sh
### BEGIN INIT INFO
# Provides: nova-compute
# Default-Start: 2
### END INIT INFO
echo "$1" >>{log}
'''


def driver(path):
    """Return the compute_driver that a file sets."""
    conf = cfg.ConfigOpts()
    conf.register_opt(cfg.StrOpt('compute_driver'))
    conf(['--config-file', str(path)])
    return conf.compute_driver


class WheelTestCase(testtools.TestCase):

    def test_templates_are_in_the_wheel(self):
        place = pathlib.Path('nova_migfix/status/templates')
        with zipfile.ZipFile(self.useFixture(
                distribution.Wheel('99.0.0')).path) as wheel:
            found = {name for name in wheel.namelist()
                     if name.startswith(f'{place}/')}
        self.assertEqual({str(place / path.name) for path
                          in (pages.CHECKOUT / place).iterdir()}, found)
        self.assertIn(str(place / 'report.html.j2'), found)


class RoleTestCase(testtools.TestCase):

    def test_supported_releases_of_the_role_match_the_plugin(self):
        variables = yaml.safe_load((
            playbook.PLAYBOOKS / 'roles/nova_migfix/vars/main.yml'
        ).read_text())
        self.assertEqual((nova_release.OLDEST, nova_release.NEWEST), (
            variables['nova_migfix_oldest'], variables['nova_migfix_newest']))


class HostTestCase(testtools.TestCase):
    """nova-compute on the host: pip, nova.conf and a service."""

    def setUp(self):
        super().setUp()
        self.etc = self.useFixture(etc.WritableEtc())
        self.etc.require(self)
        self.site = self.useFixture(playbook.Site())
        self.conf = self.site.path / 'nova.conf'
        self.conf.write_text(NOVA_CONF)
        self.restarts = self.site.path / 'restarts'
        self.make_service()
        self.make_environment()
        self.site.write_inventory(compute1={
            'nova_migfix_container_engine': '',
            'nova_migfix_bin': str(self.venv / 'bin'),
            'nova_migfix_conf': str(self.conf),
            'nova_migfix_options': ['--config-file', str(self.conf)],
            'nova_migfix_package': str(self.useFixture(
                distribution.Wheel('99.0.0')).path)})

    def make_service(self):
        scripts = self.etc.above / 'init.d'
        scripts.mkdir()
        script = scripts / 'nova-compute'
        script.write_text(_SERVICE.format(log=self.restarts))
        script.chmod(0o755)

    def make_environment(self):
        """Make a virtual environment with the Nova of this one."""
        self.venv = self.site.path / 'venv'
        venv.create(self.venv, with_pip=True)
        place, = self.venv.glob('lib/python3*/site-packages')
        (place / 'nova.pth').write_text(sysconfig.get_path('purelib'))

    def pretend(self, name, version):
        """Make pip find another version than that of this environment."""
        place, = self.venv.glob('lib/python3*/site-packages')
        found = place / f'{name}-{version}.dist-info'
        found.mkdir()
        (found / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
        (found / 'RECORD').write_text(''.join(
            f'{found.name}/{file},,\n' for file in ('METADATA', 'RECORD')))

    def try_to_roll(self, *arguments, **variables):
        return self.site.run('rollout.yml', *arguments,
                             within=self.etc.entered(), **variables)

    def roll(self, **variables):
        ran = self.try_to_roll(**variables)
        self.assertEqual(0, ran.code, ran.out)
        return ran

    def restarted(self):
        """Return the number of restarts since the last call."""
        text = self.restarts.read_text() if self.restarts.exists() else ''
        self.restarts.unlink(missing_ok=True)
        return text.split().count('restart') or text.split().count('start')

    def packages(self):
        """Return the names of the installed packages' files."""
        place, = self.venv.glob('lib/python3*/site-packages')
        return {found.name for found in place.iterdir()}

    def test_plugin_is_installed_on_a_host_and_removed(self):
        before = self.packages()
        # the rollout replaces it
        self.pretend('nova_migfix', '1.0.0')
        self.assertNotEqual(0, self.try_to_roll('--check').changed['compute1'])
        self.assertEqual({'nova_migfix-1.0.0.dist-info'},
                         self.packages() - before)

        self.assertNotEqual(0, self.roll().changed['compute1'])
        self.assertEqual({'nova_migfix', 'nova_migfix-99.0.0.dist-info'},
                         self.packages() - before)
        self.assertEqual('migfix.LibvirtDriver', driver(self.conf))
        self.assertTrue(self.conf.read_text().startswith(NOVA_CONF))
        self.assertEqual(1, self.restarted())

        self.assertEqual(0, self.roll().changed['compute1'])
        self.assertEqual(0, self.restarted())

        self.roll(nova_migfix_state='absent')
        self.assertEqual(NOVA_CONF, self.conf.read_text())
        self.assertEqual(before, self.packages())
        self.assertEqual(1, self.restarted())

        self.assertEqual(0, self.roll(
            nova_migfix_state='absent').changed['compute1'])
        self.assertEqual(0, self.restarted())


    def assertRefused(self, *said):
        before = self.packages()
        ran = self.try_to_roll()
        self.assertNotEqual(0, ran.code)
        for words in said:
            self.assertIn(words, ran.out)
        self.assertEqual(before, self.packages())
        self.assertEqual(NOVA_CONF, self.conf.read_text())
        self.assertEqual(0, self.restarted())

    def test_rollout_beside_an_old_library_is_refused(self):
        self.pretend('prettytable', '2.0.0')
        self.assertRefused('nova-migfix 99.0.0 depends on prettytable>=3.0.0',
                           'prettytable==2.0.0')

    def test_rollout_on_a_host_with_unsupported_nova_is_refused(self):
        self.pretend('nova', '26.2.2')
        self.assertRefused('supports Nova 29 to 34', 'finds 26. Nothing was')


class KollaTestCase(testtools.TestCase):
    """nova-compute in containers: one snippet on the deployment host."""

    def setUp(self):
        super().setUp()
        self.site = self.useFixture(playbook.Site())
        self.config = self.site.path / 'config'
        self.snippet = self.config / 'nova/nova-compute.conf'
        self.site.container('with', hosts.checks(False))
        self.site.container('old', hosts.checks(False, Release_of_Nova=(
            2, 'Nova 26.2.2 is not supported.')))
        self.site.write_inventory(
            a={'nova_migfix_container': 'with'},
            b={'nova_migfix_container': 'with'})

    def roll(self, **variables):
        return self.site.run('rollout.yml', node_custom_config=str(
            self.config), **variables)

    def test_snippet_for_kolla_is_written_and_removed(self):
        ran = self.roll()
        self.assertEqual(0, ran.code, ran.out)
        self.assertEqual(0, ran.changed['b'])
        self.assertIn('kolla-ansible reconfigure', ran.out)
        self.assertEqual('migfix.LibvirtDriver', driver(self.snippet))
        self.assertEqual({'a': 0, 'b': 0}, self.roll().changed)
        self.roll(nova_migfix_state='absent')
        self.assertFalse(self.snippet.exists())
        self.assertEqual({'a': 0, 'b': 0}, self.roll(
            nova_migfix_state='absent').changed)

    def test_kolla_ansible_merges_the_snippet(self):
        self.snippet.parent.mkdir(parents=True)
        self.snippet.write_text(NOVA_CONF)
        self.roll()
        template = self.site.path / 'nova.conf.j2'
        template.write_text(NOVA_CONF)
        merged = self.site.path / 'nova.conf'
        done = subprocess.run(
            [playbook.BIN / 'ansible', 'localhost', '--playbook-dir', _KOLLA,
             '--module-name', 'merge_configs', '--args', json.dumps({
                 'sources': [str(template), str(self.snippet)],
                 'dest': str(merged)})],
            capture_output=True, text=True, env=self.site.environment)
        self.assertEqual(0, done.returncode, done)
        self.assertEqual('migfix.LibvirtDriver', driver(merged))
        self.assertIn('virt_type = kvm', merged.read_text())

    def test_settings_of_the_site_stay(self):
        self.snippet.parent.mkdir(parents=True)
        self.snippet.write_text(NOVA_CONF)
        self.roll()
        self.assertEqual('migfix.LibvirtDriver', driver(self.snippet))
        self.roll(nova_migfix_state='absent')
        self.assertEqual(NOVA_CONF, self.snippet.read_text())

    def assertRefused(self, said, **host):
        self.site.write_inventory(a={'nova_migfix_container': 'with'}, b=host)
        ran = self.roll()
        self.assertNotEqual(0, ran.code)
        self.assertIn(said, ran.out)
        self.assertFalse(self.snippet.exists())

    def test_rollout_without_a_container_is_refused(self):
        self.assertRefused('No such container: none',
                           nova_migfix_container='none')

    def test_rollout_in_containers_with_unsupported_nova_is_refused(self):
        self.assertRefused('Nova 26.2.2 is not supported.',
                           nova_migfix_container='old')

    def test_rollout_with_an_unreachable_host_is_refused(self):
        self.assertRefused('UNREACHABLE', ansible_connection='ssh',
                           ansible_host='127.0.0.1', ansible_port=1)

    def test_rollout_with_an_invalid_state_is_refused(self):
        ran = self.roll(nova_migfix_state='installed')
        self.assertNotEqual(0, ran.code)
        self.assertIn('present, absent', ran.out)
