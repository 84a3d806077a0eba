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
import errno
import io
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import ddt
import fixtures
from hypothesis import given
from hypothesis import strategies
import testtools

from nova_migfix.cmd import tls
from nova_migfix.tests import cost
from nova_migfix.tests import policies
from nova_migfix.tls import files
from nova_migfix.tls import policy

DEBIAN = policy.FAMILIES['debian']
LIBVIRT = policy.FAMILIES['libvirt']

_LINES = strategies.lists(strategies.sampled_from((
    '', '# a comment', '[global]', '[overrides]', '[priorities]',
    'insecure-hash = md5', 'disabled-version = tls1.3',
    'tls-disabled-cipher = aes-128-gcm')))


@ddt.ddt
class TestMerge(testtools.TestCase):

    @ddt.data((policy.TLS12, 'disabled-version'),
              (policy.CHACHA20, 'disabled-ciphers'))
    @ddt.unpack
    def test_policy_is_merged_into_an_empty_file(self, mode, name):
        self.assertEqual(policies.path(name).read_text(),
                         policy.merge(DEBIAN, mode, ''))

    def test_existing_settings_stay(self):
        before = policies.path('merged').read_text().replace(
            'disabled-version = tls1.3\n', '')
        self.assertEqual(policies.path('merged').read_text(),
                         policy.merge(DEBIAN, policy.TLS12, before))

    @ddt.data('disabled-version', 'any-case', 'comment', 'both', 'merged')
    def test_existing_policy_is_left_unchanged(self, name):
        text = policies.path(name).read_text()
        self.assertEqual(text, policy.merge(DEBIAN, policy.TLS12, text))

    @given(lines=_LINES, family=strategies.sampled_from(
        sorted(policy.FAMILIES)), mode=strategies.sampled_from(
        sorted(policy.PRIORITIES)))
    def test_merge_is_idempotent_and_loses_no_lines(self, lines, family, mode):
        family = policy.FAMILIES[family]
        once = policy.merge(family, mode, ''.join(
            f'{line}\n' for line in lines))
        self.assertEqual(once, policy.merge(family, mode, once))
        rest = iter(once.splitlines())
        self.assertTrue(all(line in rest for line in lines), once)

    def test_merge_appends_to_qemu_conf(self):
        self.assertEqual(
            'user = "root"\nmigrate_tls_priority = "NORMAL:-VERS-TLS1.3"\n',
            policy.merge(LIBVIRT, policy.TLS12, 'user = "root"\n'))

    def test_other_priority_in_qemu_conf_is_an_error(self):
        error = self.assertRaises(
            policy.PolicyError, policy.merge, LIBVIRT, policy.TLS12,
            'migrate_tls_priority = "SECURE192"\n')
        self.assertIn('SECURE192', str(error))

    @ddt.data(
        'no setting\n',
        '[overrides]\ndisabled-version = tls1.2\n',
        '#' + 2047 * 'x' + '\n',
    )
    def test_file_that_makes_the_policy_ineffective_is_refused(self, text):
        error = self.assertRaises(policy.PolicyError, policy.merge, DEBIAN,
                                  policy.TLS12, text)
        self.assertIn('nova-migfix-tls lint', str(error))

    def test_first_priority_counts(self):
        error = self.assertRaises(
            policy.PolicyError, policy.merge, policy.FAMILIES['rhel'],
            policy.TLS12, '[priorities]\nQEMU = NORMAL\n'
            'QEMU = NORMAL:-VERS-TLS1.3\n')
        self.assertIn('already has QEMU = NORMAL:', str(error))

    def test_indented_heading_does_not_begin_a_section(self):
        self.assertEqual(
            '[global]\nktls = true\n [overrides]\n\n'
            '[overrides]\ndisabled-version = tls1.3\n', policy.merge(
                DEBIAN, policy.TLS12,
                '[global]\nktls = true\n [overrides]\n'))

    @ddt.data('\N{BOM}# \f \u2028 \x85\r\n', '# \udce9t\udce9')
    def test_odd_characters_stay(self, text):
        self.assertEqual(
            f'{text.rstrip(chr(10))}\n\n[overrides]\n'
            'disabled-version = tls1.3\n',
            policy.merge(DEBIAN, policy.TLS12, text))

    @ddt.data(*policy.FAMILIES)
    def test_cost_is_proportional_to_the_size(self, family):
        def merge(size):
            with contextlib.suppress(policy.PolicyError):
                policy.merge(policy.FAMILIES[family], policy.TLS12,
                             'key' + '\t' * size + '\n' + '[' * size)
        self.assertLess(cost.ratio(merge, 2_000, 16_000), 24)

    def test_file_of_crypto_policies_is_refused(self):
        error = self.assertRaises(
            policy.PolicyError, policy.merge, DEBIAN, policy.TLS12,
            '[global]\noverride-mode = allowlist\n')
        self.assertIn('--family rhel', str(error))


