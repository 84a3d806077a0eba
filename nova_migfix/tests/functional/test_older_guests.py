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

"""Guests that booted with another release, or with other options."""

import fixtures
from lxml import etree
from nova.tests.fixtures import libvirt as fakelibvirt

from nova_migfix import nova_release
from nova_migfix.tests.functional import base

TCP_SERIAL = '''
<serial type="tcp"><source mode="bind" host="127.0.0.1" service="10000"/>
  <protocol type="raw"/><target port="0"/></serial>'''
RBD_DISK = '''
<disk type="network" device="disk"><driver name="qemu" type="raw"/>
  <source protocol="rbd" name="vms/disk"><host name="192.0.2.1" port="6789"/>
  </source><target dev="vdz" bus="virtio"/></disk>'''


class BootedBefore(fixtures.Fixture):
    """Change the XML of all domains, as if they had booted before a change.

    :param change: takes the document and changes it in place
    """

    def __init__(self, change):
        self._change = change

    def _setUp(self):
        describe = fakelibvirt.Domain.XMLDesc

        def xml_desc(domain, flags):
            document = etree.fromstring(describe(domain, flags))
            self._change(document)
            return etree.tostring(document, encoding='unicode')

        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.libvirt.Domain.XMLDesc', xml_desc))


def with_device(xml):
    return BootedBefore(lambda document: document.find('devices').append(
        etree.fromstring(xml)))


class OlderGuestTestCase(base.MigrationTestCase):

    def assert_fails_before_libvirt(self):
        """Migrate the guest; Nova fails while it computes the XML."""
        self.source_domain()._job_type = fakelibvirt.VIR_DOMAIN_JOB_NONE
        before = len(self.migrations())
        self.api.post_server_action(self.server['id'], {
            'os-migrateLive': {'host': None, 'block_migration': 'auto'}})
        self._wait_for_migration_status(self.server, ['error', 'failed'])
        self.assertEqual(before + 1, len(self.migrations()))
        self.assertEqual([], self.destination_xmls)

    def arrived(self, xpath):
        return etree.fromstring(self.destination_xmls[-1]).xpath(xpath)


class SerialConsoleTestCase(OlderGuestTestCase):
    """The guest booted with [serial_console] enabled, which now is off."""

    def setUp(self):
        super().setUp()
        self.useFixture(with_device(TCP_SERIAL))
        self.boot()

    def test_serial_device_becomes_a_pseudo_terminal(self):
        self.live_migrate('completed')
        self.assertEqual('dest', self.host())
        self.assertEqual(['pty'], self.arrived('//serial[target]/@type'))


class SerialConsoleWithoutFixTestCase(SerialConsoleTestCase):

    enabled_fixes = ['rollback_state']

    def test_serial_device_becomes_a_pseudo_terminal(self):
        """Unmodified Nova fails; Nova 29 does not log why."""
        self.assert_fails_before_libvirt()


class RbdMonitorsTestCase(OlderGuestTestCase):
    """Ceph has moved its monitors since the guest booted (LP 1741364)."""

    expected = ['192.0.2.9']

    def setUp(self):
        if nova_release.major() > 33:
            self.skipTest('this Nova updates the monitors')
        super().setUp()
        self.useFixture(fixtures.MockPatch(
            'nova.storage.rbd_utils.RBDDriver', autospec=True)
            ).mock.return_value.get_mon_addrs.return_value = (
                ['192.0.2.9'], ['3300'])
        self.useFixture(with_device(RBD_DISK))
        self.boot()

    def test_monitors_on_the_destination(self):
        self.live_migrate('completed')
        self.assertEqual(self.expected, self.arrived(
            '//disk[target/@dev="vdz"]/source/host/@name'))


class RbdMonitorsWithoutFixTestCase(RbdMonitorsTestCase):

    enabled_fixes = ['rollback_state']
    expected = ['192.0.2.1']


class IothreadPinTestCase(OlderGuestTestCase):
    """A release before 33 started the guest with dedicated CPUs."""

    ADDITIONAL_FILTERS = ['NUMATopologyFilter']
    record = 'completed'

    def setUp(self):
        if nova_release.major() != 33:
            self.skipTest('only Nova 33 expects an I/O thread')
        super().setUp()
        self.useFixture(BootedBefore(self.without_io_thread))
        self.server = self._create_server(
            host=self.src.host, networks='none',
            flavor_id=self._create_flavor(
                vcpu=2, extra_spec={'hw:cpu_policy': 'dedicated'}))

    def start_compute(self, hostname):
        self.flags(cpu_dedicated_set='0,1', group='compute')
        return super().start_compute(
            hostname=hostname, host_info=fakelibvirt.HostInfo(
                cpu_nodes=1, cpu_sockets=1, cpu_cores=4, cpu_threads=1))

    @staticmethod
    def without_io_thread(document):
        for element in document.xpath('./iothreads | ./cputune/iothreadpin'):
            element.getparent().remove(element)

    def test_guest_with_dedicated_cpus(self):
        self.live_migrate(self.record)
        self.assertEqual([], self.arrived('//iothreadpin'))


class IothreadPinWithoutFixTestCase(IothreadPinTestCase):

    enabled_fixes = ['rollback_state']

    def test_guest_with_dedicated_cpus(self):
        """Unmodified Nova 33 fails."""
        self.assert_fails_before_libvirt()
        self.assertIn("'NoneType' object has no attribute 'set'",
                      self.stdlog.logger.output)
