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

"""``ansible/native-tls.yml`` gives QEMU the certificates of libvirt."""

import pathlib

import fixtures
import testtools

from nova_migfix.tests.fleet import playbook

# as Kolla Ansible distributes them, and as QEMU reads them
NAMES = {'cacert.pem': 'ca-cert.pem', 'servercert.pem': 'server-cert.pem',
         'serverkey.pem': 'server-key.pem', 'clientcert.pem':
         'client-cert.pem', 'clientkey.pem': 'client-key.pem'}

NOVA = 42436


class NativeTlsTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.kolla = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.pki = self.kolla / 'qemu-pki'
        (self.kolla / 'nova-libvirt').mkdir()
        self.distribute('first')
        self.site = self.useFixture(playbook.Site())
        self.site.write_inventory(compute01={})

    def distribute(self, content):
        """Write certificates and keys as Kolla Ansible does."""
        for name in NAMES:
            path = self.kolla / 'nova-libvirt' / name
            path.write_text(f'{content} {name}')
            path.chmod(0o600)

    def copy(self):
        """Run the playbook; return the number of changes."""
        ran = self.site.run('native-tls.yml', node_config=str(self.kolla))
        self.assertEqual(0, ran.code, ran.out)
        return ran.changed['compute01']

    def test_qemu_can_read_each_file_and_others_cannot(self):
        self.copy()
        for name, of_qemu in NAMES.items():
            found = self.pki / of_qemu
            self.assertEqual(f'first {name}', found.read_text())
            status = found.stat()
            self.assertEqual((NOVA, NOVA, 0o400), (
                status.st_uid, status.st_gid, status.st_mode & 0o777))
        self.assertEqual(0o755, self.pki.stat().st_mode & 0o777)

    def test_renewed_certificates_replace_the_former_ones(self):
        self.assertEqual(2, self.copy())
        self.assertEqual(0, self.copy())
        self.distribute('second')
        self.assertEqual(1, self.copy())
        self.assertEqual('second cacert.pem',
                         (self.pki / 'ca-cert.pem').read_text())
