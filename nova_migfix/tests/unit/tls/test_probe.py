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
import json
import os
import pathlib
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

import ddt
import fixtures
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import testtools

from nova_migfix.cmd import tls
from nova_migfix.tls import apparmor
from nova_migfix.tls import certificates
from nova_migfix.tls import client
from nova_migfix.tls import gnutls
from nova_migfix.tls import probe
from nova_migfix.tls import qemu_conf
from nova_migfix.tls import qmp
from nova_migfix.tls import users

SAFE = probe.Answer('TLSv1.2', 'ECDHE-ECDSA-AES256-GCM-SHA384')
REKEYS = probe.Answer('TLSv1.3', 'TLS_AES_256_GCM_SHA384')
NONE = probe.Answer('', '', 'handshake failure')
DOUBT = 'not every user can read /etc/gnutls/config'


class TestFindQemu(testtools.TestCase):

    def find(self, *there):
        with mock.patch.object(probe.shutil, 'which', autospec=True,
                               side_effect=lambda name: (
                                   name if name in there else None)):
            return probe.find_qemu()

    def test_installed_qemu_is_found(self):
        self.assertEqual('/usr/libexec/qemu-kvm',
                         self.find('qemu-kvm', '/usr/libexec/qemu-kvm'))

    def test_missing_qemu_is_an_error(self):
        self.assertRaises(qmp.QemuError, self.find)


@ddt.ddt
class TestFindUser(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.conf = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('qemu.conf'))
        self.useFixture(fixtures.MockPatchObject(
            qemu_conf, 'PATH', self.conf))
        self.useFixture(fixtures.MockPatchObject(
            os, 'geteuid', autospec=True, return_value=0))
        self.useFixture(fixtures.MockPatchObject(
            pwd, 'getpwall', autospec=True, return_value=[
                self.entry(name)
                for name in ('root', 'libvirt-qemu', 'nova')]))
        self.useFixture(fixtures.MockPatchObject(
            pwd, 'getpwuid', autospec=True, side_effect=lambda uid:
                self.entry({0: 'root', 42: 'nova'}[uid])))

    def entry(self, name):
        return mock.Mock(spec=pwd.struct_passwd, pw_name=name)

    @ddt.data(
        # qemu.conf
        ('user = "nova"\ngroup = "nova"\n', 'nova'),
        ('# user = "qemu"\n  user="+42"\n', 'nova'),
        ('user = "root"\n', 'root'),
        ('#user = "nova"\n', 'libvirt-qemu'),
        ('user = "nobody-here"\n', 'libvirt-qemu'),
        ('user = "4711"\n', 'libvirt-qemu'),
    )
    @ddt.unpack
    def test_user_of_qemu_conf_is_used(self, text, expected):
        self.conf.write_text(text)
        self.assertEqual(expected, users.find_user())

    def test_qemu_conf_may_have_another_encoding(self):
        self.conf.write_bytes(b'# \xe9t\xe9\nuser = "nova"\n')
        self.assertEqual('nova', users.find_user())

    def test_user_without_qemu_conf_is_the_default(self):
        self.assertEqual('libvirt-qemu', users.find_user())

    def test_user_is_the_current_one_if_not_root(self):
        os.geteuid.return_value = 42
        self.assertEqual('nova', users.find_user())


