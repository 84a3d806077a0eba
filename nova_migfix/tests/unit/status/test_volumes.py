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
import nova.conf
from oslo_config import fixture as config_fixture
import testtools

from nova_migfix import nova_release
from nova_migfix.status import finders
from nova_migfix.status import hypervisor
from nova_migfix.tests import volumes

CACHED = '<driver name="qemu" type="raw" cache="{}"/>'
SHAREABLE = '<shareable/>'


@ddt.ddt
class TestFindingsOfVolumes(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.release = self.useFixture(fixtures.MockPatchObject(
            nova_release, 'major', autospec=True, return_value=34)).mock
        self.config = self.useFixture(
            config_fixture.Config(nova.conf.CONF)).config

    def find(self, *disks):
        return [tuple(found)[:4] for found in finders._volumes(
            hypervisor.Domain('', '', volumes.domain(*disks)), mock.Mock())]

    @ddt.data(
        ([], 'none', []),
        ([], 'writethrough', [('writethrough', 'none')]),
        (['block=writethrough'], 'writethrough', []),
        (['file=unsafe', 'block=writeback'], 'none', [('none', 'writeback')]),
        (['network=writeback'], 'none', []))
    @ddt.unpack
    def test_cache_mode_that_nova_would_change(self, modes, running, changes):
        self.config(disk_cachemodes=modes, group='libvirt')
        self.assertEqual(
            [('volume', 'vdb driver/@cache', *change) for change in changes],
            self.find(volumes.disk(CACHED.format(running))))

    def test_volume_of_several_guests_has_no_cache(self):
        self.config(disk_cachemodes=['block=writeback'], group='libvirt')
        self.assertEqual([], self.find(
            volumes.disk(CACHED.format('none') + SHAREABLE)))

    @ddt.data((29, []), (30, ['volume-path']), (34, ['volume-path']))
    @ddt.unpack
    def test_path_of_a_lun_since_nova_30(self, release, kinds):
        self.release.return_value = release
        self.assertEqual(
            kinds, [found[0] for found in self.find(volumes.disk(
                f'<alias name="ua-{volumes.VOLUME}"/>', serial=None,
                device='lun'))])

    def test_lun_of_the_network_has_one_path_on_all_hosts(self):
        self.assertEqual([], self.find(volumes.disk(
            f'<alias name="ua-{volumes.VOLUME}"/>', serial=None, device='lun',
            kind='network')))

    def test_local_disk_is_no_volume(self):
        self.assertEqual([], self.find(volumes.disk(
            CACHED.format('writeback'), serial=None)))
