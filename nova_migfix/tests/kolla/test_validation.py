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

"""``kolla-ansible validate-config`` on the options of ``[migfix]``.

The tests run the command that its role runs in the container.
"""

import jinja2
import yaml

from nova_migfix.tests.kolla import deployment
from nova_migfix.tests.kolla import image
from nova_migfix.tests import pages

_ROLES = deployment.SHARE / 'ansible/roles'
_TASK = 'Validate configurations for {{ service.container_name }}'

OPTIONS = '[migfix]\nenabled_fixes = vnic\nrefuse_unsafe_tls = true\n'


def command():
    """Return the command of the role on the host of nova-compute."""
    tasks = {task['name']: task for task in yaml.safe_load((
        _ROLES / 'service-config-validate/tasks/validate.yml').read_text())}
    files, = yaml.safe_load((_ROLES / 'nova-cell/defaults/main.yml'
                             ).read_text())['nova_cell_config_validation']
    return jinja2.Template(tasks[_TASK]['ansible.builtin.command']).render(
        kolla_container_engine='docker', inner_item=files,
        service={'container_name': 'nova_compute'})


class ValidationTestCase(image.NovaImageTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.nova.write('/usr/local/bin/docker',
                       '#!/bin/sh\nshift 2; exec "$@"\n', 0o755)
        # the images have Nova's source beside the installed Nova
        cls.nova.run(
            'mkdir /nova && python3 -m pip --quiet download --no-deps '
            '--no-binary nova --dest / nova=='
            '$(nova-manage --version 2>/dev/null) && '
            'tar --extract --directory /nova --strip-components 1 '
            '--file /nova-*.tar.gz')
        with deployment.Deployment() as made:
            made.take_over()
            cls.configuration = made.configure()['nova-compute/nova.conf']

    def said(self, made, nova_conf):
        """Return the complaints about a nova.conf of an image."""
        made.write('/etc/nova/nova.conf', nova_conf)
        done = made.enter(command())
        self.assertIn(done.returncode, (0, 1), done)
        return [line for line in done.stderr.splitlines()
                if 'oslo_config.validator' in line]

    def with_plugin(self):
        place = self.useFixture(image.Checkout())
        made = self.useFixture(image.Image(self.nova))
        made.put(place.build().parent, '/wheels')
        made.run('python3 -m pip install --no-index --no-deps '
                 '--find-links /wheels nova-migfix')
        return made

    def without_plugin(self):
        return self.useFixture(image.Image(self.nova))

    def test_validation_accepts_the_options_of_the_plugin(self):
        stock = self.configuration.replace(
            'migfix.LibvirtDriver', 'libvirt.LibvirtDriver')
        self.assertNotEqual(stock, self.configuration)
        before = self.said(self.without_plugin(), stock)
        self.assertEqual(before, self.said(
            self.with_plugin(), self.configuration + OPTIONS))

    def test_validation_finds_a_misspelt_option(self):
        before = self.said(self.without_plugin(), self.configuration)
        made = self.with_plugin()
        self.assertEqual(
            [*before, 'ERROR:oslo_config.validator:migfix/enabled_fix is not '
             'part of the sample config'],
            self.said(made, f'{self.configuration}[migfix]\n'
                            'enabled_fix = vnic\n'))

    def test_validation_finds_options_left_without_the_plugin(self):
        page = (pages.CHECKOUT / 'doc/source/install/kolla.rst').read_text()
        before = self.said(self.without_plugin(), self.configuration)
        left_over = self.said(
            self.without_plugin(),
            f'{self.configuration}[migfix]\nenabled_fixes = vnic\n')
        self.assertEqual(1, len(left_over) - len(before))
        self.assertIn(left_over[-1], page)