@ddt.ddt
class TestDoubt(testtools.TestCase):
    """The user of the guests may read another policy than this process."""

    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory(dir='/var/tmp')
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        self.directory.chmod(0o755)
        self.policy = self.directory / 'config'
        self.policy.touch(0o644)
        self.useFixture(fixtures.MockPatchObject(
            gnutls, 'system_file', autospec=True, return_value=self.policy))
        self.useFixture(fixtures.MockPatchObject(
            apparmor, 'problem', autospec=True, return_value=''))
        self.conf = self.directory / 'qemu.conf'
        self.useFixture(fixtures.MockPatchObject(
            qemu_conf, 'PATH', self.conf))
        self.useFixture(fixtures.MockPatchObject(
            os, 'geteuid', autospec=True, return_value=42))
        self.useFixture(fixtures.MockPatchObject(
            pwd, 'getpwall', autospec=True, return_value=[
                mock.Mock(spec=pwd.struct_passwd, pw_name=name)
                for name in ('root', 'libvirt-qemu', 'nova')]))
        self.useFixture(fixtures.MockPatchObject(
            pwd, 'getpwuid', autospec=True, side_effect=lambda uid: mock.Mock(
                spec=pwd.struct_passwd,
                pw_name={0: 'root', 42: 'nova'}[uid])))

    def probe(self, *user):
        with mock.patch.object(probe, 'listening', autospec=True), \
                mock.patch.object(probe, 'handshake', autospec=True,
                                  return_value=SAFE):
            return probe.probe('/usr/bin/qemu', *user)

    def assert_unknown(self):
        answer = self.probe()
        self.assertEqual('unknown', answer.verdict)
        for part in (str(self.policy), '0644', 'as root'):
            self.assertIn(part, answer.doubt)

    def assert_known(self):
        self.assertEqual(SAFE, self.probe())

    def test_policy_that_all_users_can_read_has_a_known_effect(self):
        self.assert_known()

    def test_missing_policy_has_a_known_effect(self):
        self.policy.unlink()
        self.assert_known()

    def test_host_without_gnutls_has_no_policy(self):
        gnutls.system_file.return_value = None
        self.assert_known()

    @ddt.data(0o600, 0o640)
    def test_policy_that_some_users_can_read_has_an_unknown_effect(
            self, mode):
        self.policy.chmod(mode)
        self.assert_unknown()

    def test_policy_in_a_private_directory_has_an_unknown_effect(self):
        self.directory.chmod(0o750)
        self.assert_unknown()

    def test_target_of_a_link_counts(self):
        target = self.policy.rename(self.directory / 'target')
        self.policy.symlink_to(target)
        self.assert_known()
        target.chmod(0o600)
        self.assert_unknown()

    def test_unreadable_path_has_an_unknown_effect(self):
        with mock.patch.object(os.path, 'realpath', autospec=True,
                               side_effect=PermissionError):
            self.assert_unknown()

    def test_link_to_itself_has_an_unknown_effect(self):
        self.policy.unlink()
        self.policy.symlink_to(self.policy)
        self.assert_unknown()

    def test_guests_that_run_as_the_current_user_read_the_same(self):
        self.policy.chmod(0o600)
        self.conf.write_text('user = "nova"\n')
        self.assert_known()

    def test_root_runs_qemu_as_the_user_of_the_guests(self):
        self.policy.chmod(0o600)
        os.geteuid.return_value = 0
        self.assert_known()

    def test_root_does_not_know_the_user_of_the_guests(self):
        self.policy.chmod(0o600)
        os.geteuid.return_value = 0
        pwd.getpwall.return_value = []
        self.assert_unknown()

    def test_unreadable_qemu_conf_leaves_the_user_unknown(self):
        self.policy.chmod(0o600)
        self.conf.mkdir()
        self.assert_unknown()

    def listening_with(self, priority, *arguments):
        """Return the priority string of the probe's QEMU."""
        with mock.patch.object(
                qemu_conf, 'priority', autospec=True, return_value=priority), \
                mock.patch.object(probe, 'listening',
                                  autospec=True) as listening, \
                mock.patch.object(probe, 'handshake', autospec=True,
                                  return_value=SAFE):
            self.answer = probe.probe('/usr/bin/qemu', *arguments)
        return listening.call_args and listening.call_args[0][3]

    def test_priority_is_that_of_libvirt(self):
        self.assertEqual('NORMAL', self.listening_with(
            qemu_conf.Priority('NORMAL')))
        self.assertEqual('SECURE', self.listening_with(
            qemu_conf.Priority('NORMAL'), None, None, 'SECURE'))
        self.assertEqual('', self.listening_with(
            qemu_conf.Priority('NORMAL', 'doubt'), None, None, ''))

    def test_unknown_priority_of_libvirt_is_doubted(self):
        self.assertIsNone(self.listening_with(
            qemu_conf.Priority(None, 'unknown libvirt')))
        self.assertEqual(
            ('unknown', 'unknown libvirt'),
            (self.answer.verdict, self.answer.doubt))

    def test_named_user_is_not_doubted(self):
        self.policy.chmod(0o600)
        self.assertEqual(SAFE, self.probe('nova'))


