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
from nova_migfix.tls import apparmor
from nova_migfix.tls import gnutls
from nova_migfix.tls import priority
from nova_migfix.tls import probe

_GUEST = 'libvirt-6f0d6e0e-4a3b-4f0c-9a53-3c3f2f0f5f3a (enforce)\n'


@ddt.ddt
class TestApparmor(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.directory.chmod(0o755)
        for name in ('_PROC', '_ETC'):
            self.useFixture(fixtures.MockPatchObject(
                apparmor, name, self.directory / name))
        self.write('_ETC/abstractions/crypto',
                   '  /usr/share/crypto-policies/*/*.txt r,\n')
        self.write('_ETC/abstractions/libvirt-qemu',
                   '#include <abstractions/base>\n')
        self.policy = self.write('gnutls/config', policies.path(
            'disabled-version').read_text())
        self.useFixture(fixtures.MockPatchObject(
            gnutls, 'system_file', autospec=True, return_value=self.policy))

    def write(self, name, text):
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run_with_label(self, label):
        self.write('_PROC/42/attr/current', label)

    @ddt.data('libvirtd (enforce)\n', '/usr/sbin/libvirtd (complain)\n',
              'virtqemud (enforce)\n', _GUEST)
    def test_confined_guests_need_a_rule(self, label):
        self.run_with_label(label)
        found = apparmor.problem(self.policy)
        self.assertIn(f'AppArmor has no rule that lets guests read '
                      f'{self.policy}', found)
        self.assertIn('local/abstractions/libvirt-qemu', found)

    @ddt.data('unconfined\n', 'docker-default (enforce)\n',
              'system_u:system_r:virtd_t:s0-s0:c0.c1023\0',
              _GUEST.replace('enforce', 'complain'))
    def test_other_guests_need_no_rule(self, label):
        self.run_with_label(label)
        self.assertEqual('', apparmor.problem(self.policy))

    @ddt.data(
        ('abstractions/crypto', '  @{etc_ro}/gnutls/config r,\n'),
        ('abstractions/base.d/site', '/etc/gnutls/config r,\n'),
        ('local/abstractions/libvirt-qemu', '/etc/gnutls/config r,\n'))
    @ddt.unpack
    def test_rule_lets_guests_read_the_file(self, name, rule):
        self.run_with_label(_GUEST)
        self.write(f'_ETC/{name}', f'# site\n\n{rule}')
        self.assertEqual('', apparmor.problem(self.policy))

    @ddt.data('# /etc/gnutls/config r,\n', 'deny /etc/gnutls/config r,\n',
              '  audit deny /etc/gnutls/config r,\n',
              '/etc/gnutls/config.old r,\n')
    def test_other_lines_are_no_rules(self, line):
        self.run_with_label(_GUEST)
        self.write('_ETC/local/abstractions/libvirt-qemu', f'\n{line}')
        self.assertNotEqual('', apparmor.problem(self.policy))

    def test_missing_file_needs_no_rule(self):
        self.run_with_label(_GUEST)
        self.policy.unlink()
        self.assertEqual('', apparmor.problem(self.policy))

    def test_process_may_end_and_forbid_to_read(self):
        (self.directory / '_PROC/43/attr/current').mkdir(parents=True)
        (self.directory / '_PROC/44').mkdir()
        self.assertEqual('', apparmor.problem(self.policy))

    @ddt.data(None, 'nova')
    def test_probe_does_not_know_the_tls_of_a_confined_guest(self, user):
        self.run_with_label('libvirtd (enforce)\n')
        with mock.patch.object(probe, 'listening', autospec=True), \
                mock.patch.object(probe, 'handshake', autospec=True,
                                  return_value=probe.Answer('TLSv1.2', 'x')):
            found = probe.probe('/usr/bin/qemu', user)
        self.assertEqual('unknown', found.verdict)
        self.assertIn('AppArmor', found.doubt)

    def lint(self, *arguments):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = tls.main(['lint', '--qemu-priority', priority.NORMAL,
                               *map(str, arguments)])
        return status, out.getvalue()

    def test_lint_warns_of_a_missing_rule(self):
        self.run_with_label('libvirtd (enforce)\n')
        status, said = self.lint()
        self.assertEqual(1, status)
        self.assertIn(f'{self.policy}: warning: AppArmor has no rule', said)

    def test_lint_of_another_file_needs_no_rule(self):
        self.run_with_label('libvirtd (enforce)\n')
        draft = self.write('draft', self.policy.read_text())
        self.assertEqual(0, self.lint(draft)[0])
