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

"""The audit of a QEMU that runs on this machine."""

import ctypes
import json
import os
import pathlib
import shutil
import subprocess
import sys

import fixtures
from oslo_utils import uuidutils
import testtools

from nova_migfix.tests import eager_gnutls
from nova_migfix.tls import probe
from nova_migfix.tls import qmp
from nova_migfix.tls import rekey

MIB = 1 << 20

_LIMIT = 60     # seconds


class AuditTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        try:
            self.library = eager_gnutls.loaded_by(probe.find_qemu())
        except (qmp.QemuError, eager_gnutls.CannotBeMade) as error:
            self.skipTest(str(error))
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.directory.chmod(0o755)
        self.config = self.directory / 'nova.conf'
        self.config.write_text(
            '[libvirt]\nlive_migration_with_native_tls = true\n'
            'live_migration_permit_post_copy = true\n')
        self.uuid = uuidutils.generate_uuid()

    def start(self):
        """Start a guest as libvirt does, with 64 MiB that are in use."""
        monitor = self.directory / 'monitor'
        process = subprocess.Popen(
            ['env', f'LD_LIBRARY_PATH={self.directory}', probe.find_qemu(),
             '-name', 'guest=instance-2a,debug-threads=on', '-uuid',
             self.uuid, '-S', '-accel', 'tcg', '-nodefaults', '-display',
             'none', '-machine', 'pc,memory-backend=memory', '-m', '64M',
             '-object', 'memory-backend-ram,id=memory,size=64M,prealloc=on',
             '-qmp', f'unix:{monitor},server=on,wait=off'],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.addCleanup(process.wait)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.kill)
        qmp.Monitor(monitor, process).close()
        return process

    def audit(self):
        done = subprocess.run(
            [sys.executable, '-m', 'nova_migfix.cmd.tls', 'audit', '--json',
             '--config-file', self.config], capture_output=True, text=True,
            timeout=_LIMIT)
        self.assertIn(done.returncode, (0, 1, 2), done.stderr)
        found = json.loads(done.stdout)
        self.assertTrue(found['nova']['live_migration_permit_post_copy'])
        return next(guest for guest in found['guests']
                    if guest['uuid'] == self.uuid)

    def version(self):
        """Return the version that the library itself reports."""
        ask = ctypes.CDLL(str(self.library)).gnutls_check_version
        ask.restype = ctypes.c_char_p
        return ask(None).decode()

    def test_audit_finds_a_running_guest(self):
        process = self.start()
        found = self.audit()
        self.assertEqual((process.pid, 'instance-2a', 'safe'), (
            found['pid'], found['name'], found['verdict']))
        self.assertEqual(self.version(), found['library']['version'])
        self.assertTrue(found['library']['package'].startswith(
            self.version()), found)
        self.assertTrue(64 * MIB < found['memory'] < 512 * MIB, found)

    def test_audit_finds_a_replaced_library(self):
        if os.geteuid():
            self.skipTest('only root sees what a process has mapped')
        copy = shutil.copy(self.library, self.directory)
        self.start()
        os.unlink(copy)
        library = self.audit()['library']
        self.assertEqual(
            {'path': copy, 'deleted': True, 'version': self.version(),
             'package': '',
             'rekeys_safely': rekey.is_fixed(self.version())}, library)
