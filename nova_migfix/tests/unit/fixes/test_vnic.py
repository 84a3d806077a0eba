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
from lxml import etree
from nova import exception
from nova.network import model as network_model
from nova import objects
from nova.virt.libvirt import host as libvirt_host
import testtools

from nova_migfix.abi import domain
from nova_migfix.fixes import vnic
from nova_migfix import peer
from nova_migfix.tests import fixtures as migfix_fixtures
from nova_migfix.tests.unit.abi import test_vnic as test_abi

UUID = '5f1d0a5e-0000-4000-8000-00000000abcd'
MAC = 'fa:16:3e:00:00:01'
#: characters of the details of an event of the instance's action
EVENT = 255


class VnicTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.useFixture(migfix_fixtures.PatchedMigrateData())
        self.fix = vnic.Vnic()
        self.instance = objects.Instance(
            uuid=UUID, flavor=objects.Flavor(vcpus=4, extra_specs={}),
            image_ref='', system_metadata={})

    def check(self, capabilities, running='queues-grow'):
        """Run the check of the source with these destination capabilities."""
        host = mock.create_autospec(libvirt_host.Host, instance=True)
        host.get_guest.return_value.get_xml_desc.return_value = (
            test_abi.golden(running, 'source'))
        data = peer.LibvirtLiveMigrateData()
        if capabilities is not None:
            data.dest_capabilities = capabilities
        self.fix.check_can_live_migrate_source(self.instance, host, data)
        return host


@ddt.ddt
class TestQueuesOfTheKernel(VnicTestCase):

    @ddt.data(1, 8, 256)
    def test_destination_sends_its_queue_limit(self, queues):
        with mock.patch('nova_migfix.abi.tap.max_queues', autospec=True,
                        return_value=queues):
            capabilities = self.fix.dest_capabilities()
        self.assertEqual(str(queues), capabilities['max_tap_queues'])

    def test_destination_with_unknown_queue_limit_sends_none(self):
        with mock.patch('nova_migfix.abi.tap.max_queues', autospec=True,
                        side_effect=PermissionError('no CAP_NET_ADMIN')):
            self.assertNotIn('max_tap_queues', self.fix.dest_capabilities())
        self.assertIn('no CAP_NET_ADMIN', self.log.output)

    def test_too_few_queues_are_refused_with_the_remedy(self):
        error = self.assertRaises(
            exception.MigrationPreCheckError, self.check,
            {'max_tap_queues': '1'})
        for part in (UUID, MAC, 'runs with 2 queues', 'has 1 at most',
                     '[libvirt] max_queues', 'hard reboot the instance'):
            self.assertIn(part, str(error))
        self.assertLessEqual(len(str(error)), EVENT)
        self.assertIn('Live migration refused', self.log.output)

    @ddt.data({'max_tap_queues': '2'}, {'max_tap_queues': '256'},
              {'max_tap_queues': 'many'}, {'max_tap_queues': '-1'},
              {'max_tap_queues': '1' * 5000}, {'something': 'else'})
    def test_sufficient_or_unknown_queue_limit_is_accepted(self, announced):
        self.check(announced)
        self.assertEqual('', self.log.output)

    @ddt.data(None, {})
    def test_destination_without_the_plugin_is_accepted(self, announced):
        host = self.check(announced)
        host.get_guest.assert_not_called()


@ddt.ddt
class TestTapCreatedBeforehand(VnicTestCase):
    """LP 2069718: the tap's flag follows flavor and image, not the guest."""

    def bind(self, create_tap, multiqueue):
        self.instance.info_cache = objects.InstanceInfoCache(
            network_info=network_model.NetworkInfo([network_model.VIF(
                address=MAC.upper(),
                details={'ovs_create_tap': create_tap})]))
        self.instance.flavor.extra_specs['hw:vif_multiqueue_enabled'] = (
            str(multiqueue))

    @ddt.data(({'create_tap', 'multiqueue', 'create_port'}, True, True),
              ({'create_port'}, True, False),
              ({'create_tap', 'multiqueue'}, False, False))
    @ddt.unpack
    def test_destination_sends_whether_os_vif_creates_taps(
            self, os_vif_fields, nova_knows, does):
        nova = mock.Mock(
            spec=['VIF_DETAILS_OVS_CREATE_TAP'] if nova_knows else [])
        with mock.patch.object(
                vnic.osv_vif.VIFPortProfileOpenVSwitch, 'fields',
                dict.fromkeys(os_vif_fields)), mock.patch.object(
                vnic, 'network_model', nova), mock.patch(
                'nova_migfix.abi.tap.max_queues', autospec=True,
                return_value=256):
            capabilities = self.fix.dest_capabilities()
        self.assertEqual(does, 'os_vif_creates_tap' in capabilities)

    @ddt.data(('single-queue', True), ('queues-grow', False))
    @ddt.unpack
    def test_tap_with_the_wrong_multiqueue_flag_is_refused(
            self, running, multiqueue):
        self.bind(create_tap=True, multiqueue=multiqueue)
        error = self.assertRaises(
            exception.MigrationPreCheckError, self.check,
            {'os_vif_creates_tap': 'yes'}, running)
        for part in (UUID, MAC, 'Hard reboot the instance'):
            self.assertIn(part, str(error))
        self.assertLessEqual(len(str(error)), EVENT)

    @ddt.data(('single-queue', False, True, {'os_vif_creates_tap': 'yes'}),
              ('queues-grow', True, True, {'os_vif_creates_tap': 'yes'}),
              ('single-queue', True, False, {'os_vif_creates_tap': 'yes'}),
              ('single-queue', True, True, {'max_tap_queues': '256'}))
    @ddt.unpack
    def test_matching_or_libvirt_created_tap_is_accepted(
            self, running, multiqueue, create_tap, announced):
        self.bind(create_tap=create_tap, multiqueue=multiqueue)
        self.check(announced, running)
        self.assertEqual('', self.log.output)


class TestDestinationXML(VnicTestCase):

    def test_each_kept_attribute_is_one_line_of_the_log(self):
        running, destination = (
            domain.parse(test_abi.golden('queues-shrink', kind))
            for kind in ('source', 'stock'))
        self.fix.update_destination_xml(
            None, self.instance, None, destination, running)
        self.assertEqual(
            test_abi.canonical(
                test_abi.golden('queues-shrink', 'kept')),
            test_abi.canonical(
                etree.tostring(destination, encoding='unicode')))
        self.assertEqual(3, len(self.log.output.splitlines()))
        self.assertIn(
            f'vNIC {MAC}: kept driver/@queues 4 where Nova would have set 2 '
            f'({vnic.Vnic.bug})', self.log.output)