@ddt.ddt
class TestProbeCommand(testtools.TestCase):

    def probe(self, answer, *arguments):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), mock.patch.object(
                probe, 'probe', autospec=True,
                side_effect=[answer]) as asked:
            status = tls.main(['probe', '--qemu', '/usr/bin/qemu', '--user',
                               'nova', *arguments])
        self.asked = asked.call_args[0]
        return status, out.getvalue()

    @ddt.data(
        (SAFE, 0, 'TLSv1.2 ECDHE-ECDSA-AES256-GCM-SHA384 safe: sessions with '
         'this destination are never rekeyed'),
        (REKEYS, 1, 'TLSv1.3 TLS_AES_256_GCM_SHA384 rekeys: migrations of '
         'large guests fail'),
        (NONE, 2, 'no session: handshake failure'),
        (SAFE._replace(doubt=DOUBT), 1, 'TLSv1.2 '
         f'ECDHE-ECDSA-AES256-GCM-SHA384 unknown: {DOUBT}'),
        (NONE._replace(doubt=DOUBT), 1, f'unknown: {DOUBT}'),
        (qmp.QemuError('QEMU has ended'), 2, 'no session: QEMU has ended'),
        (OSError(28, 'No space left on device', '/tmp/x'), 1,
         'unknown: the probe cannot make its files: [Errno 28] No space left '
         "on device: '/tmp/x'"),
    )
    @ddt.unpack
    def test_probe_prints_the_verdict(self, answer, status, said):
        found = self.probe(answer)
        self.assertEqual(status, found[0])
        self.assertTrue(found[1].startswith(said), found[1])

    def test_terminal_does_not_get_control_characters_of_qemu(self):
        _, said = self.probe(qmp.QemuError('QEMU has ended: \x1b[2J'))
        self.assertTrue(said.rstrip('\n').isprintable(), said)

    def test_probe_prints_json(self):
        _, said = self.probe(REKEYS, '--json')
        self.assertEqual(
            {'version': 'TLSv1.3', 'cipher': 'TLS_AES_256_GCM_SHA384',
             'error': '', 'doubt': '', 'verdict': 'rekeys'}, json.loads(said))

    def test_options_are_passed_to_the_probe(self):
        self.probe(SAFE, '--creds', '/etc/pki/qemu', '--priority', 'NORMAL')
        self.assertEqual(('/usr/bin/qemu', 'nova', '/etc/pki/qemu',
                          'NORMAL'), self.asked)


@ddt.ddt
class TestMistakes(testtools.TestCase):
    """Arguments of the command that name nothing."""

    @ddt.data(
        (('--qemu', '/nonexistent', '--user', 'root'),
         '/nonexistent cannot be run as root: No such file or directory; name '
         'QEMU with --qemu'),
        (('--qemu', '/etc', '--user', 'root'), 'Permission denied; name QEMU'),
        (('--qemu', '/bin/true', '--user', 'no-such'),
         'there is no user no-such; name the user of the guests with --user'),
        (('--qemu', '/bin/true', '--user', 'root'), 'QEMU has ended'),
    )
    @ddt.unpack
    def test_mistake_is_a_failure_with_a_remedy(self, arguments, expected):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            status = tls.main(['probe', *arguments])
        self.assertEqual(2, status)
        self.assertIn(expected, out.getvalue())

    def test_user_without_a_name_is_a_failure(self):
        with mock.patch.object(users, 'find_user', autospec=True,
                               side_effect=KeyError('uid not found: 42')):
            error = self.assertRaises(qmp.QemuError, probe.probe, '/bin/true')
        self.assertIn('uid not found: 42; name the user', str(error))


