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

import os
import pathlib
import subprocess
import sys
from unittest import mock

import ddt
import fixtures
from hypothesis import given
from hypothesis import strategies as st
from oslo_concurrency import processutils
import testtools

from nova_migfix.tls import gnutls


@ddt.ddt
class TestVersion(testtools.TestCase):

    @ddt.data(
        # bytes in the libraries of Debian 12 and of a wheel
        (b'/usr/share/locale\x000.3.4\x003.7.9\x00', '3.7.9'),
        (b'NUTLS_DEBUG_LEVEL\x000.3.4\x003.8.1\x00', '3.8.1'),
        (b'GnuTLS 3.8.11\x00', '3.8.11'),
        (b'3.8.9\x00 and again 3.8.9\x00', '3.8.9'),
        (b'3.8.9\x00 or 3.8.11\x00', None),
        (b'13.8.9\x00 1.3.8.9\x00 3.8.9 of\x00', None),
        (b'', None))
    @ddt.unpack
    def test_version_is_read_from_the_library(self, content, expected):
        path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('libgnutls.so.30'))
        path.write_bytes(content)
        self.assertEqual(expected, gnutls.version(path))

    def test_version_of_a_missing_file_is_unknown(self):
        self.assertIsNone(gnutls.version(pathlib.Path('/nowhere')))

    def test_version_does_not_wait_for_a_pipe(self):
        # a container may have any file at the path of the library
        path = self.useFixture(fixtures.TempDir()).join('libgnutls.so.30')
        os.mkfifo(path)
        self.assertIsNone(gnutls.version(pathlib.Path(path)))

    def test_version_of_a_device_is_not_read(self):
        self.assertIsNone(gnutls.version(pathlib.Path('/dev/zero')))

    def test_file_larger_than_memory_is_read_in_part(self):
        path = self.useFixture(fixtures.TempDir()).join('libgnutls.so.30')
        with open(path, 'wb') as file:
            file.write(b'3.8.9\0')
            file.truncate(1 << 42)
        self.assertEqual('3.8.9', gnutls.version(pathlib.Path(path)))

    @given(st.lists(st.sampled_from(
        [b'3.8.9\0', b'3.8.11\0', b'\xff', b'3.', b'\0', b'\n'])))
    def test_any_content_gives_a_version_or_none(self, parts):
        path = self.useFixture(fixtures.TempDir()).join('library')
        pathlib.Path(path).write_bytes(b''.join(parts))
        self.assertIn(gnutls.version(pathlib.Path(path)),
                      ('3.8.9', '3.8.11', None))


class TestPackage(testtools.TestCase):

    def package(self, **answers):
        def execute(_timeout, _seconds, command, *_):
            answer = answers[command.replace('-', '_')]
            if isinstance(answer, Exception):
                raise answer
            return answer, ''

        with mock.patch.object(processutils, 'execute', autospec=True,
                               side_effect=execute), \
                mock.patch.object(gnutls.shutil, 'which', autospec=True,
                                  side_effect=lambda command: (
                                      command.replace('-', '_') in answers)):
            return gnutls._package.__wrapped__()     # the result is cached

    def test_package_version_comes_from_dpkg(self):
        self.assertEqual('3.7.9-2', self.package(dpkg_query='3.7.9-2'))

    def test_package_version_comes_from_rpm(self):
        self.assertEqual('3.8.3-6.el9_6.2',
                         self.package(rpm='3.8.3-6.el9_6.2\n'))

    def test_package_may_have_several_architectures(self):
        # '3.8.3-6.el9_6.13.8.3-6.el9_6.1' would seem to be fixed
        self.assertEqual('3.8.3-6.el9_6.1',
                         self.package(rpm='3.8.3-6.el9_6.1\n' * 2))
        for command in gnutls._PACKAGE:
            self.assertTrue(command[3].endswith(r'}\n'), command)

    def test_rpm_is_asked_if_dpkg_does_not_know_the_package(self):
        self.assertEqual('3.8.3-6.el9_6.2', self.package(
            dpkg_query=processutils.ProcessExecutionError(),
            rpm='3.8.3-6.el9_6.2'))

    def test_package_version_is_empty_without_dpkg_and_rpm(self):
        self.assertEqual('', self.package())


class TestSystemFile(testtools.TestCase):

    def test_system_file_is_the_one_that_gnutls_reports(self):
        library = mock.Mock()
        library.gnutls_get_system_config_file.return_value = b'/etc/its/own'
        with mock.patch.object(gnutls.ctypes, 'CDLL', autospec=True,
                               return_value=library):
            self.assertEqual(pathlib.Path('/etc/its/own'),
                             gnutls.system_file())

    def test_system_file_is_not_that_of_the_environment(self):
        with fixtures.EnvironmentVariable(
                'GNUTLS_SYSTEM_PRIORITY_FILE', '/its/own'):
            out = subprocess.run(
                [sys.executable, '-c', 'import os\n'
                 'from nova_migfix.tls import gnutls\nprint('
                 'gnutls.system_file(), os.environ[gnutls._OVERRIDE])'],
                capture_output=True, text=True, check=True, timeout=60).stdout
        found, override = out.split()
        self.assertEqual('/its/own', override)
        self.assertNotEqual('/its/own', found)

    def test_system_file_without_gnutls_is_unknown(self):
        with mock.patch.object(gnutls.ctypes, 'CDLL', autospec=True,
                               side_effect=OSError):
            self.assertIsNone(gnutls.system_file())
