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

"""Run the commands in the documentation; compare their output."""

import os
import pathlib
import shutil
import subprocess
import sys

from nova_migfix.tests import etc
from nova_migfix.tests.functional.tls import base
from nova_migfix.tests import pages
from nova_migfix.tls import lint
from nova_migfix.tls import priority

# Programs that this machine does not have, with the same effect here.
_STAND_INS = {
    'docker': '''
shift; [ "$1" = -i ] && shift; shift; exec "$@"
''',
    'update-crypto-policies': '''
cat /etc/crypto-policies/local.d/gnutls-*.config \
    >>/etc/crypto-policies/back-ends/gnutls.config
''',
}


class DocumentationTestCase(base.QemuTestCase):

    def setUp(self):
        super().setUp()
        if lint.builtin_priority(self.qemu) != priority.NORMAL:
            self.skipTest(f'{self.qemu} was not built with NORMAL')
        self.etc = self.useFixture(etc.WritableEtc())
        self.prepare()

    def prepare(self):
        """Make files of a hypervisor that a test machine may not have."""
        for directory in ('nova', 'crypto-policies/local.d',
                          'crypto-policies/back-ends'):
            (self.etc.above / directory).mkdir(parents=True)
        (self.etc.above / 'nova/nova.conf').write_text(
            '[libvirt]\nlive_migration_with_native_tls = true\n')
        self.bin = self.etc.root / 'bin'
        self.bin.mkdir()
        for name, text in _STAND_INS.items():
            (self.bin / name).write_text(f'#!/bin/sh\n{text}')
            (self.bin / name).chmod(0o755)

    def do(self, command):
        path = (self.bin, pathlib.Path(sys.executable).parent,
                os.environ['PATH'])
        return self.etc.run('sh', '-c', command, env={
            **os.environ, 'PATH': ':'.join(map(str, path))})

    def start_guest(self):
        """Start a process that looks like QEMU to the audit."""
        guest = subprocess.Popen(['qemu-system-x86_64', '600'],
                                 executable=shutil.which('sleep'))
        self.addCleanup(guest.wait)
        self.addCleanup(guest.kill)

    def test_commands_of_the_tls_page_succeed(self):
        self.start_guest()
        commands = list(pages.commands('tls/index.rst'))
        self.assertIn('nova-migfix-tls probe', dict(commands))
        for command, output in commands:
            done = self.do(command)
            self.assertEqual(0, done.returncode, f'{command}: {done}')
            self.assertIn(output, done.stdout, command)
        self.assertEqual(
            '[priorities]\nQEMU = NORMAL:-VERS-TLS1.3\n',
            (self.etc.above / 'crypto-policies/back-ends/gnutls.config'
             ).read_text())
