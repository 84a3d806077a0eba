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
import pwd
from unittest import mock

import ddt
import fixtures
import hypothesis
from hypothesis import strategies
import testtools

from nova_migfix.status import qemu
from nova_migfix.tests.unit.tls import test_audit
from nova_migfix.tls import audit
from nova_migfix.tls import qemu_conf
from nova_migfix.tls import users

STATUS = ('Name:\tqemu\nUid:\t1\t42\t3\t4\nGid:\t5\t43\t7\t8\n'
          'Groups:\t36 107 \nVmRSS:\t   1 kB\n')
IDS = strategies.integers(0, 2 ** 32 - 1)


@ddt.ddt
class TestUser(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('file'))
        self.path.touch()
        self.path.parent.chmod(0o755)

    def test_effective_ids_and_groups_are_read(self):
        self.assertEqual(qemu.User(42, frozenset((36, 43, 107))),
                         qemu.parse_user(STATUS))

    @hypothesis.given(IDS, IDS, strategies.sets(IDS))
    def test_all_ids_are_read(self, uid, gid, gids):
        groups = ' '.join(map(str, gids))
        self.assertEqual(qemu.User(uid, frozenset((gid, *gids))),
                         qemu.parse_user(
                             f'Uid:\t1\t{uid}\t1\t1\nGid:\t1\t{gid}\t1\t1\n'
                             f'Groups:\t{groups} \n'))

    @hypothesis.given(strategies.text())
    def test_any_text_is_a_user(self, text):
        self.assertIsInstance(qemu.parse_user(text), qemu.User)

    def test_text_without_ids_is_nobody(self):
        self.assertEqual(qemu.User(65534, frozenset()), qemu.parse_user(''))

    @ddt.data((0o400, True, False, False), (0o040, False, True, False),
              (0o004, False, False, True), (0o444, True, True, True))
    @ddt.unpack
    def test_permission_bits_decide(self, mode, owner, group, others):
        with mock.patch.object(pathlib.Path, 'stat', lambda path: (
                mock.Mock(st_mode=mode if path == self.path else 0o755,
                          st_uid=42, st_gid=43))):
            for user, expected in (
                    (qemu.User(42, frozenset((43,))), owner),
                    (qemu.User(7, frozenset((43,))), group),
                    (qemu.User(7, frozenset((7,))), others),
                    (qemu.User(0, frozenset()), True)):
                self.assertEqual(expected, user.may_read(self.path))
    def test_closed_directory_is_not_readable(self):
        self.path.chmod(0o644)
        self.path.parent.chmod(0o700)
        self.assertFalse(qemu.User(4242, frozenset()).may_read(self.path))

    def test_access_control_list_is_no_refusal(self):
        self.path.chmod(0)
        with mock.patch.object(os, 'listxattr', autospec=True, return_value=[
                'system.posix_acl_access']):
            self.assertTrue(qemu.User(4242, frozenset()).may_read(self.path))


class TestRunning(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.proc = self.useFixture(test_audit.Proc())
        self.useFixture(fixtures.MockPatchObject(
            audit, '_PROC', self.proc.path))

    def test_running_guests_are_found(self):
        process = self.proc.qemu(7)
        (process / 'status').write_text(STATUS)
        self.assertEqual([qemu.Process(
            'instance-7', process / 'root',
            qemu.User(42, frozenset((36, 43, 107))))], qemu.running())
        self.assertEqual(42, qemu.user().uid)

    def test_guest_that_ended_is_skipped(self):
        (self.proc.qemu(7) / 'status').unlink()
        self.assertEqual([], qemu.running())

    def test_user_without_guests_is_that_of_qemu_conf(self):
        own = pwd.getpwuid(os.getuid())
        self.useFixture(fixtures.MockPatchObject(
            qemu_conf, 'PATH', self.proc.path))
        with mock.patch.object(users, 'user_of_guests', autospec=True,
                               side_effect=[own.pw_name, 'nosuch', '']):
            self.assertEqual(own.pw_uid, qemu.user().uid)
            self.assertIsNone(qemu.user())
            self.assertIsNone(qemu.user())

    def test_user_without_guests_and_qemu_conf_is_unknown(self):
        """As in nova-compute's container of Kolla, which has users of QEMU."""
        self.useFixture(fixtures.MockPatchObject(
            qemu_conf, 'PATH', self.proc.path / 'nosuch'))
        with mock.patch.object(users, 'user_of_guests', autospec=True,
                               return_value=pwd.getpwuid(0).pw_name):
            self.assertIsNone(qemu.user())


class TestCredentials(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        for module, name in ((qemu_conf, 'PATH'), (qemu, '_MIGRATE')):
            self.useFixture(fixtures.MockPatchObject(
                module, name, self.directory / name))

    def test_directory_is_the_one_of_libvirt(self):
        """Each step has precedence over the ones before."""
        self.assertEqual('/etc/pki/qemu', str(qemu.credentials()))
        conf = self.directory / 'PATH'
        conf.write_text('default_tls_x509_cert_dir = "/a"\n')
        self.assertEqual('/a', str(qemu.credentials()))
        (self.directory / '_MIGRATE').mkdir()
        self.assertEqual(self.directory / '_MIGRATE', qemu.credentials())
        conf.write_text('migrate_tls_x509_cert_dir = "/b"\n')
        self.assertEqual('/b', str(qemu.credentials()))
