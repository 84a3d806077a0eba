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

"""The patch set, applied to the installed Nova as Kolla applies it.

A separate process runs the patched Nova.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import fixtures
import testtools

from nova_migfix import nova_release
from nova_migfix.tests import environments
from nova_migfix.tests.functional import test_loading
from nova_migfix.tests import suites
from tools.patches import check
from tools.patches import kolla
from tools.patches import series

#: The fixes that are active in a patched Nova: it has no patch for them.
IN_FORCE = ('arrival', 'outage', 'paused', 'post_copy', 'restart',
            'serial_console', 'tls_rekey', 'volume')


class PatchedImage(fixtures.Fixture):
    """The root directory of a Kolla image with a patched Nova.

    :param name: the name of the series
    :ivar path: the path of the root directory
    :ivar site_packages: the directory of its Nova, with no other package
    :ivar before: the directory of the unpatched Nova
    """

    def __init__(self, name):
        self.name = name

    def _setUp(self):
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.site_packages = self.path / kolla.SITE_PACKAGES
        self.before = environments.site_packages(pathlib.Path(sys.executable))
        shutil.copytree(self.before / 'nova', self.site_packages / 'nova')
        patches = self.path / 'patches'
        kolla.write(self.name, patches)
        image = patches / kolla.IMAGE
        for name in (image / 'series').read_text().split():
            series.apply((image / name).read_text(), self.path)


class PatchedNovaTestCase(testtools.TestCase):

    #: the name of the series
    patched_by = series.of_nova(nova_release.major())

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.image = PatchedImage(cls.patched_by)
        cls.image.setUp()
        cls.addClassCleanup(cls.image.cleanUp)

    def run_python(self, *arguments):
        done = subprocess.run(
            [sys.executable, *arguments], text=True, cwd=self.image.path,
            env={**os.environ, 'PYTHONPATH': str(self.image.site_packages)},
            stdin=subprocess.DEVNULL, capture_output=True)
        self.assertEqual(0, done.returncode, done.stderr)
        return done.stdout

    def test_tests_of_the_patches_pass(self):
        new = {f'{series.module(path)}.{test}'
               for patch in series.read(self.patched_by)
               for path in series.touched(patch)
               if path.startswith(f'{series.TESTS}unit/')
               for test in check.changed_tests(*(
                   self.read(where, path) for where in (
                       self.image.before, self.image.site_packages)))}
        modules = {name.rsplit('.', 2)[0] for name in new}
        directory = self.image.path / 'results'
        with open(self.image.path / 'log', 'w+') as log:
            statuses = suites.run(
                directory, output=log, attempts=1,
                only=lambda name: check.is_among(name, new),
                PYTHONPATH=str(self.image.site_packages),
                MIGFIX_COMPAT_MODULES=' '.join(sorted(modules)))
            log.seek(0)
            self.addDetail('log', testtools.content.text_content(log.read()))
        self.assertEqual(set(), new - {
            test for name in statuses for test in new
            if check.is_among(name, {test})}, 'not run')
        self.assertEqual({}, {
            name: status for name, status in statuses.items()
            if not suites.is_good(status)})

    @staticmethod
    def read(directory, path):
        file = directory / path
        return file.read_text() if file.exists() else ''

    def test_fixes_of_the_plugin_are_off_in_a_patched_nova(self):
        log = self.image.path / 'nova-compute.log'
        configuration = self.image.path / 'nova.conf'
        configuration.write_text(
            '[DEFAULT]\n'
            'compute_driver = migfix.LibvirtDriver\n'
            'transport_url = fake://\n'
            f'log_file = {log}\n'
            f'state_path = {self.image.path}\n')
        loaded = json.loads(self.run_python(
            '-c', test_loading.NOVA_COMPUTE, '--config-file', configuration))
        self.assertEqual(str(self.image.site_packages / 'nova'),
                         *loaded['nova_path'])
        self.assertEqual('nova.virt.migfix', loaded['module'])
        text = log.read_text()
        for name in ('config_drive', 'ephemeral', 'kernel_ramdisk',
                     'libvirt_events', 'rollback_state', 'source_address',
                     'vnic'):
            self.assertIn(f'Fix {name}: not needed in this Nova, it', text)
        for name in IN_FORCE:
            self.assertIn(f'Fix {name}: active', text)

    def test_patched_nova_matches_the_golden_files(self):
        self.run_python('-m', 'testtools.run',
                        'nova_migfix.tests.unit.abi.test_vnic')

    def test_patched_nova_and_plugin_agree_on_disks(self):
        self.run_python('-m', 'testtools.run',
                        'nova_migfix.tests.functional.patched_disks')


@testtools.skipUnless(series.SERIES['master'] == nova_release.major(),
                      'made for another Nova')
class ForReviewTestCase(PatchedNovaTestCase):
    """The series for review, on the Nova for which it was made."""

    patched_by = 'master'
