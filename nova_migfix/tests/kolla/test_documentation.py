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

"""The commands of the installation pages, unchanged.

They run in an image that has Nova and the machine's other files, where
/etc/kolla, /opt/stack and the Python environment are the image's own.
"""

from nova_migfix.tests.kolla import deployment
from nova_migfix.tests.kolla import image
from nova_migfix.tests import pages

PLACE = '/root/site'
BIN = '/stand-ins'
STACK = '/opt/stack/data/venv'

#: Commands that this machine lacks, and limits of Kolla's tools here.
_STAND_INS = {
    'docker': 'shift 2; exec "$@"',
    'kolla-ansible': f'export PATH="$PATH:{image.BIN}"; '
                     f'exec {image.BIN}/kolla-ansible "$@" --list-tasks',
    'kolla-build': f'exec {image.BIN}/kolla-build "$@" --template-only '
                   '--work-dir /work',
    'sudo': 'exec "$@"',
    'systemctl': 'test "$*" = "restart devstack@n-cpu"',
}

_CHECK = 'docker exec nova_compute nova-migfix-status upgrade check'
_TASK = 'nova-cell : Include tasks for action {{ kolla_action }}'


class DocumentationTestCase(image.NovaImageTestCase):

    def setUp(self):
        super().setUp()
        self.place = self.useFixture(image.Checkout())
        self.image = self.useFixture(image.Image(self.nova))
        self.image.put(self.place.path, PLACE)
        for name, text in _STAND_INS.items():
            self.image.write(f'{BIN}/{name}', f'#!/bin/sh\n{text}\n', 0o755)
        self.image.run(f'mkdir --parents {STACK} && rmdir {STACK} && '
                       f'ln --symbolic {image.VENV} {STACK}')
        self.before = self.installed(self.image)

    def deploy(self):
        """Put a deployment and nova-compute's configuration into the image."""
        made = self.useFixture(deployment.Deployment())
        self.image.put(made.etc, '/etc/kolla')
        self.image.put(made.inventory, f'{PLACE}/multinode')
        made.take_over()
        self.image.write('/etc/nova/nova.conf',
                         made.configure()['nova-compute/nova.conf'])
        self.image.write('/var/log/kolla/nova/nova-compute.log',
                         'INFO nova_migfix.fixes [-] Fix vnic: active (a)\n')
        return made

    def release(self):
        """Make the package available to pip."""
        self.image.put(self.place.build().parent, '/wheels')

    def do(self, commands, allowed=None):
        """Run the commands of a page; yield each with its output.

        :param allowed: exit codes of commands that allow others than 0
        """
        for command, _ in commands:
            done = self.image.enter(
                f'cd {PLACE} && export PATH={BIN}:$PATH PBR_VERSION=1.0.0 '
                f'PIP_FIND_LINKS="$PIP_FIND_LINKS /wheels" && {command}')
            self.assertIn(done.returncode, (allowed or {}).get(command, {0}),
                          f'{command}: {done}')
            yield command, done.stdout

    def test_commands_of_the_pip_page_succeed(self):
        self.release()
        found = []
        for command, printed in self.do(pages.commands('install/pip.rst'), {
                'nova-migfix-status upgrade check': {0, 1, 2}}):
            found.append(self.installed(self.image) - self.before)
            self.assertEqual(set(), self.before - self.installed(self.image))
            if 'upgrade check' in command:
                self.assertIn('Check: Plugin', printed)
        self.assertEqual(
            [set(), {'nova-migfix==1.0.0'}, {'nova-migfix==1.0.0'}, set()],
            found)

    def test_commands_of_the_devstack_page_succeed(self):
        self.release()
        done = list(self.do(pages.commands('install/devstack.rst')))
        self.assertEqual(3, len(done))
        self.assertEqual(self.before | {'nova-migfix==1.0.0'},
                         self.installed(self.image))

    def test_commands_of_the_kolla_page_succeed(self):
        self.deploy()
        self.install()
        self.assertDone(pages.commands('install/kolla.rst'))

    def test_commands_of_the_rollout_page_succeed(self):
        made = self.deploy()
        # the state after the page about Kolla
        self.image.put(made.etc, '/etc/kolla')
        self.install()
        self.assertDone(pages.commands('install/rollout.rst'))

    def install(self):
        self.release()
        self.image.run('python3 -m pip install --no-index --no-deps '
                       '--find-links /wheels nova-migfix')

    def assertDone(self, commands):
        done = dict(self.do(commands, {_CHECK: {0, 1, 2}}))
        self.assertIn('Fix vnic', done[_CHECK])
        for command, printed in done.items():
            if command.startswith('kolla-ansible'):
                self.assertIn(_TASK, printed, command)
