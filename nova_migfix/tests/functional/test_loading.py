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

"""nova-compute loads the driver in environments with only Nova and plugin.

Each environment is made as by a deployer: Nova first, then the wheel of the
plugin, by pip, without constraints. nova-compute then runs until its service
would connect to a message queue and to libvirt.
"""

from __future__ import annotations

from importlib import metadata
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
import typing

import fixtures
from nova import version
import testtools
from testtools import matchers
import uv

from nova_migfix import nova_release
from nova_migfix.tests import distribution

CHECKOUT = pathlib.Path(__file__).parents[3]

#: The driver is loaded into the release of Nova that runs these tests.
RELEASE = version.version_string()

#: An unsupported older release, that of Debian 12.
OLD_RELEASE = '26.2.2'

#: Requirements of the plugin that Nova lacks before release 32.
RICH = ('markdown-it-py', 'mdurl', 'pygments', 'rich')

#: nova-compute without the message queue, libvirt and its service.
NOVA_COMPUTE = textwrap.dedent('''
    import json
    import sys
    from unittest import mock

    sys.modules['libvirt'] = mock.MagicMock()

    from nova.cmd import compute
    import nova
    from nova import service
    from nova.virt import driver
    from nova.virt import virtapi

    def create(**kwargs):
        loaded = driver.load_compute_driver(virtapi.VirtAPI())
        import nova.virt.libvirt.driver
        print(json.dumps({
            'module': type(loaded).__module__,
            'name': type(loaded).__name__,
            'is_nova_driver': isinstance(
                loaded, nova.virt.libvirt.driver.LibvirtDriver),
            'nova_path': list(nova.__path__),
            'libvirt_driver': nova.virt.libvirt.driver.__file__,
        }))

    with mock.patch.object(service.Service, 'create', create), \\
            mock.patch.object(service, 'serve', autospec=True), \\
            mock.patch.object(service, 'wait', autospec=True):
        compute.main()
''')


def run(*command, **kwargs):
    """Run a command that must succeed; return its output."""
    done = subprocess.run(
        command, text=True, stdin=subprocess.DEVNULL, capture_output=True,
        **kwargs)
    if done.returncode:
        raise AssertionError(
            f'{command} ended with {done.returncode}:\n{done.stderr}')
    return done.stdout


def require_index():
    """Skip where packages cannot be fetched."""
    with fixtures.TempDir() as directory:
        asked = subprocess.run(
            [uv.find_uv_bin(), 'pip', 'install', '--dry-run', '--no-cache',
             '--target', directory.path, 'pbr'],
            text=True, capture_output=True)
    if asked.returncode:
        raise testtools.TestCase.skipException(
            f'No package index can be reached: {asked.stderr}')


class NovaEnvironment(fixtures.Fixture):
    """A virtual environment with a Nova and, by pip, the plugin.

    :ivar before: the packages before the installation of the plugin
    :ivar after: the packages after it
    """

    def __init__(self, release=RELEASE, editable=False):
        super().__init__()
        self._release = release
        self._editable = editable

    def _setUp(self):
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.python = self.directory / 'venv' / 'bin' / 'python'
        self._uv('venv', '--seed', '--python', sys.executable,
                 self.directory / 'venv')
        if self._editable:
            self._install_editable()
        else:
            self._install(f'nova=={self._release}')
        self.before = self._freeze()
        self._pip('install', self.useFixture(
            distribution.Wheel('1.0.0')).path)
        self.after = self._freeze()

    def _install_editable(self):
        self._pip('download', '--no-deps', '--no-binary', 'nova',
                  '--dest', self.directory, f'nova=={self._release}')
        archive, = self.directory.glob('nova-*.tar.gz')
        shutil.unpack_archive(archive, self.directory)
        self.source = self.directory / archive.name.removesuffix('.tar.gz')
        self._install('--editable', self.source)

    def _install(self, *what):
        """Install with the libraries that were released with that Nova.

        Those of the oldest supported release also suit older ones.
        """
        major = max(int(self._release.partition('.')[0]),
                    nova_release.OLDEST)
        released = CHECKOUT / 'constraints' / f'nova-{major}.txt'
        libraries = self.directory / 'libraries.txt'
        libraries.write_text(''.join(
            line for line in released.read_text().splitlines(keepends=True)
            if not line.startswith('nova==')))
        self._uv('pip', 'install', '--python', self.python,
                 '--constraint', libraries, 'setuptools', *what)

    def _freeze(self):
        return set(self._pip('freeze').splitlines())

    def _uv(self, *arguments):
        return run(uv.find_uv_bin(), '-q', *arguments)

    def _pip(self, *arguments):
        return run(self.python, '-m', 'pip', '-q',
                   '--disable-pip-version-check', *arguments)

    def nova(self):
        """Return the directory of Nova's package."""
        if self._editable:
            return self.source / 'nova'
        package, = self.directory.glob('venv/lib/python*/site-packages/nova')
        return package

    def start_nova_compute(self, enabled_fixes=None, path=''):
        """Run nova-compute until its driver is loaded.

        :param enabled_fixes: the value of the option, None for its default
        :param path: a directory with more distributions
        :returns: exit status, the loaded driver or None, and the log
        """
        configuration = self.directory / 'nova.conf'
        log = self.directory / 'nova-compute.log'
        log.unlink(missing_ok=True)
        configuration.write_text(
            '[DEFAULT]\n'
            'compute_driver = migfix.LibvirtDriver\n'
            'transport_url = fake://\n'
            f'log_file = {log}\n'
            f'state_path = {self.directory}\n'
            '[migfix]\n' + (
                '' if enabled_fixes is None else
                f'enabled_fixes = {enabled_fixes}\n'))
        process = subprocess.run(
            [self.python, '-c', NOVA_COMPUTE,
             '--config-file', configuration],
            text=True, stdin=subprocess.DEVNULL, capture_output=True,
            cwd=self.directory, env={**os.environ, 'PYTHONPATH': path})
        return Start(
            process.returncode,
            json.loads(process.stdout) if process.stdout else None,
            log.read_text() if log.exists() else process.stderr)


