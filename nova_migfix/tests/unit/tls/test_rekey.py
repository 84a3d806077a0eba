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

import ddt
import testtools

from nova_migfix.tls import rekey

GIB = 1 << 30

TLS = rekey.Transport(live_migration_with_native_tls=True)
POST_COPY = TLS._replace(live_migration_permit_post_copy=True)
SEVERAL = TLS._replace(live_migration_parallel_connections=2)
TUNNELLED = TLS._replace(live_migration_tunnelled=True)

SAFE, AT_RISK, WILL_FAIL = rekey.Verdict


@ddt.ddt
class TestIsFixed(testtools.TestCase):

    @ddt.data(
        # GnuTLS       package               rekeys safely
        ('3.7.9', '', False),
        ('3.7.9', '3.7.9-2+deb12u6', False),
        ('3.8.9', '3.8.9-3+deb13u4', False),
        ('3.8.10', '', False),
        ('3.8.11', '', True),
        ('3.8.11', '3.8.11-1', True),
        ('3.9.0', '', True),
        ('4.0', '', True),
        ('3.8.3', '3.8.3-6.el9', False),
        ('3.8.3', '3.8.3-6.el9_6', False),
        ('3.8.3', '3.8.3-6.el9_6.1', False),
        ('3.8.3', '3.8.3-6.el9_6.2', True),
        ('3.8.3', '3.8.3-6.el9.2', True),
        ('3.8.3', '3.8.3-6.el9_6.2.alma.1', True),
        ('3.8.3', '3.8.3-4.el9_4', False),
        ('3.8.3', '3.8.3-9.el9', True),
        ('3.7.6', '3.7.6-23.el9', False),
        ('3.8.9', '3.8.9-13.el10', False),
        ('3.8.9', '3.8.9-14.el10', True),
        ('3.8.9', '3.8.9-14.el10_1', True),
        # a backport of el10 is not in el9, nor in other distributions
        ('3.8.3', '3.8.3-6.el8_6.2', False),
        ('3.8.9', '3.8.9-14.fc41', False),
    )
    @ddt.unpack
    def test_fixed_versions_are_recognized(self, gnutls, package, expected):
        self.assertEqual(expected, rekey.is_fixed(gnutls, package))

    def test_malformed_version_is_an_error(self):
        self.assertRaises(ValueError, rekey.is_fixed, 'unknown')


@ddt.ddt
class TestBytesSent(testtools.TestCase):

    @ddt.data(
        # each round sends the pages written in the round before
        (10, None, None, 10), (10, 0, 4, 10), (10, 2, 4, 20), (10, 3, 4, 40),
        (10, 4, 4, None), (10, 5, 4, None))
    @ddt.unpack
    def test_bytes_sent_until_the_migration_converges(
            self, memory, rate, bandwidth, expected):
        self.assertEqual(
            expected, rekey.bytes_sent(memory, rate, bandwidth))


