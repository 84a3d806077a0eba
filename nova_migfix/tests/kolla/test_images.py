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

"""kolla-build with the files of ``kolla/``.

Without a container engine, and to save an hour, the images are not built; only
the step that installs the plugin runs.
"""

import contextlib
import io
import pathlib
import re
import sys

import ddt
import fixtures
import kolla
import testtools

from nova_migfix.cmd import tls
from nova_migfix.tests.kolla import changes
from nova_migfix.tests.kolla import image
from nova_migfix.tests import pages
from nova_migfix.tls import lint
from nova_migfix.tls import policy
from nova_migfix.tls import priority

BASES = ('debian', 'rocky', 'ubuntu')


@ddt.ddt
class DockerfileTestCase(testtools.TestCase):
    """The changed lines of the Dockerfiles with the plugin."""

    @ddt.data(*(
        (base, name) for base in BASES for name in image.IMAGES))
    @ddt.unpack
    def test_template_overrides_change_the_dockerfile_as_expected(
            self, base, name):
        self.assertEqual(
            changes.golden(f'{name}-{base}'),
            changes.changes(image.dockerfiles(base)[name],
                            image.dockerfiles(base, 'kolla-build.conf')[name]))

    @ddt.data(*BASES)
    def test_archive_needs_no_other_dockerfile(self, base):
        self.assertEqual(
            image.dockerfiles(base),
            image.dockerfiles(base, 'kolla-build-archive.conf'))

    @ddt.data(
        # base, family, QEMU's priority
        ('debian', 'debian', priority.NORMAL),
        ('ubuntu', 'ubuntu', priority.NORMAL),
        ('rocky', 'rhel', priority.SYSTEM))
    @ddt.unpack
    def test_image_has_the_right_policy(self, base, family, builtin):
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


class StepTestCase(image.NovaImageTestCase):
    """The step that installs the plugin, beside a supported Nova.

    :ivar REQUIREMENTS: patterns of the requirements that Nova lacks
    """

    REQUIREMENTS = ()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        with image.Image(cls.nova) as made:
            cls.stock = cls.take_step(
                made, image.dockerfiles('rocky')['nova-compute'])

    @classmethod
    def take_step(cls, made, dockerfile, wheels=None):
        """Run the last step of a Dockerfile; return the installed packages.

        :param wheels: a further directory with packages for pip
        """
        made.write('/usr/local/bin/kolla_nova_extend_start', '')
        made.run(f'mkdir --parents {image.PLUGINS}')
        if wheels:
            made.put(wheels, '/wheels')
        *_, step = image.steps(dockerfile)
        made.run(f'export PIP_FIND_LINKS="$PIP_FIND_LINKS /wheels"; {step}'
                 if wheels else step)
        return cls.installed(made)

    def assertPluginAdded(self, made, after):
        """Assert that only the plugin and its requirements were added."""
        self.assertEqual(set(), self.installed(self.nova) - after)
        self.assertEqual(set(), self.stock - after)
        added = sorted(after - self.stock, key=str.lower)
        expected = sorted((r'nova-migfix( @ |==1\.0\.0)', *self.REQUIREMENTS))
        self.assertEqual(len(expected), len(added), added)
        for package, pattern in zip(added, expected):
            self.assertRegex(package, f'(?i)^{pattern}')
        made.run('nova-migfix-status --help')
        made.run('python3 -c "import nova_migfix.driver"')

    def assertPackageAdded(self):
        place = self.useFixture(image.Checkout())
        made = self.useFixture(image.Image(self.nova))
        self.assertPluginAdded(made, self.take_step(
            made, image.dockerfiles(
                'rocky', 'kolla-build.conf')['nova-compute'],
            wheels=place.build().parent))


class PipStepTestCase(StepTestCase):

    def test_pip_step_installs_the_package(self):
        self.assertPackageAdded()

    def test_pip_step_installs_an_archive_of_a_wheel(self):
        place = self.useFixture(image.Checkout())
        wheel = place.build()
        place.run('tar', '--create', '--file', 'nova-migfix.tar',
                  '--directory', str(wheel.parent), '.')
        self.assertArchiveAdded(place)

    def test_pip_step_installs_a_source_archive(self):
        place = self.useFixture(image.Checkout())
        place.build('sdist').rename(place.path / 'nova-migfix.tar')
        self.assertArchiveAdded(place)

    def assertArchiveAdded(self, place):
        context = image.build(
            place, 'nova-migfix/kolla/kolla-build-archive.conf')
        made = self.useFixture(image.Image(self.nova))
        made.put(context / 'plugins-archive', '/plugins.tar')
        made.run('tar --extract --file /plugins.tar')
        self.assertPluginAdded(made, self.take_step(
            made, (context / 'Dockerfile').read_text()))


class OldestPipStepTestCase(StepTestCase):

    nova_release = 29
    REQUIREMENTS = ('markdown-it-py==', 'mdurl==', 'pygments==', 'rich==')

    @classmethod
    def setUpClass(cls):
        if sys.version_info >= (3, 12):
            raise cls.skipException('Nova 29 is for Python 3.11 at most.')
        super().setUpClass()

    def test_pip_step_installs_the_package_beside_nova_29(self):
        self.assertPackageAdded()


class PatchesTestCase(image.NovaImageTestCase):
    """A series of patches that kolla-build reads and an image applies."""

    IMAGE = 'nova-base'
    SERIES = '2026.2'       # the series for the Nova in the image
    FIXED = 'nova/virt/libvirt/driver.py'

    def render(self):
        """Run the documented commands; return the directory of the image."""
        place = self.useFixture(image.Checkout())
        place.run(sys.executable, '-m', 'tools.patches.kolla',
                  self.SERIES, 'kolla-patches',
                  PYTHONPATH=str(pages.CHECKOUT))
        place.run('kolla-build', '--patches-path', 'kolla-patches',
                  '--openstack-release', self.SERIES, '--base', 'rocky',
                  '--template-only', '--work-dir', 'work', '^nova-')
        return place.path / f'work/docker/nova/{self.IMAGE}'

    def test_kolla_applies_the_patches_after_it_installs_nova(self):
        files = self.render()
        dockerfile = (files / 'Dockerfile').read_text()
        install, _, apply = dockerfile.partition('COPY patches /patches\n')
        self.assertIn('pip --no-cache-dir install --upgrade', install)
        self.assertEqual('RUN kolla_patch', apply.splitlines()[0].strip())

        made = self.useFixture(image.Image(self.nova))
        made.put(files / 'patches', '/patches')
        made.put(self.script(), '/kolla_patch')
        packages = f'{image.VENV}/lib/python3*/site-packages'
        made.run(f'mkdir --parents /etc/kolla && '
                 f'ln --symbolic python3.{sys.version_info.minor} '
                 f'{image.VENV}/lib/python3')
        before = made.run(f'sha256sum {packages}/{self.FIXED}')
        made.run('bash /kolla_patch')
        self.assertEqual(
            (files / 'patches/series').read_text().split(),
            [line.removeprefix('[i] Applied /patches/') for line in made.run(
                'cat /etc/kolla/patched').splitlines()])
        self.assertNotEqual(before, made.run(
            f'sha256sum {packages}/{self.FIXED}'))

    @staticmethod
    def script():
        """Return Kolla's script, which its images have as kolla_patch."""
        return (pathlib.Path(kolla.__file__).parent
                / 'docker/base/kolla_patch.sh')
