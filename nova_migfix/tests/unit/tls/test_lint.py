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

import contextlib
import io
import pathlib
from unittest import mock

import ddt
import fixtures
import testtools

from nova_migfix.cmd import tls
from nova_migfix.tests import policies
from nova_migfix.tls import gnutls
from nova_migfix.tls import lint
from nova_migfix.tls import policy


@ddt.ddt
class TestLint(testtools.TestCase):

    def complaints(self, text, builtin=lint.NORMAL):
        return [finding.text for finding in lint.lint(text, builtin)]

    @ddt.data(*(
        (name, builtin, expected[name].complaint)
        for builtin, expected in ((lint.NORMAL, policies.EXPECTED),
                                  (lint.SYSTEM, policies.EXPECTED_OF_SYSTEM))
        for name in expected))
    @ddt.unpack
    def test_each_policy_file_has_the_expected_complaint(
            self, name, builtin, expected):
        found = self.complaints(policies.path(name).read_text(), builtin)
        self.assertEqual(bool(expected), bool(found), found)
        if expected:
            self.assertIn(expected, found[0])

    def test_finding_has_line_and_severity(self):
        finding, = lint.lint('# ours\n[overrides]\nenabled-versio = x\n')
        self.assertEqual(
            (3, lint.Severity.FAILURE), (finding.line, finding.severity))

    def test_setting_before_any_section_is_found(self):
        self.assertIn('write [overrides] before it', self.complaints(
            'disabled-version = tls1.3\n')[0])

    @ddt.data('SYSTEM', 'QEMU')
    def test_system_or_qemu_entry_is_accepted_for_a_system_build(self, key):
        for priority in policy.PRIORITIES.values():
            self.assertEqual([], self.complaints(
                f'[priorities]\n{key} = {priority}\n', lint.SYSTEM))

    def test_system_entry_that_allows_tls13_is_found(self):
        self.assertIn('no setting keeps QEMU', self.complaints(
            '[priorities]\nSYSTEM = NORMAL\n', lint.SYSTEM)[0])

    @ddt.data(*(
        (family, mode) for family in ('debian', 'ubuntu', 'rhel')
        for mode in policy.PRIORITIES))
    @ddt.unpack
    def test_generated_policy_has_no_complaints(self, family, mode):
        text = policy.merge(policy.FAMILIES[family], mode, '')
        builtin = lint.SYSTEM if family == 'rhel' else lint.NORMAL
        self.assertEqual([], self.complaints(text, builtin))


class TestLintCommand(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.directory.chmod(0o755)
        self.file = self.directory / 'config'
        self.file.write_text(policies.path('disabled-version').read_text())

    def lint(self, *arguments):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = tls.main(['lint', str(self.file), *arguments])
        return status, out.getvalue()

    def test_correct_policy_is_success(self):
        status, said = self.lint('--qemu-priority', lint.NORMAL)
        self.assertEqual(0, status)
        self.assertIn('no setting is ignored', said)

    def test_empty_policy_is_a_warning(self):
        self.file.write_text('')
        status, said = self.lint('--qemu-priority', lint.NORMAL)
        self.assertEqual(1, status)
        self.assertIn(f'{self.file}: warning: no setting keeps', said)

    def test_malformed_policy_is_a_failure(self):
        self.file.write_text('\n\nin vain\n')
        status, said = self.lint('--qemu-priority', lint.NORMAL)
        self.assertEqual(2, status)
        self.assertIn(f'{self.file}:3: failure: ', said)

    def test_file_that_qemu_cannot_read_is_a_failure(self):
        self.file.chmod(0o640)
        status, said = self.lint('--qemu-priority', lint.NORMAL)
        self.assertEqual(2, status)
        self.assertIn(f'chmod 0644 {self.file}', said)

    def test_directory_that_qemu_cannot_enter_is_a_failure(self):
        self.directory.chmod(0o750)
        status, said = self.lint('--qemu-priority', lint.NORMAL)
        self.assertEqual(2, status)
        self.assertIn(f'chmod 0755 {self.directory}\n', said)

    def test_system_file_is_checked_by_default(self):
        with mock.patch.object(gnutls, 'system_file', autospec=True,
                               return_value=self.file), \
                contextlib.redirect_stdout(io.StringIO()) as out:
            self.assertEqual(0, tls.main(
                ['lint', '--qemu-priority', lint.NORMAL]))
        self.assertIn(str(self.file), out.getvalue())

    def test_missing_file_is_a_failure(self):
        self.file.unlink()
        status, said = self.lint('--qemu-priority', lint.NORMAL)
        self.assertEqual(2, status)
        self.assertIn('No such file', said)

    def test_priority_is_read_from_the_qemu_binary(self):
        qemu = self.file.with_name('qemu')
        qemu.write_bytes(b'\0priority\0@QEMU,SYSTEM\0')
        status, said = self.lint('--qemu', str(qemu))
        self.assertEqual(2, status)
        self.assertIn('built with @QEMU,SYSTEM', said)