_SERVER = '''
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*sys.argv[1:])
with socket.create_server(('127.0.0.1', 0)) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        try:
            with context.wrap_socket(connection, server_side=True) as session:
                session.recv(1)
        except OSError:
            connection.close()
'''


class TlsServer(fixtures.Fixture):
    """A TLS server of this Python's OpenSSL, with its defaults."""

    def _setUp(self):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        certificates.write(directory)
        process = subprocess.Popen(
            [sys.executable, '-c', _SERVER, directory / 'server-cert.pem',
             directory / 'server-key.pem'], stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.kill)
        self.address = ('127.0.0.1', int(process.stdout.readline()))


_OPENSSL = '''\
openssl_conf = all
[all]
ssl_conf = modules
[modules]
system_default = tls
[tls]
'''
# Lines of OpenSSL's configuration.
_LIMITS = [
    'MaxProtocol = TLSv1.2', 'MinProtocol = TLSv1.3',
    'Ciphersuites = TLS_CHACHA20_POLY1305_SHA256',
    'CipherString = ECDHE+CHACHA20', 'CipherString = DEFAULT@SECLEVEL=5',
    'Options = ServerPreference', 'Groups = P-521']


class TestHandshake(testtools.TestCase):
    """The client of the probe has a configuration of its own."""

    def setUp(self):
        super().setUp()
        self.server = self.useFixture(TlsServer())
        self.conf = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('openssl.cnf'))

    def run_with(self, limits, *arguments):
        """Run Python with limits in OpenSSL's configuration."""
        self.conf.write_text(_OPENSSL + '\n'.join(limits))
        return subprocess.run(
            [sys.executable, *arguments, *map(str, self.server.address)],
            env={**os.environ, 'OPENSSL_CONF': str(self.conf)}, text=True,
            capture_output=True, check=True, timeout=60).stdout

    @settings(max_examples=4)
    @given(st.lists(st.sampled_from(_LIMITS), min_size=1, unique=True))
    def test_configuration_of_openssl_does_not_limit_the_probe(self, limits):
        self.assertEqual(
            'TLSv1.3 TLS_AES_256_GCM_SHA384\n', self.run_with(
                limits, '-c', 'import sys\n'
                'from nova_migfix.tls import probe\n'
                'found = probe.handshake((sys.argv[1], int(sys.argv[2])))\n'
                'print(found.version, found.cipher)'))

    def test_client_without_aes_does_not_know(self):
        found = probe.Answer(**json.loads(self.run_with(
            ['Ciphersuites = TLS_CHACHA20_POLY1305_SHA256'],
            '-I', client.__file__)))
        self.assertEqual('unknown', found.verdict)
        self.assertIn('does not offer AES under TLS 1.3', found.doubt)

    def test_failure_of_the_client_is_unknown(self):
        with mock.patch.object(client, '__file__', '/nonexistent'):
            found = probe.handshake(self.server.address)
        self.assertEqual('unknown', found.verdict)
        self.assertIn('/nonexistent', found.doubt)

    def test_client_that_cannot_be_run_is_unknown(self):
        with mock.patch.object(sys, 'executable', '/nonexistent'):
            found = probe.handshake(self.server.address)
        self.assertEqual('unknown', found.verdict)
        self.assertIn('/nonexistent', found.doubt)

    def test_doubt_of_the_client_stays(self):
        answer = probe.Answer(doubt='not asked')
        with mock.patch.object(probe, 'listening', autospec=True), \
                mock.patch.object(probe, 'handshake', autospec=True,
                                  return_value=answer):
            self.assertEqual(answer, probe.probe('/usr/bin/qemu'))

    def test_closed_port_has_no_session(self):
        with socket.create_server(('127.0.0.1', 0)) as listener:
            address = listener.getsockname()
        self.assertEqual('no session', probe.handshake(address).verdict)