@ddt.ddt
class TestGenerateCommand(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.file = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('config'))

    def generate(self, *arguments):
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), \
                contextlib.redirect_stderr(error):
            status = tls.main(['generate', *map(str, arguments)])
        return status, out.getvalue(), error.getvalue()

    def to_file(self, *arguments):
        return self.generate(
            '--family', 'debian', '--output', self.file, *arguments)

    @ddt.data(*policy.FAMILIES)
    def test_generate_prints_the_path_for_each_family(self, family):
        status, out, said = self.generate('--family', family)
        self.assertEqual(0, status)
        self.assertIn('TLS1.3', out.upper())
        self.assertIn(policy.FAMILIES[family].path, said)
        self.assertNotIn('slower', said)

    def test_chacha20_warns_of_its_cost(self):
        _, out, said = self.generate('--family', 'rhel', '--mode', 'chacha20')
        self.assertIn('QEMU = NORMAL:-AES-128-GCM', out)
        self.assertIn('8 to 13 times slower', said)

    def test_new_file_is_world_readable(self):
        self.addCleanup(os.umask, os.umask(0o077))
        status, _, _ = self.to_file()
        self.assertEqual(0, status)
        self.assertEqual(0o644, self.file.stat().st_mode & 0o777)
        self.assertEqual([self.file], list(self.file.parent.iterdir()))

    def test_second_run_leaves_the_file_untouched(self):
        self.to_file()
        before = self.file.stat().st_ino, self.file.stat().st_mtime_ns
        status, _, said = self.to_file('--merge', self.file)
        self.assertEqual(0, status)
        self.assertIn('up to date', said)
        self.assertEqual(before, (self.file.stat().st_ino,
                                  self.file.stat().st_mtime_ns))

    def test_existing_file_is_not_overwritten(self):
        self.file.write_text('[global]\n')
        status, _, said = self.to_file()
        self.assertEqual(2, status)
        self.assertIn('--force', said)
        self.assertEqual('[global]\n', self.file.read_text())

    def test_force_overwrites_an_existing_file(self):
        self.file.write_text('[global]\n')
        status, _, _ = self.to_file('--merge', self.file, '--force')
        self.assertEqual(0, status)
        self.assertEqual(
            '[global]\n\n[overrides]\ndisabled-version = tls1.3\n',
            self.file.read_text())

    def test_file_is_replaced_atomically(self):
        self.file.write_text('[global]\n')
        for failing in ('replace', 'fchmod', 'fsync'):
            with mock.patch.object(os, failing, autospec=True,
                                   side_effect=OSError('disk full')):
                status, _, said = self.to_file('--force')
            self.assertEqual((2, 'disk full\n'), (status, said))
            self.assertEqual('[global]\n', self.file.read_text())
            self.assertEqual([self.file], list(self.file.parent.iterdir()))

    def test_file_that_is_not_world_readable_needs_force(self):
        self.to_file()
        self.file.chmod(0o600)
        status, _, _ = self.to_file()
        self.assertEqual(2, status)
        self.to_file('--force')
        self.assertEqual(0o644, self.file.stat().st_mode & 0o777)

    def test_merge_with_a_missing_file_is_an_error(self):
        status, _, said = self.to_file('--merge', self.file)
        self.assertEqual((2, f'{self.file}: No such file or directory\n'),
                         (status, said))

    def test_merge_with_a_pipe_is_an_error(self):
        pipe = self.file.with_name('pipe')
        os.mkfifo(pipe)
        status, _, said = self.to_file('--merge', pipe)
        self.assertEqual((2, f'{pipe}: Not a regular file\n'), (status, said))

    def test_bytes_of_a_merged_file_stay(self):
        self.file.write_bytes(b'# \xe9t\xe9 \f\r\n')
        self.to_file('--merge', self.file, '--force')
        self.assertEqual(b'# \xe9t\xe9 \f\r\n\n[overrides]\n'
                         b'disabled-version = tls1.3\n',
                         self.file.read_bytes())

    def test_bytes_of_a_merged_file_are_printed(self):
        self.file.write_bytes(b'# \xe9t\xe9\n')
        done = subprocess.run(
            [sys.executable, '-m', 'nova_migfix.cmd.tls', 'generate',
             '--family', 'debian', '--merge', self.file],
            capture_output=True, check=True, timeout=60)
        self.assertTrue(done.stdout.startswith(b'# \xe9t\xe9\n'), done)

    def test_unknown_effect_is_a_warning(self):
        self.file.write_text('[overrides]\ninsecure-hash = sha512\n')
        status, _, said = self.to_file('--merge', self.file, '--force')
        self.assertEqual(1, status)
        self.assertIn('"insecure-hash = sha512" may prevent sessions; find it '
                      'with "nova-migfix-tls probe"', said)

    def test_mounted_file_is_replaced_on_the_host(self):
        self.file.touch()
        with mock.patch.object(os, 'replace', autospec=True, side_effect=(
                OSError(errno.EBUSY, 'Device or resource busy'))):
            status, _, said = self.to_file('--force')
        self.assertEqual(2, status)
        for part in (str(self.file), 'on the host', 'restart the container'):
            self.assertIn(part, said)

    def test_new_policy_in_a_container_needs_a_restart(self):
        _, _, said = self.to_file()
        for part in ('created again has lost the file', 'restart it, then run '
                     '"nova-migfix-tls probe" in it'):
            self.assertIn(part, said)


