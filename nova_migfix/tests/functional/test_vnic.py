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


"""A vNIC keeps its properties from boot, or the guest stays."""

import fixtures
from lxml import etree
from nova.virt.libvirt import vif

from nova_migfix import nova_release
from nova_migfix.tests.functional import base

plug_os_vif = vif.LibvirtGenericVIFDriver._plug_os_vif
MULTIQUEUE = {'hw_vif_multiqueue_enabled': 'true'}

#: change, [libvirt] options at boot, [libvirt] options at migration
CHANGES = (
    ('queues grow', {'max_queues': 2}, {'max_queues': 4}),
    ('queues shrink', {'max_queues': 4}, {'max_queues': 2}),
    ('a limit is introduced', {}, {'max_queues': 2}),
    ('a limit is lifted', {'max_queues': 2}, {}),
    ('one queue becomes many', {'max_queues': 1}, {'max_queues': 4}),
    ('the receive ring grows', {'rx_queue_size': 256}, {'rx_queue_size': 512}),
    ('the receive ring is set', {}, {'rx_queue_size': 512}),
    ('the receive ring is unset', {'rx_queue_size': 512}, {}),
)


class VnicTestCase(base.MigrationTestCase):

    def configure(self, **options):
        for name in ('max_queues', 'rx_queue_size'):
            self.flags(**{name: options.get(name)}, group='libvirt')

    def vnic(self, domain_xml):
        """Return the attributes of the vNIC's driver."""
        return dict(etree.fromstring(domain_xml).find(
            './devices/interface/driver').attrib)

    def migrate_after_change(self, at_boot, at_migration):
        """Return the vNIC before the migration and that of the destination."""
        self.configure(**at_boot)
        self.boot(**MULTIQUEUE)
        running = self.vnic(self.source_domain().XMLDesc(0))
        self.configure(**at_migration)
        self.live_migrate('completed')
        handed = self.vnic(self.destination_xmls[-1])
        self._delete_server(self.server)
        return running, handed


class KeptVnicTestCase(VnicTestCase):

    def test_destination_gets_the_running_vnic(self):
        for what, at_boot, at_migration in CHANGES:
            running, handed = self.migrate_after_change(at_boot, at_migration)
            self.assertEqual(running, handed, what)

    def test_kept_attributes_are_logged(self):
        self.migrate_after_change({'max_queues': 2}, {'max_queues': 4})
        self.assertIn('kept driver/@queues 2 where Nova would have set 4',
                      self.stdlog.logger.output)


class RecomputedVnicTestCase(VnicTestCase):
    """Without the fix Nova changes each vNIC."""

    enabled_fixes = ['rollback_state', 'source_address']

    def test_unmodified_nova_changes_the_vnic(self):
        for what, at_boot, at_migration in CHANGES:
            running, handed = self.migrate_after_change(at_boot, at_migration)
            self.assertNotEqual(running, handed, what)


class TooFewQueuesTestCase(VnicTestCase):
    """The destination's kernel opens fewer queues than the guest has."""

    def migrate(self, record):
        self.configure(max_queues=4)
        self.boot(**MULTIQUEUE)
        self.live_migrate(record, host='dest')

    def test_too_few_queues_are_refused_in_the_precheck(self):
        self.max_tap_queues.return_value = 2
        self.dest.driver._update_capabilities()
        self.migrate('error')
        self.assertEqual('src', self.host())
        self.assertEqual([], self.destination_xmls)
        event = self.failed_event('compute_check_can_live_migrate_source')
        self.assertIn('max_queues to 2 and hard reboot the instance.',
                      event['details'])

    def test_enough_queues_are_accepted(self):
        self.max_tap_queues.return_value = 4
        self.dest.driver._update_capabilities()
        self.migrate('completed')
        self.assertEqual('dest', self.host())

    def test_destination_with_unknown_queue_limit_is_accepted(self):
        self.max_tap_queues.side_effect = OSError('no /dev/net/tun')
        self.dest.driver._update_capabilities()
        self.migrate('completed')
        self.assertEqual('dest', self.host())


class CreatedTapTestCase(VnicTestCase):
    """Os-vif creates the tap before libvirt opens it: LP 2069718.

    Nova passes to os-vif only whether flavor and image ask for one queue or
    several. Libvirt then opens the tap with the queues of the guest. The
    kernel refuses several queues of a single-queue tap, and one queue of a
    multiqueue tap.
    """

    def setUp(self):
        if nova_release.major() < 33:
            self.skipTest('this Nova does not let os-vif create the tap')
        super().setUp()
        port = self.neutron._ports[self.neutron.port_1['id']]
        port['binding:vif_details']['ovs_create_tap'] = True
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.vif.LibvirtGenericVIFDriver._plug_os_vif',
            plug_os_vif))
        self.plug = self.useFixture(fixtures.MockPatch(
            'os_vif.plug', autospec=True)).mock

    def migrate(self, max_queues, record):
        self.configure(max_queues=max_queues)
        self.boot(**MULTIQUEUE)
        self.configure(max_queues=4)
        self.live_migrate(record, host='dest')

    def test_guest_with_several_queues_fits_the_created_tap(self):
        self.migrate(2, 'completed')
        plugged = self.plug.mock_calls[-1].args[0]
        self.assertTrue(plugged.port_profile.multiqueue)
        self.assertEqual(
            '2', self.vnic(self.destination_xmls[-1])['queues'])

    def test_guest_with_one_queue_is_refused_for_a_multiqueue_tap(self):
        self.migrate(1, 'error')
        self.assertEqual('src', self.host())
        event = self.failed_event('compute_check_can_live_migrate_source')
        self.assertIn('unset ovs_create_tap in Neutron.', event['details'])

    def test_guest_with_one_queue_meets_a_multiqueue_tap_without_the_fix(self):
        # A destination without the plugin sends no capability, so the source
        # does not refuse. This test shows the fault that justifies the
        # refusal; if it fails, the refusal is no longer needed.
        self.useFixture(fixtures.MockPatch(
            'nova_migfix.fixes.vnic.Vnic.dest_capabilities', autospec=True,
            return_value={}))
        self.dest.driver._update_capabilities()
        self.migrate(1, 'completed')
        plugged = self.plug.mock_calls[-1].args[0]
        self.assertTrue(plugged.port_profile.multiqueue)
        self.assertNotIn('queues', self.vnic(self.destination_xmls[-1]))