class Start(typing.NamedTuple):
    status: int
    driver: dict[str, typing.Any] | None
    log: str


class LoadingTestCase(testtools.TestCase):
    """One environment for all tests of a class."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        require_index()
        cls.environment = cls.make_environment()
        cls.environment.setUp()
        cls.addClassCleanup(cls.environment.cleanUp)

    def assertLoaded(self, started):
        """Assert that nova-compute has our driver, and Nova is intact."""
        self.assertEqual(0, started.status, started.log)
        nova = self.environment.nova()
        self.assertEqual({
            # the name of the module is that of its logger, a child of Nova's
            'module': 'nova.virt.migfix',
            'name': 'LibvirtDriver',
            'is_nova_driver': True,
            'nova_path': [str(nova)],
            'libvirt_driver': str(nova / 'virt' / 'libvirt' / 'driver.py'),
        }, started.driver)

    def assertRefused(self, reason, started):
        """Assert that nova-compute ended, and that its log says why."""
        self.assertNotEqual(0, started.status, started.log)
        self.assertIsNone(started.driver)
        self.assertThat(started.log, matchers.MatchesRegex(
            '.* CRITICAL nova .*InvalidConfiguration: ' + re.escape(reason),
            re.DOTALL))

    def assertUntouched(self):
        """Assert that pip added missing packages and changed no others."""
        before, after = self.environment.before, self.environment.after
        self.assertEqual(set(), before - after)
        self.assertEqual(
            {'nova-migfix'} if nova_release.major() >= 32
            else {'nova-migfix', *RICH},
            {re.split(' @ |==', line)[0].lower() for line in after - before})


class NovaWheelTestCase(LoadingTestCase):
    """Nova was installed from its wheel, as in images of Kolla."""

    @classmethod
    def make_environment(cls):
        return NovaEnvironment()

    def test_wheel_leaves_nova_and_its_libraries_alone(self):
        self.assertUntouched()

    def test_nova_compute_starts_and_logs_each_fix(self):
        started = self.environment.start_nova_compute(
            enabled_fixes='rollback_state,vnic')
        self.assertLoaded(started)
        self.assertThat(started.log, matchers.MatchesAll(*(
            matchers.MatchesRegex(
                rf'.* INFO nova_migfix\S* .*\bFix {outcome}', re.DOTALL)
            for outcome in (
                r'vnic: active \(',
                'source_address: switched off by',
                'rollback_state: ' + (
                    r'active \(' if nova_release.major() >= 32
                    else 'not needed'),
            ))))

    def test_unknown_fix_ends_nova_compute(self):
        started = self.environment.start_nova_compute(
            enabled_fixes='vnic,vnicc')
        known = ', '.join(sorted(point.name for point in (
            metadata.entry_points(group='nova_migfix.fixes'))))
        self.assertRefused(
            '[migfix] enabled_fixes names unknown fixes: vnicc. '
            f'The known fixes are: {known}.', started)

    def test_fix_that_cannot_be_loaded_ends_nova_compute(self):
        others = self.useFixture(BrokenFix()).path
        self.assertRefused(
            'The fix broken cannot be loaded from broken_fix:Broken: '
            'its library is missing.',
            self.environment.start_nova_compute(path=others))

    def test_fix_that_cannot_be_loaded_can_be_disabled(self):
        others = self.useFixture(BrokenFix()).path
        started = self.environment.start_nova_compute(
            enabled_fixes='vnic', path=others)
        self.assertLoaded(started)
        self.assertIn('Fix broken: switched off', started.log)


class EditableNovaTestCase(LoadingTestCase):
    """Nova was installed in place (PEP 660), as by DevStack.

    A file of another distribution in ``nova/virt`` would then hide Nova's
    package behind a directory of the same name.
    """

    @classmethod
    def make_environment(cls):
        return NovaEnvironment(editable=True)

    def test_wheel_leaves_editable_nova_and_its_libraries_alone(self):
        self.assertUntouched()

    def test_nova_compute_starts_with_an_editable_nova(self):
        self.assertLoaded(self.environment.start_nova_compute())


class OldNovaTestCase(LoadingTestCase):
    """Nova is older than the supported releases."""

    @classmethod
    def make_environment(cls):
        return NovaEnvironment(release=OLD_RELEASE)

    def test_nova_compute_with_an_old_nova_ends(self):
        self.assertRefused(
            f'nova_migfix supports Nova {nova_release.OLDEST} to '
            f'{nova_release.NEWEST}, this is {OLD_RELEASE}.',
            self.environment.start_nova_compute())


class BrokenFix(fixtures.Fixture):
    """A distribution that registers a fix which cannot be loaded.

    :ivar path: the directory in which it is installed
    """

    def _setUp(self):
        self.path = self.useFixture(fixtures.TempDir()).path
        directory = pathlib.Path(self.path)
        (directory / 'broken_fix.py').write_text(
            "raise ImportError('its library is missing')\n")
        installed = directory / 'broken_fix-1.0.dist-info'
        installed.mkdir()
        (installed / 'METADATA').write_text(
            'Metadata-Version: 2.1\nName: broken-fix\nVersion: 1.0\n')
        (installed / 'entry_points.txt').write_text(
            '[nova_migfix.fixes]\nbroken = broken_fix:Broken\n')
