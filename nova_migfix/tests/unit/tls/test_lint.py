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
import os
import pathlib
import pwd
import subprocess
from unittest import mock

import ddt
import fixtures
import testtools

from nova_migfix.cmd import tls
from nova_migfix.tests import cost
from nova_migfix.tests import policies
from nova_migfix.tls import apparmor
from nova_migfix.tls import gnutls
from nova_migfix.tls import lint
from nova_migfix.tls import policy
from nova_migfix.tls import priority
from nova_migfix.tls import qemu_conf
from nova_migfix.tls import users


@ddt.ddt
class TestLint(testtools.TestCase):

    def complaints(self, text, builtin=priority.NORMAL):
        return [finding.text for finding in lint.lint(text, builtin)]

    @ddt.data(*(
        (name, builtin, expected[name].complaint)
        for builtin, expected in (
            (priority.NORMAL, policies.EXPECTED),
            (priority.SYSTEM, policies.EXPECTED_OF_SYSTEM))
        for name in expected))
    @ddt.unpack
    def test_each_policy_file_has_the_expected_complaint(
            self, name, builtin, expected):
        found = self.complaints(policies.path(name).read_text(), builtin)
        self.assertEqual(bool(expected), bool(found), found)
        if expected:
            self.assertIn(expected, found[0])

    def test_finding_has_line_and_severity(self):
        found = lint.lint('# ours\n[overrides]\nenabled-versio = x\n')
        self.assertEqual(
            [(3, lint.Severity.FAILURE), (0, lint.Severity.WARNING)],
            [(finding.line, finding.severity) for finding in found])

    def test_ignored_line_in_a_safe_file_is_a_warning(self):
        finding, = lint.lint(
            '[overrides]\ndisabled-version = tls1.3\ninsecure-hsh = md5\n')
        self.assertEqual(
            (3, lint.Severity.WARNING), (finding.line, finding.severity))

    @ddt.data(
        # lines after [overrides], and the complaint
        ('disabled-version = tls1.3\n  [priorities]\n',
         'indented, so that GnuTLS takes it as a value of disabled-version'),
        ('insecure-hash = md5\n\n\tdisabled-version = tls1.3\n',
         'indented, so that GnuTLS takes it as a value of insecure-hash'),
        ('disabled-version = tls1.2\n tls1.3\n',
         'every session fails: TLS 1.2 is disabled'),
        ('disabled-version = tls1.2\ndisabled-version = tls1.3\n',
         'every session fails: TLS 1.2 is disabled'),
        ('disabled-version = tls1.2\n',
         'every session fails: TLS 1.2 is disabled'),
        ('tls-disabled-cipher = aes-256-gmc\ndisabled-version = tls1.3\n',
         'unknown cipher aes-256-gmc; write "aes-256-gcm"'),
        ('disabled-version = tls1.3 tls1.2\n',
         'write one line for each of tls1.3 tls1.2'),
        ('enabled-version = tls1.3\ndisabled-version = tls1.3\n',
         'without effect because override-mode is not allowlist'),
        ('disabled-version = tls1.3\ninsecure-hash = sha256\n',
         '"insecure-hash = sha256" may prevent sessions; find it with'),
        ('[global]\noverride-mode = allowlist\n[overrides]\n'
         'disabled-version = tls1.3\n',
         'without effect because override-mode is allowlist'),
        ('disabled-version = tls1.3\n[global]\noverride-mode = allow-list\n',
         'override-mode: unknown mode allow-list; write "allowlist"'),
        ('#' + 2047 * 'x' + '\n', "cannot parse 'x'"),
    )
    @ddt.unpack
    def test_complaint_about_overrides(self, lines, expected):
        found = self.complaints(f'[overrides]\n{lines}')
        self.assertIn(expected, '\n'.join(found))

    @ddt.data(
        ('QEMU = NORMAL\nQEMU = NORMAL:-VERS-TLS1.3\n',
         'QEMU: GnuTLS uses only the first one, in line 2'),
        ('QEMU = NORMAL:-VERS-TLS1.3:+VERS-TLS1.3\n',
         'no setting keeps QEMU from TLS 1.3'),
        ('QEMU = NORMAL:-VERS-TLS1.4\n',
         "every session fails: GnuTLS refuses the priority string because of "
         "'VERS-TLS1.4'"),
        ('QEMU = NORMAL : -VERS-TLS1.3\n', "because of 'NORMAL '"),
        ('QEMU = -VERS-TLS1.3\n', 'every session fails'),
        ('QEMU = NORMAL:-VERS-TLS1.3:-AES-256-GMC\n',
         "a session fails if GnuTLS does not accept '-AES-256-GMC'"),
        ('qemu = NORMAL:-VERS-TLS1.3\n', 'has neither QEMU nor SYSTEM'),
        ('QEMU = NONE:+VERS-TLS1.2:+AES-128-GCM\n',
         'every session fails: the priority string has no keyword such as '
         'NORMAL'),
        ('QEMU = NORMAL:-CIPHER-ALL:+AES-128-CCM:-VERS-TLS1.3\n',
         'not known: TLS 1.2 has no cipher with GCM or ChaCha20'),
    )
    @ddt.unpack
    def test_complaint_about_priorities(self, lines, expected):
        found = self.complaints(f'[priorities]\n{lines}', priority.SYSTEM)
        self.assertIn(expected, '\n'.join(found))

    @ddt.data(
        # lines of crypto-policies, and those that replace them
        ('min-verification-profile = medium', 'min-verification-profile = '
         'high', '"min-verification-profile = high" may prevent sessions'),
        ('secure-sig-for-cert = RSA-SHA256', '',
         'there is no "secure-sig-for-cert = rsa-sha256"'),
        ('secure-sig = RSA-PSS-RSAE-SHA256', '',
         'there is no "secure-sig = rsa-pss-rsae-sha256"'),
    )
    @ddt.unpack
    def test_effect_of_stricter_crypto_policies_is_unknown(
            self, lines, instead, expected):
        text = policies.path('crypto-policies').read_text()
        self.assertIn(lines, text)
        found = self.complaints(policy.merge(
            policy.FAMILIES['rhel'], policy.CHACHA20,
            text.replace(lines, instead)), priority.SYSTEM)
        self.assertIn('the effect on QEMU is not known: ', found[0])
        self.assertIn(expected, found[0])

    @ddt.data(
        '\N{BOM}[overrides]\ndisabled-version = tls1.3\n',
        '[overrides]\ndisabled-version = tls1.3\n# a form feed: \f done\n',
        '[overrides]\ndisabled-version = tls1.3\n# \u2028done\n',
        '[overrides]\ndisabled-version = tls1.3\n# \x85 \x1c \v done\n',
        '# \udce9t\udce9 in Latin-1\n[overrides]\ndisabled-version=tls1.3',
        '[overrides]\r\ndisabled-version = tls1.3\r\n',
        '[overrides]\ndisabled-version = tls1.3\n'
        '[provider]\nurl = pkcs11:\npin = 1\n',
        '[overrides]\ndisabled-version = tls1.3\n'
        'cert-compression-alg = zlib\n',
        '[overrides]\ndisabled-version = tls1.0\n  tls1.3\n',
    )
    def test_correct_file_has_no_complaint(self, text):
        self.assertEqual([], self.complaints(text))

    @ddt.data(
        lambda size: ' ' * size + '[',
        lambda size: '[overrides]\n\tdisabled-version' + '\t' * size,
        lambda size: '[overrides' + ' ;' * size,
        lambda size: 'a\n' * size,
    )
    def test_cost_is_proportional_to_the_size(self, text):
        self.assertLess(cost.ratio(lint.lint, text(2_000), text(16_000)), 24)

    @ddt.data(*(
        (family, mode) for family in ('debian', 'ubuntu', 'rhel')
        for mode in policy.PRIORITIES))
    @ddt.unpack
    def test_generated_policy_has_no_complaints(self, family, mode):
        text = policy.merge(policy.FAMILIES[family], mode, '')
        builtin = priority.SYSTEM if family == 'rhel' else priority.NORMAL
        self.assertEqual([], self.complaints(text, builtin))