class Intruder(fixtures.Fixture):
    """A process of the guests' user that tries to read a file of root.

    All temporary directories are made in *place*, which this user may read.
    """

    USER = 'nobody'

    def _setUp(self):
        own, self.place = (
            pathlib.Path(self.useFixture(fixtures.TempDir()).path)
            for _ in range(2))
        self.place.chmod(0o755)
        self.useFixture(fixtures.MonkeyPatch(
            'tempfile.tempdir', str(self.place)))
        self.secret = own / 'secret'
        self.secret.write_text('of root')
        self.secret.chmod(0o600)
        self.before = self.seen()

    def seen(self):
        found = self.secret.stat()
        return (self.secret.read_text(), found.st_uid, found.st_gid,
                found.st_mode)

    def plant(self, name):
        """Try to put a link to the secret into each directory.

        :returns: number of links that were made
        """
        done = subprocess.run(
            ['find', self.place, '-mindepth', '1', '-type', 'd', '-exec',
             'ln', '-sf', self.secret, f'{{}}/{name}', ';', '-print'],
            user=self.USER, capture_output=True, text=True, check=False)
        return len(done.stdout.split())


@testtools.skipUnless(os.geteuid() == 0, 'only root runs QEMU as another')
class TestIntruder(testtools.TestCase):
    """QEMU's user attacks a probe that root runs."""

    def setUp(self):
        super().setUp()
        self.intruder = self.useFixture(Intruder())

    @contextlib.contextmanager
    def intruding(self, *plants):
        """Plant links before and after root writes, and while QEMU runs.

        :param plants: names of links at each of these moments, in this order
        """
        planted = self.planted = []

        def plant(moment):
            planted.extend(map(self.intruder.plant, plants[moment]))

        real = certificates.write

        def write(directory):
            plant(0)
            real(directory)
            plant(1)

        @contextlib.contextmanager
        def started(*_args):
            plant(2)
            yield ('127.0.0.1', 1)

        with mock.patch.object(
                certificates, 'write', autospec=True, side_effect=write), (
                mock.patch.object(probe, '_started', autospec=True,
                                  side_effect=started)):
            yield

    def probe(self, *plants):
        with self.intruding(*plants), probe.listening(
                '/usr/bin/qemu', self.intruder.USER):
            pass
        self.assertEqual(self.intruder.before, self.intruder.seen())
        self.assertEqual([0] * len(self.planted), self.planted)
        self.assertEqual([], os.listdir(self.intruder.place))

    def test_private_directory_for_temporary_files_is_named(self):
        self.intruder.place.chmod(0o700)
        error = self.assertRaises(qmp.QemuError, self.probe, [], [], [])
        self.assertIn(f'nobody cannot enter {self.intruder.place}; set TMPDIR',
                      str(error))
        self.assertEqual([], os.listdir(self.intruder.place))

    def test_planted_link_does_not_expose_a_file_of_root(self):
        self.probe(['link'], ['link'], ['link'])

    def test_planted_certificate_does_not_expose_a_file_of_root(self):
        self.probe(['certificates', 'ca-cert.pem'], ['ca-cert.pem'], [])

    @settings(max_examples=20)
    @given(st.tuples(*[st.lists(st.sampled_from(
        ['certificates', 'ca-cert.pem', 'server-key.pem', 'monitor', 'x']),
        max_size=2)] * 3))
    def test_links_planted_at_any_time_have_no_effect(self, plants):
        self.probe(*plants)

    @settings(max_examples=30)
    @given(st.dictionaries(
        st.text('abc.-', min_size=1, max_size=5).filter(
            lambda name: name.strip('.')),
        st.sampled_from(['file', 'link', 'dangling']), max_size=6))
    def test_only_entries_of_the_directory_change_owner(self, entries):
        with tempfile.TemporaryDirectory() as name:
            directory = pathlib.Path(name) / 'certificates'
            directory.mkdir(mode=0o700)
            for entry, kind in entries.items():
                path = directory / entry
                if kind == 'file':
                    path.touch()
                else:
                    path.symlink_to(self.intruder.secret if kind == 'link'
                                    else '/nowhere')
            probe._let_read(pwd.getpwnam(self.intruder.USER), directory)
            self.assertEqual(
                {pwd.getpwnam(self.intruder.USER).pw_uid} if entries
                else set(),
                {path.lstat().st_uid for path in directory.iterdir()})
            for parent in (directory, directory.parent):
                self.assertEqual((0, 0o711), (
                    parent.stat().st_uid, parent.stat().st_mode & 0o777))
        self.assertEqual(self.intruder.before, self.intruder.seen())


