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

"""Images: the Dockerfiles that kolla-build makes with ``kolla/``.

For want of a container engine, and of an hour, they are not built.
"""

import contextlib
import io
import pathlib
import re
import subprocess
import sys

import ddt
import fixtures
import testtools

from nova_migfix.cmd import tls
from nova_migfix.tests import pages
from nova_migfix.tls import lint
from nova_migfix.tls import policy

_BIN = pathlib.Path(sys.executable).parent
_LIMIT = 300    # seconds

_RUN = re.compile(r'^RUN ((?:.*\\\n)*.*)', re.MULTILINE)


@ddt.ddt
class NovaLibvirtTestCase(testtools.TestCase):

    def commands(self, base):
        """What is run last to make the image, on a base distribution."""
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        config = directory / 'kolla-build.conf'
        config.write_text('[DEFAULT]\ntemplate_override = '
                          f'{pages.CHECKOUT}/kolla/template-overrides.j2\n')
        subprocess.run(
            [_BIN / 'kolla-build', '--config-file', config, '--template-only',
             '--base', base, '--work-dir', directory, '^nova-libvirt$'],
            check=True, capture_output=True, timeout=_LIMIT)
        text = (directory / 'docker/nova/nova-libvirt/Dockerfile').read_text()
        return [re.sub(r'\s*\\\n\s*', ' ', command)
                for command in _RUN.findall(text)]

    @ddt.data(
        # base, family, QEMU's priority, package that is needed
        ('debian', 'debian', lint.NORMAL, 'python3-venv'),
        ('ubuntu', 'ubuntu', lint.NORMAL, 'python3-venv'),
        ('rocky', 'rhel', lint.SYSTEM, 'crypto-policies-scripts'))
    @ddt.unpack
    def test_policy(self, base, family, builtin, package):
        *before, install, generate, probe = self.commands(base)
        self.assertTrue(any(package in command for command in before))
        self.assertIn('pip --no-cache-dir install nova-migfix ', install)
        self.assertEqual('nova-migfix-tls probe --user nova', probe)
        self.assertGenerates(family, builtin, generate)

    def assertGenerates(self, family, builtin, command):
        arguments, path, then = re.search(
            r'nova-migfix-tls (generate .*)--output (\S+)(.*)',
            command).groups()
        self.assertEqual(policy.FAMILIES[family].path, path)
        self.assertEqual(
            ' && update-crypto-policies' if family == 'rhel' else '', then)
        file = pathlib.Path(self.useFixture(fixtures.TempDir()).join('made'))
        with contextlib.redirect_stderr(io.StringIO()):
            tls.main([*arguments.split(), '--output', str(file)])
        self.assertEqual([], lint.lint(file.read_text(), builtin))
