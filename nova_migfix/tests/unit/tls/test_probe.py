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
from unittest import mock

import ddt
import fixtures
import testtools

from nova_migfix.cmd import tls
from nova_migfix.tls import probe
from nova_migfix.tls import qmp

SAFE = probe.Answer('TLSv1.2', 'ECDHE-ECDSA-AES256-GCM-SHA384')
REKEYS = probe.Answer('TLSv1.3', 'TLS_AES_256_GCM_SHA384')
NONE = probe.Answer('', '', 'handshake failure')


class TestFindQemu(testtools.TestCase):

    def find(self, *there):
        with mock.patch.object(probe.shutil, 'which', autospec=True,
                               side_effect=lambda name: (
                                   name if name in there else None)):
            return probe.find_qemu()

    def test_one(self):
        self.assertEqual('/usr/libexec/qemu-kvm',
                         self.find('qemu-kvm', '/usr/libexec/qemu-kvm'))

    def test_none(self):
        self.assertRaises(qmp.QemuError, self.find)


@ddt.ddt
class TestFindUser(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.conf = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('qemu.conf'))
        self.useFixture(fixtures.MockPatchObject(
            probe, '_QEMU_CONF', self.conf))
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
    def test_configured(self, text, expected):
        self.conf.write_text(text)
        self.assertEqual(expected, probe.find_user())

    def test_no_libvirt(self):
        self.assertEqual('libvirt-qemu', probe.find_user())

    def test_who_asks_if_it_is_not_root(self):
        os.geteuid.return_value = 42
        self.assertEqual('nova', probe.find_user())


@ddt.ddt
class TestCommand(testtools.TestCase):

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
        (REKEYS, 1, 'TLSv1.3 TLS_AES_256_GCM_SHA384 rekeys: large guests '
         'fail'),
        (NONE, 2, 'no session: handshake failure'),
        (qmp.QemuError('QEMU has ended'), 2, 'no session: QEMU has ended'),
    )
    @ddt.unpack
    def test_verdict(self, answer, status, said):
        found = self.probe(answer)
        self.assertEqual(status, found[0])
        self.assertTrue(found[1].startswith(said), found[1])

    def test_json(self):
        _, said = self.probe(REKEYS, '--json')
        self.assertEqual(
            {'version': 'TLSv1.3', 'cipher': 'TLS_AES_256_GCM_SHA384',
             'error': '', 'verdict': 'rekeys'}, json.loads(said))

    def test_what_is_asked(self):
        self.probe(SAFE, '--creds', '/etc/pki/qemu', '--priority', 'NORMAL')
        self.assertEqual(('/usr/bin/qemu', 'nova', '/etc/pki/qemu',
                          'NORMAL'), self.asked)