class TestUntrustedQemu(testtools.TestCase):
    """A QEMU that its user controls."""

    def setUp(self):
        super().setUp()
        self.qemu = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('qemu'))

    def error(self, script):
        self.qemu.write_text(f'#!/bin/sh\n{script}')
        self.qemu.chmod(0o755)
        return str(self.assertRaises(
            qmp.QemuError, probe.probe, str(self.qemu),
            pwd.getpwuid(os.geteuid()).pw_name))

    def test_terminal_of_root_is_out_of_reach(self):
        said = self.error('echo $$ $(cut -d" " -f6 /proc/$$/stat) >&2')
        pid, session = said.split()[-2:]
        self.assertEqual(pid, session)

    def test_qemu_gets_the_environment_of_libvirt(self):
        for name in ('GNUTLS_SYSTEM_PRIORITY_FILE', 'LD_LIBRARY_PATH',
                     'OPENSSL_CONF', 'LC_ALL'):
            self.useFixture(fixtures.EnvironmentVariable(name, '/its/own'))
        said = self.error('/usr/bin/env | sort | tr "\\n" " " >&2')
        self.assertIn('LC_ALL=C', said)
        self.assertIn('PATH=', said)
        self.assertNotIn('/its/own', said)

    def test_long_message_of_qemu_is_cut(self):
        self.assertLess(len(self.error(
            'head -c 60000 /dev/zero | tr "\\0" x >&2')), 1000)

    @mock.patch.object(qmp, '_TIMEOUT', 2)
    def test_child_that_keeps_the_pipe_is_not_waited_for(self):
        path = self.qemu.with_name('pid')
        self.error(f'sleep 300 &\necho $! >{path}')
        child = int(path.read_text())
        self.addCleanup(os.kill, child, signal.SIGKILL)
        self.assertEqual('sleep\n', pathlib.Path(
            f'/proc/{child}/comm').read_text())

    def sent_pieces(self, piece, pause=0):
        """Answer in up to 64 pieces; return how many the monitor took.

        :param pause: between two pieces, seconds
        """
        path = self.qemu.with_name('monitor')
        listener = socket.socket(socket.AF_UNIX)
        self.addCleanup(listener.close)
        listener.bind(str(path))
        listener.listen()
        sent = []

        def answer():
            with contextlib.suppress(OSError), listener.accept()[0] as talk:
                while len(sent) < 64:
                    talk.sendall(piece)
                    sent.append(1)
                    time.sleep(pause)

        thread = threading.Thread(target=answer)
        thread.start()
        self.assertRaises(qmp.QemuError, qmp.Monitor, path, mock.Mock(
            spec=subprocess.Popen, stderr=None))
        thread.join()
        return len(sent)

    def test_endless_answer_of_qemu_is_cut(self):
        self.assertLess(self.sent_pieces(b'x' * (1 << 20)), 16)

    @mock.patch.object(qmp, '_TIMEOUT', .5)
    def test_slow_answer_of_qemu_is_cut(self):
        self.assertLess(self.sent_pieces(b'x', pause=.2), 64)
