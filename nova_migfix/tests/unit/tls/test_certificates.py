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

import ipaddress
import pathlib

from cryptography import x509
import fixtures
import testtools

from nova_migfix.tls import certificates


class TestCertificates(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)

    def certificate(self, name):
        return x509.load_pem_x509_certificate(
            (self.directory / f'{name}-cert.pem').read_bytes())

    def test_certificates_of_both_ends_have_one_issuer(self):
        certificates.write(self.directory)
        for end in ('server', 'client'):
            self.certificate(end).verify_directly_issued_by(
                self.certificate('ca'))

    def test_names_and_addresses_are_in_the_server_certificate(self):
        certificates.write(self.directory, ('host', '10.0.2.11', 'fd00::b'))
        names = self.certificate('server').extensions.get_extension_for_class(
            x509.SubjectAlternativeName).value
        self.assertEqual(['host'], names.get_values_for_type(x509.DNSName))
        self.assertEqual(
            [ipaddress.ip_address(name) for name in ('10.0.2.11', 'fd00::b')],
            names.get_values_for_type(x509.IPAddress))

    def test_only_the_owner_can_read_the_key(self):
        certificates.write(self.directory / 'new')
        self.assertEqual(0o700,
                         (self.directory / 'new').stat().st_mode & 0o777)
