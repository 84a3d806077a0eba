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

from unittest import mock

import ddt
import fixtures
from nova import exception
from nova import objects
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix import conf
from nova_migfix.fixes import tls_rekey
from nova_migfix import peer
from nova_migfix.tls import audit
from nova_migfix.tls import gnutls
from nova_migfix.tls import probe
from nova_migfix.tls import qmp
from nova_migfix.tls import rekey

GIB = 1 << 30


class TlsTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))
        conf.register_opts(cfg.CONF)
        self.config.config(live_migration_with_native_tls=True,
                           group='libvirt')
        self.fix = tls_rekey.TlsRekey()


@ddt.ddt
class TestDestination(TlsTestCase):

    def capabilities(self, answer):
        with mock.patch.object(probe, 'find_qemu', autospec=True), \
                mock.patch.object(probe, 'probe', autospec=True,
                                  side_effect=[answer]):
            return self.fix.dest_capabilities()

    @ddt.data(('TLSv1.2', 'ECDHE-ECDSA-AES256-GCM-SHA384', 'safe'),
              ('TLSv1.3', 'TLS_CHACHA20_POLY1305_SHA256', 'safe'),
              ('TLSv1.3', 'TLS_AES_256_GCM_SHA384', 'rekeys'))
    @ddt.unpack
    def test_destination_sends_whether_its_qemu_rekeys(
            self, version, cipher, announced):
        self.assertEqual({'tls': announced},
                         self.capabilities(probe.Answer(version, cipher)))

    def test_destination_sends_nothing_without_a_tls_session(self):
        self.assertEqual({}, self.capabilities(
            probe.Answer('', '', 'handshake failure')))

    @ddt.data(('TLSv1.2', 'ECDHE-ECDSA-AES256-GCM-SHA384'),
              ('TLSv1.3', 'TLS_AES_256_GCM_SHA384'))
    @ddt.unpack
    def test_destination_sends_nothing_if_the_result_is_in_doubt(
            self, version, cipher):
        self.assertEqual({}, self.capabilities(probe.Answer(
            version, cipher, doubt='not every user can read it')))
        self.assertIn('not every user can read it', self.log.output)

    def test_destination_sends_nothing_without_qemu(self):
        self.assertEqual({}, self.capabilities(
            qmp.QemuError('no QEMU found')))
        self.assertIn('no QEMU found', self.log.output)

    def test_qemu_is_not_probed_without_tls(self):
        self.config.config(live_migration_with_native_tls=False,
                           group='libvirt')
        self.assertEqual({}, self.capabilities(None))


@ddt.ddt
class TestSource(TlsTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            audit, 'find', self.find))
        self.guest = audit.Guest(
            1, 'instance-1', uuids.instance, 100 * GIB,
            gnutls.Library('/lib/libgnutls.so.30', False, '3.7.9', ''))
        self.instance = objects.Instance(
            uuid=uuids.instance, memory_mb=200 << 10)

    def find(self, uuid):
        self.assertEqual(uuids.instance, uuid)
        return self.guest

    def check(self, **capabilities):
        peer.register()
        data = objects.LibvirtLiveMigrateData()
        peer.add_capabilities(data, capabilities)
        self.fix.check_can_live_migrate_source(self.instance, None, data)

    def assertWarned(self, *parts):
        for part in (uuids.instance, 'nova-migfix-tls generate', *parts):
            self.assertIn(part, self.log.output)
        self.assertEqual(1, self.log.output.count('nova-migfix-tls generate'))

    def test_large_guest_causes_a_warning(self):
        self.check()
        self.assertWarned('GnuTLS 3.7.9', 'will fail', '100.0 GiB')

    def test_large_guest_causes_a_warning_if_the_destination_rekeys(self):
        self.check(tls='rekeys')
        self.assertWarned('will fail')

    def test_large_guest_is_refused_with_refuse_unsafe_tls(self):
        self.config.config(refuse_unsafe_tls=True, group='migfix')
        error = self.assertRaises(
            exception.MigrationPreCheckError, self.check)
        for part in (uuids.instance, 'GnuTLS 3.7.9', 'will fail',
                     'nova-migfix-tls generate'):
            self.assertIn(part, str(error))

    def test_guest_without_process_is_judged_by_its_flavor(self):
        self.guest = None
        self.check()
        self.assertWarned('of unknown version', '200.0 GiB')

    def test_guest_with_unreadable_process_causes_a_warning(self):
        self.useFixture(fixtures.MockPatchObject(
            audit, 'find', autospec=True, side_effect=PermissionError))
        self.check()
        self.assertWarned('of unknown version')

    @ddt.data({'tls': 'safe'}, {'tls': 'safe', 'max_tap_queues': '256'})
    def test_safe_destination_causes_no_warning(self, announced):
        self.check(**announced)
        self.assertEqual('', self.log.output)

    def test_migration_without_tls_causes_no_warning(self):
        self.config.config(live_migration_with_native_tls=False,
                           group='libvirt')
        self.check()
        self.assertEqual('', self.log.output)

    def test_processes_are_not_read_without_tls(self):
        self.config.config(live_migration_with_native_tls=False,
                           group='libvirt')
        read = self.useFixture(fixtures.MockPatchObject(
            audit, 'find', autospec=True)).mock
        self.check()
        read.assert_not_called()

    def test_small_guest_causes_no_warning(self):
        self.guest = self.guest._replace(memory=8 * GIB)
        self.check()
        self.assertEqual('', self.log.output)

    def test_fixed_gnutls_causes_no_warning(self):
        self.guest = self.guest._replace(
            library=self.guest.library._replace(version='3.8.11'))
        self.check()
        self.assertEqual('', self.log.output)

    def test_rules_are_those_of_the_audit(self):
        self.config.config(live_migration_permit_post_copy=True,
                           group='libvirt')
        self.guest = self.guest._replace(memory=33 * GIB)
        self.check()
        self.assertWarned('post-copy', rekey.Verdict.WILL_FAIL.value)
