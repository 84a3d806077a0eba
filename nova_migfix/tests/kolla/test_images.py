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

"""Images: what kolla-build makes of ``kolla/``.

For want of a container engine, and of an hour, they are not built; the one
step that installs the plugin is.
"""

import contextlib
import difflib
import io
import os
import pathlib
import re
import shlex
import sys
import tarfile

import ddt
import fixtures
import testtools

from nova_migfix.cmd import tls
from nova_migfix.tests.kolla import image
from nova_migfix.tests import pages
from nova_migfix.tls import lint
from nova_migfix.tls import policy

GOLDEN = pathlib.Path(__file__).parent / 'golden'
BASES = ('debian', 'rocky', 'ubuntu')

#: Of the release that this Kolla has.
CONSTRAINTS = pages.CHECKOUT / 'constraints/nova-34.txt'


def changes(before, after):
    """Return the lines that differ, without empty ones and their places."""
    return ''.join(
        line for line in list(difflib.unified_diff(
            before.splitlines(keepends=True), after.splitlines(keepends=True),
            n=0))[2:] if not line.startswith('@@') and line[1:].strip())


@ddt.ddt
class DockerfileTestCase(testtools.TestCase):
    """Line by line, what is other than in the images of everybody."""

    @ddt.data(*(
        (base, name) for base in BASES for name in image.IMAGES))
    @ddt.unpack
    def test_template_overrides(self, base, name):
        self.assertEqual(
            (GOLDEN / f'{name}-{base}.diff').read_text(),
            changes(image.dockerfiles(base)[name],
                    image.dockerfiles(base, 'kolla-build.conf')[name]))

    @ddt.data(*BASES)
    def test_an_archive_needs_no_other_dockerfile(self, base):
        self.assertEqual(
            image.dockerfiles(base),
            image.dockerfiles(base, 'kolla-build-archive.conf'))

    @ddt.data(
        # base, family, QEMU's priority
        ('debian', 'debian', lint.NORMAL),
        ('ubuntu', 'ubuntu', lint.NORMAL),
        ('rocky', 'rhel', lint.SYSTEM))
    @ddt.unpack
    def test_the_policy_is_right(self, base, family, builtin):
        dockerfile = image.dockerfiles(base, 'kolla-build.conf')
        *_, generate, _ = image.steps(dockerfile['nova-libvirt'])
        arguments, path = re.search(
            r'nova-migfix-tls (generate .*)--output (\S+)',
            generate).groups()
        self.assertEqual(policy.FAMILIES[family].path, path)
        file = pathlib.Path(self.useFixture(fixtures.TempDir()).join('made'))
        with contextlib.redirect_stderr(io.StringIO()):
            tls.main([*arguments.split(), '--output', str(file)])
        self.assertEqual([], lint.lint(file.read_text(), builtin))


class PipStepTestCase(testtools.TestCase):
    """The step that installs the plugin, beside the Nova that it is for.

    This release's constraints stand in for the upper constraints of Kolla.
    """

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.nova = image.Image()
        cls.nova.setUp()
        cls.addClassCleanup(cls.nova.cleanUp)
        done = cls.nova.enter('true')
        if done.returncode:
            raise cls.skipException(f'no root directory: {done.stderr}')
        cls.nova.put(CONSTRAINTS, image.CONSTRAINTS)
        cls.nova.run(shlex.join([
            str(image.BIN / 'uv'), 'venv', '--quiet', '--seed', '--python',
            os.path.realpath(sys.executable), image.VENV]))
        cls.nova.run(
            f'python3 -m pip --quiet install -c {image.CONSTRAINTS} nova')
        cls.stock = cls.made_from_nova(
            image.dockerfiles('rocky')['nova-compute'])

    @classmethod
    def made_from_nova(cls, dockerfile, plugins=None, wheels=None):
        """An image that the last step of a Dockerfile makes.

        :param plugins: the archive that Kolla adds
        :param wheels: a directory where pip looks for packages as well
        """
        made = image.Image(cls.nova)
        made.setUp()
        cls.addClassCleanup(made.cleanUp)
        with fixtures.TempDir() as directory:
            added = pathlib.Path(directory.path)
            (added / 'plugins').mkdir()
            if plugins:
                with tarfile.open(plugins) as archive:
                    archive.extractall(added, filter='data')
            (added / 'script').touch()
            made.put(added / 'plugins', image.PLUGINS)
            made.put(added / 'script',
                     '/usr/local/bin/kolla_nova_extend_start')
        if wheels:
            made.put(wheels, '/wheels')
        *_, step = image.steps(dockerfile)
        made.run(f'export PIP_FIND_LINKS="$PIP_FIND_LINKS /wheels"; {step}'
                 if wheels else step)
        return made

    def installed(self, made):
        return set(made.run('python3 -m pip freeze').splitlines())

    def assertPluginAdded(self, made):
        """Assert that it was added, and that nothing else was changed."""
        before, after = self.installed(self.stock), self.installed(made)
        self.assertEqual(set(), self.installed(self.nova) - after)
        self.assertEqual(set(), before - after)
        added, = after - before
        self.assertRegex(added, r'nova-migfix( @ |==1\.0\.0)')
        made.run('nova-migfix-status --help')
        made.run('python3 -c "import nova_migfix.driver"')

    def assertOptionsKnown(self, made):
        """Assert that Kolla Ansible's validation sees to [migfix] as well.

        It asks for the options by the namespaces that Nova names.
        """
        for text, complaints in (('enabled_fixes = vnic', 0),
                                 ('enabled_fixe = vnic', 1)):
            made.run(f'echo "[migfix]\n{text}" > /tmp/nova.conf')
            validated = made.enter('oslo-config-validator --namespace '
                                   'nova.conf --input-file /tmp/nova.conf')
            self.assertEqual(complaints, validated.stderr.count(
                'is not part of the sample config'), validated)
            self.assertEqual(complaints, validated.returncode, validated)

    def test_package(self):
        place = self.useFixture(image.Checkout())
        place.build('wheel')
        made = self.made_from_nova(
            image.dockerfiles('rocky', 'kolla-build.conf')['nova-compute'],
            wheels=place.checkout / 'dist')
        self.assertPluginAdded(made)
        self.assertOptionsKnown(made)

    def test_archive(self):
        place = self.useFixture(image.Checkout())
        place.build('sdist')
        context = image.build(place, 'kolla-build-archive.conf')
        self.assertPluginAdded(self.made_from_nova(
            (context / 'Dockerfile').read_text(),
            plugins=context / 'plugins-archive'))
