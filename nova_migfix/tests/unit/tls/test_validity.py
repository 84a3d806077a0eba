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

import datetime
import pathlib
from unittest import mock

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives import hashes
from cryptography import x509
from cryptography.x509.oid import NameOID
import ddt
import fixtures
import hypothesis
from hypothesis import strategies
import testtools

from nova_migfix.tls import certificates
from nova_migfix.tls import validity

KEY = ec.generate_private_key(ec.SECP256R1())
HOUR = datetime.timedelta(hours=1)
LABEL = strategies.from_regex('[a-z][a-z0-9]{0,9}', fullmatch=True)
HOST = strategies.lists(LABEL, min_size=2, max_size=4).map('.'.join) | (
    strategies.ip_addresses().map(str))


def certificate(hosts, begin=-HOUR, end=HOUR, name='subject'):
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
        .public_key(KEY.public_key()).serial_number(1)
        .not_valid_before(now + begin).not_valid_after(now + end))
    if hosts is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(
            list(map(certificates._host, hosts))), critical=False)
    return builder.sign(KEY, hashes.SHA256())


@ddt.ddt
class TestValidity(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('file'))

    @ddt.data(
        (['compute1'], 'compute1', True),
        (['Compute1.Example.'], 'compute1.example', True),
        (['compute1'], 'compute1.example', False),
        (['*.dc.example'], 'compute1.dc.example', True),
        (['*.dc.example'], 'a.b.dc.example', False),
        (['*.dc.example'], 'dc.example', False),
        (['*.example'], 'compute1.example', False),
        (['192.0.2.1', 'compute1'], '192.0.2.1', True),
        (['2001:db8::1'], '2001:db8:0::1', True),
        (['192.0.2.2', 'compute1'], '192.0.2.1', False),
        # the common name
        (None, 'subject', True), (['192.0.2.1'], 'subject', True),
        (['compute1'], 'subject', False), (None, '192.0.2.1', False))
    @ddt.unpack
    def test_names_are_compared_as_gnutls_does(self, hosts, host, expected):
        self.assertEqual(expected, validity.covers(certificate(hosts), host))

    def test_address_in_a_dns_name_does_not_count(self):
        with mock.patch.object(certificates, '_host', x509.DNSName):
            found = certificate(['192.0.2.1'])
        self.assertFalse(validity.covers(found, '192.0.2.1'))

    @hypothesis.settings(max_examples=30)
    @hypothesis.given(strategies.lists(HOST, min_size=2, unique=True))
    def test_certificate_is_valid_for_its_hosts_only(self, hosts):
        other, *own = hosts
        found = certificate(own)
        self.assertFalse(validity.covers(found, other))
        for host in own:
            self.assertTrue(validity.covers(found, host))

    @ddt.data((-HOUR, 48 * HOUR, 2, True), (-72 * HOUR, -48 * HOUR, -2, True),
              (HOUR, 24 * HOUR, 1, False))
    @ddt.unpack
    def test_days_are_counted(self, begin, end, days, has_begun):
        found = certificate([], begin, end)
        self.assertAlmostEqual(days, validity.days_left(found), 2)
        self.assertEqual(has_begun, validity.has_begun(found))

    def test_dates_of_old_cryptography_are_read(self):
        naive = datetime.datetime.now(datetime.timezone.utc).replace(
            tzinfo=None)
        old = mock.Mock(spec=['not_valid_after'],
                        not_valid_after=naive + 24 * HOUR)
        self.assertAlmostEqual(1, validity.days_left(old), 2)

    @hypothesis.given(strategies.binary(max_size=200))
    def test_file_without_certificates_is_invalid(self, content):
        self.path.write_bytes(content)
        self.assertRaises(ValueError, validity.load, self.path)

    def test_all_certificates_of_a_file_are_read(self):
        self.path.write_bytes(2 * certificates._pem(certificate([])))
        self.assertEqual(2, len(validity.load(self.path)))