@ddt.ddt
class TestLintCommand(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.directory.chmod(0o755)
        self.file = self.directory / 'config'
        self.file.write_text(policies.path('disabled-version').read_text())
        self.user = self.useFixture(fixtures.MockPatchObject(
            users, 'user_of_guests', autospec=True, return_value='nobody'
        )).mock

    def lint(self, *arguments):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = tls.main(['lint', str(self.file), *arguments])
        return status, out.getvalue()

    def test_correct_policy_is_success(self):
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(0, status)
        self.assertIn('no setting is ignored', said)

    def test_empty_policy_is_a_warning(self):
        self.file.write_text('')
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(1, status)
        self.assertIn(f'{self.file}: warning: no setting keeps', said)

    def test_malformed_policy_is_a_failure(self):
        self.file.write_text('\n\nin vain\n')
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(2, status)
        self.assertIn(f'{self.file}:3: failure: ', said)

    @testtools.skipUnless(os.geteuid() == 0, 'only root gives files away')
    def test_file_of_the_group_of_qemus_user_is_readable(self):
        self.file.chmod(0o640)
        os.chown(self.file, 0, pwd.getpwnam('nobody').pw_gid)
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(0, status, said)

    def test_private_file_is_a_warning_if_the_user_is_not_known(self):
        self.user.return_value = ''
        self.file.chmod(0o640)
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(1, status)
        self.assertIn('may be unable to read the file', said)

    @testtools.skipUnless(os.geteuid() == 0, 'only root asks for others')
    def test_file_that_qemu_cannot_read_is_a_failure(self):
        self.file.chmod(0o640)
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(2, status)
        self.assertIn(f'chmod 0644 {self.file}', said)

    @testtools.skipUnless(os.geteuid() == 0, 'only root asks for others')
    def test_directory_that_qemu_cannot_enter_is_a_failure(self):
        self.directory.chmod(0o750)
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(2, status)
        self.assertIn(f'chmod 0755 {self.directory}\n', said)

    @testtools.skipUnless(os.geteuid() == 0, 'only root asks for others')
    def test_directory_of_any_link_to_the_file_counts(self):
        self.file.rename(self.directory / 'target')
        closed = self.directory / 'closed'
        closed.mkdir(0o750)
        (closed / 'link').symlink_to('../target')
        self.file.symlink_to('closed/link')
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(2, status, said)
        self.assertIn(f'chmod 0755 {closed}\n', said)

    def test_system_file_is_checked_by_default(self):
        with mock.patch.object(gnutls, 'system_file', autospec=True,
                               return_value=self.file), \
                mock.patch.object(apparmor, 'problem', autospec=True,
                                  return_value=''), \
                contextlib.redirect_stdout(io.StringIO()) as out:
            self.assertEqual(0, tls.main(
                ['lint', '--qemu-priority', priority.NORMAL]))
        self.assertIn(str(self.file), out.getvalue())

    @ddt.data(('NORMAL:-VERS-TLS1.3', 0, 'none is needed'),
              ('NORMAL:-VERS-SSL3.0', 2, 'QEMU has no policy'))
    @ddt.unpack
    def test_priority_of_libvirt_may_make_the_file_needless(
            self, string, status, said):
        self.file.unlink()
        for module, name, value in (
                (gnutls, 'system_file', self.file),
                (qemu_conf, 'priority', qemu_conf.Priority(string))):
            self.useFixture(fixtures.MockPatchObject(
                module, name, autospec=True, return_value=value))
        with contextlib.redirect_stdout(io.StringIO()) as out, \
                contextlib.redirect_stderr(out):
            self.assertEqual(status, tls.main(['lint']))
        self.assertIn(said, out.getvalue())

    def test_missing_file_is_a_failure(self):
        self.file.unlink()
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(2, status)
        self.assertEqual(
            f'{self.file}: No such file or directory: without this file QEMU '
            'has no policy; make it with "nova-migfix-tls generate", or name '
            'the file that GnuTLS reads\n', said)

    def test_directory_is_a_failure(self):
        self.file.unlink()
        self.file.mkdir()
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(2, status)
        self.assertIn('Is a directory: name a file', said)

    def test_link_to_itself_is_a_failure(self):
        self.file.unlink()
        self.file.symlink_to(self.file)
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(2, status)
        self.assertEqual(
            f'{self.file}: Too many levels of symbolic links: name a file '
            'that this user can read, or run the command as root\n', said)

    def test_pipe_is_a_failure(self):
        self.file.unlink()
        os.mkfifo(self.file, 0o644)
        status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(2, status)
        self.assertIn(f'{self.file}: Not a regular file: name a file', said)

    def test_pipe_is_not_a_qemu(self):
        pipe = self.file.with_name('qemu')
        os.mkfifo(pipe)
        status, said = self.lint('--qemu', str(pipe))
        self.assertEqual(2, status)
        self.assertEqual(
            f'{pipe}: Not a regular file: name QEMU with --qemu\n', said)

    @testtools.skipUnless(os.geteuid() == 0, 'only root asks for others')
    def test_unanswered_question_about_a_file_is_a_warning(self):
        self.file.chmod(0o640)
        with mock.patch.object(
                subprocess, 'run', autospec=True,
                side_effect=subprocess.TimeoutExpired('test', 10)):
            status, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertEqual(1, status)
        self.assertIn('may be unable to read the file', said)

    def test_missing_qemu_is_named(self):
        status, said = self.lint('--qemu', '/nonexistent')
        self.assertEqual(2, status)
        self.assertEqual('/nonexistent: No such file or directory: name QEMU '
                         'with --qemu\n', said)

    def test_terminal_does_not_get_control_characters_of_a_file(self):
        self.file.write_bytes(b'[overrides]\n\x1b[2J\xff = 1\n[\x1b]\n')
        _, said = self.lint('--qemu-priority', priority.NORMAL)
        self.assertTrue(said.replace('\n', '').isprintable(), said)

    @ddt.data(
        (qemu_conf.Priority('NORMAL'), '[priorities]\nQEMU = NORMAL\n', 1,
         'no setting keeps QEMU from TLS 1.3'),
        (qemu_conf.Priority('NORMAL:-VERS-TLS1.3'), '', 0, 'no setting is'),
        (qemu_conf.Priority(None, 'which libvirt?'),
         '[overrides]\ndisabled-version = tls1.3\n', 1, 'which libvirt?'))
    @ddt.unpack
    def test_priority_of_libvirt_replaces_that_of_qemu(self, passed, text,
                                                       expected, part):
        self.file.write_text(text)
        with mock.patch.object(qemu_conf, 'priority', autospec=True,
                               return_value=passed), \
                mock.patch.object(lint, 'builtin_priority', autospec=True,
                                  return_value=priority.SYSTEM
                                  if passed.string else priority.NORMAL):
            status, said = self.lint('--qemu', '/usr/bin/qemu')
        self.assertEqual(expected, status, said)
        self.assertIn(part, said)

    def test_priority_is_read_from_the_qemu_binary(self):
        qemu = self.file.with_name('qemu')
        qemu.write_bytes(b'\0priority\0@QEMU,SYSTEM\0')
        status, said = self.lint('--qemu', str(qemu))
        self.assertEqual(2, status)
        self.assertIn('built with @QEMU,SYSTEM', said)