@ddt.ddt
class TestAssess(testtools.TestCase):

    def assess(self, transport, gnutls, memory, dirty_rate=None, package=''):
        """Take memory in GiB; the dirty rate in parts of the bandwidth."""
        return rekey.assess(
            transport, gnutls, package, int(memory * GIB),
            None if dirty_rate is None else int(dirty_rate * GIB), GIB)

    @ddt.data(
        # transport, GnuTLS, GiB in use: verdict, rekeys, part of the reason
        (TLS, '3.7.9', 4, SAFE, 0, 'about 4.0 GiB will be sent'),
        (TLS, '3.7.9', 15.9, SAFE, 0, 'from 64 GiB on'),
        (TLS, '3.7.9', 16, AT_RISK, 0, 'may be sent several times'),
        (TLS, '3.7.9', 40, AT_RISK, 1, 'GnuTLS 3.7.9: QEMU crashes at the '
         'second rekey, after 64 GiB'),
        (TLS, '3.7.9', 64, WILL_FAIL, 2, '64.0 GiB are in use'),
        (TLS, '3.8.10', 200, WILL_FAIL, 6, 'GnuTLS 3.8.10'),
        (TLS, None, 200, WILL_FAIL, 6, 'GnuTLS of unknown version'),
        (TLS, '3.8.11', 200, SAFE, 0, 'GnuTLS 3.8.11 rekeys safely'),
        # the first rekey is enough
        (POST_COPY, '3.7.9', 7.9, SAFE, 0, 'from 32 GiB on'),
        (POST_COPY, '3.7.9', 8, AT_RISK, 0, 'several times'),
        (POST_COPY, '3.7.9', 32, WILL_FAIL, 1,
         'fails at the first rekey (post-copy), after 32 GiB'),
        (POST_COPY, '3.8.11', 200, SAFE, 0, 'rekeys safely'),
        # each connection is used from one thread, unless there is post-copy
        (SEVERAL, '3.7.9', 200, SAFE, 0, 'parallel connections'),
        (SEVERAL._replace(live_migration_permit_post_copy=True), '3.7.9', 200,
         WILL_FAIL, 6, 'post-copy'),
        # QEMU does not use TLS
        (rekey.Transport(), '3.7.9', 200, SAFE, 0, 'does not use TLS'),
        (TUNNELLED, '3.7.9', 200, SAFE, 0, 'tunnelled through libvirt'),
    )
    @ddt.unpack
    def test_verdict_follows_the_memory_in_use(
            self, transport, gnutls, memory, verdict, rekeys, reason):
        found = self.assess(transport, gnutls, memory)
        self.assertEqual((verdict, rekeys), (found.verdict, found.rekeys))
        self.assertIn(reason, found.reason)

    @ddt.data(
        # transport, GiB in use, dirty rate in parts of the bandwidth:
        # verdict, rekeys, part of the reason
        (TLS, 30, 0, SAFE, 0, 'about 30.0 GiB'),
        (TLS, 30, 0.5, SAFE, 1, 'about 60.0 GiB'),
        (TLS, 20, 0.75, WILL_FAIL, 2, '80.0 GiB will be sent, as the guest '
         'writes 0.75 GiB per second'),
        (TLS, 1, 1, WILL_FAIL, None, 'faster than the migration sends'),
        (POST_COPY, 30, 0, SAFE, 0, 'about 30.0 GiB'),
        (POST_COPY, 20, 0.5, WILL_FAIL, 1, '40.0 GiB will be sent'),
        # a migration that does not converge switches to post-copy
        (POST_COPY, 1, 1, SAFE, 0, 'about 1.0 GiB'),
        (POST_COPY, 10, 1, AT_RISK, 0, 'several times'),
    )
    @ddt.unpack
    def test_verdict_follows_the_dirty_rate(
            self, transport, memory, rate, verdict, rekeys, reason):
        found = self.assess(transport, '3.7.9', memory, rate)
        self.assertEqual((verdict, rekeys), (found.verdict, found.rekeys))
        self.assertIn(reason, found.reason)

    def test_backport_of_the_fix_is_safe(self):
        found = self.assess(TLS, '3.8.3', 200, package='3.8.3-6.el9_6.2')
        self.assertEqual(
            (SAFE, 'GnuTLS 3.8.3-6.el9_6.2 rekeys safely'),
            found[:2])


@ddt.ddt
class TestTransport(testtools.TestCase):

    @ddt.data(
        (TLS, 'over native TLS, without post-copy, parallel connections: 1'),
        (POST_COPY, 'over native TLS, with post-copy, parallel connections: '
         '1'),
        (SEVERAL, 'over native TLS, without post-copy, parallel connections: '
         '2'),
        (rekey.Transport(), 'without native TLS, without post-copy, parallel '
         'connections: 1'),
        (TUNNELLED, 'tunnelled through libvirt'))
    @ddt.unpack
    def test_transport_is_described_in_words(self, transport, expected):
        self.assertEqual(expected, str(transport))
