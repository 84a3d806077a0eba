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

import functools

import ddt
import fixtures
from lxml import etree
from nova import objects
from nova.virt.libvirt import migration
import testtools

from nova_migfix.abi import domain
from nova_migfix.fixes import serial_console

TCP = ('<domain><name>guest</name><devices>'
       '<serial type="tcp"><source mode="bind" host="192.0.2.1" '
       'service="10000"/><protocol type="raw"/><log file="/log"/>'
       '<target port="0"/></serial>'
       '<console type="tcp"><source mode="bind" host="192.0.2.1" '
       'service="10000"/><protocol type="raw"/>'
       '<target type="serial" port="0"/></console></devices></domain>')
PTY = ('<domain><name>guest</name><devices>'
       '<serial type="pty"><log file="/log"/><target port="0"/></serial>'
       '<console type="pty"><target type="serial" port="0"/></console>'
       '</devices></domain>')


@ddt.ddt
class TestSerialConsole(testtools.TestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.fix = serial_console.SerialConsole()

    def recompute(self, xml, address):
        data = objects.LibvirtLiveMigrateData(
            serial_listen_addr=address, serial_listen_ports=[10001])
        return etree.tostring(migration._update_serial_xml(
            etree.fromstring(xml), data), encoding='unicode')

    def migrate(self, xml, address):
        data = objects.LibvirtLiveMigrateData(serial_listen_addr=address)
        return self.recompute(domain.updated(xml, functools.partial(
            self.fix.update_running_xml, data)), address)

    def test_unmodified_nova_fails_without_an_address(self):
        self.assertRaises(TypeError, self.recompute, TCP, None)

    def test_device_becomes_a_pseudo_terminal_without_an_address(self):
        self.assertEqual(PTY, self.migrate(TCP, None))
        self.assertIn('domain guest becomes a pseudo terminal',
                      self.log.output)

    def test_device_follows_an_address(self):
        xml = self.migrate(TCP, '192.0.2.2')
        self.assertEqual(TCP.replace('192.0.2.1', '192.0.2.2').replace(
            '10000', '10001'), xml)
        self.assertEqual('', self.log.output)

    @ddt.data(PTY, '<domain/>')
    def test_guest_without_a_serial_console_is_left_alone(self, xml):
        self.assertEqual(xml, self.migrate(xml, None))
        self.assertEqual('', self.log.output)