def _mode(path):
    return path.stat().st_mode & 0o7777


@ddt.ddt
class TestReplacedFile(testtools.TestCase):
    """A replaced file keeps its owner and mode."""

    def setUp(self):
        super().setUp()
        self.file = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('qemu.conf'))

    def generate(self, family='libvirt', *arguments):
        error = io.StringIO()
        with contextlib.redirect_stderr(error):
            status = tls.main(['generate', '--family', family, '--output',
                               str(self.file), *map(str, arguments)])
        return status, error.getvalue()

    def test_secret_file_stays_secret(self):
        self.file.write_text('vnc_password = "secret"\n')
        self.file.chmod(0o600)
        status, said = self.generate(
            'libvirt', '--merge', self.file, '--force')
        self.assertEqual(0, status)
        self.assertIn('vnc_password', self.file.read_text())
        self.assertEqual(0o600, _mode(self.file))
        self.assertNotIn('0644', said)

    def test_new_file_for_libvirt_is_secret(self):
        self.addCleanup(os.umask, os.umask(0))
        self.generate()
        self.assertEqual(0o600, _mode(self.file))

    @testtools.skipUnless(os.geteuid() == 0, 'only root gives files away')
    def test_owner_of_a_replaced_file_stays(self):
        self.file.write_text('a = 1\n')
        os.chown(self.file, 65534, 65533)
        self.generate('libvirt', '--force')
        found = self.file.stat()
        self.assertEqual((65534, 65533), (found.st_uid, found.st_gid))

    @ddt.data('/etc/hostname', 'dangling')
    def test_policy_is_not_written_through_a_symbolic_link(self, target):
        self.file.symlink_to(target)
        status, said = self.generate('debian', '--force')
        self.assertEqual(2, status)
        self.assertIn(f'is a symbolic link to {target}', said)
        self.assertEqual(target, os.readlink(self.file))

    def test_policy_is_not_written_over_a_directory(self):
        self.file.mkdir()
        status, said = self.generate('debian', '--force')
        self.assertEqual(2, status)
        self.assertIn('is not a file', said)

    @given(mode=strategies.integers(0, 0o777),
           public=strategies.booleans(),
           exists=strategies.booleans())
    def test_replaced_file_gains_at_most_public_read_permission(
            self, mode, public, exists):
        with tempfile.TemporaryDirectory() as name:
            path = pathlib.Path(name) / 'file'
            if exists:
                path.write_text('before')
                path.chmod(mode)
            files.write(path, 'after', force=True, public=public)
            self.assertEqual((mode if exists else 0o600)
                             | (0o444 if public else 0), _mode(path))
            self.assertEqual('after', path.read_text())
