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
from oslo_concurrency import processutils
import testtools

from nova_migfix.abi import domain
from nova_migfix.fixes import rbd_monitors
from nova_migfix.tests import volumes

LOCAL = ('<disk type="network"><source protocol="rbd" name="vms/a_disk">{}'
         '</source><target dev="vda"/></disk>')
OLD = '<host name="192.0.2.1" port="6789"/>'
NEW = ('<host name="192.0.2.8" port="3300"/>'
       '<host name="192.0.2.9" port="3300"/>')
# Cinder supplies the monitors of these.
VOLUME = LOCAL.replace('</disk>', '<serial>{}</serial></disk>')
LUN = LOCAL.replace('</disk>', '<alias name="ua-{}"/></disk>')


@ddt.ddt
class TestRbdMonitors(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.ask = self.useFixture(fixtures.MockPatch(
            'nova.storage.rbd_utils.RBDDriver', autospec=True)
            ).mock.return_value.get_mon_addrs
        self.ask.return_value = (['192.0.2.8', '192.0.2.9'], ['3300', '3300'])

    def update(self, *disks):
        return domain.updated(volumes.domain(*disks), functools.partial(
            rbd_monitors.RbdMonitors().update_destination_xml, None,
            volumes.instance(), None), None)

    def test_local_disk_gets_the_present_monitors(self):
        self.assertEqual(volumes.domain(LOCAL.format(NEW)),
                         self.update(LOCAL.format(OLD)))
        self.assertIn('get the monitors 192.0.2.8:3300, 192.0.2.9:3300',
                      self.log.output)

    def test_present_monitors_are_not_logged(self):
        disk = LOCAL.format(NEW)
        self.assertEqual(volumes.domain(disk), self.update(disk))
        self.assertEqual('', self.log.output)

    @ddt.data(VOLUME.format(OLD, volumes.VOLUME),
              LUN.format(OLD, volumes.VOLUME), volumes.disk(serial=None))
    def test_other_disks_do_not_ask_ceph(self, disk):
        self.assertEqual(volumes.domain(disk), self.update(disk))
        self.ask.assert_not_called()

    def test_disk_keeps_its_monitors_without_an_answer(self):
        self.ask.side_effect = processutils.ProcessExecutionError('no ceph')
        disk = LOCAL.format(OLD)
        self.assertEqual(volumes.domain(disk), self.update(disk))
        self.assertIn('no ceph', self.log.output)
