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

import threading
from unittest import mock

import ddt
from nova.virt.libvirt.volume import remotefs
import testtools

from nova_migfix import transfer


class TestSource(testtools.TestCase):

    def test_the_migration_address_stands_in_for_the_host_name(self):
        with transfer.fetching_from('10.0.2.11'):
            self.assertEqual('10.0.2.11', transfer.source('compute1'))
        self.assertEqual('compute1', transfer.source('compute1'))

    def test_without_an_address_nova_chooses(self):
        with transfer.fetching_from(None):
            self.assertEqual('compute1', transfer.source('compute1'))

    def test_what_nova_fetches_from_nobody_is_fetched_from_nobody(self):
        with transfer.fetching_from('10.0.2.11'):
            self.assertIsNone(transfer.source(None))

    def test_it_ends_with_an_error_too(self):
        def fail():
            with transfer.fetching_from('10.0.2.11'):
                raise ValueError
        self.assertRaises(ValueError, fail)
        self.assertEqual('compute1', transfer.source('compute1'))

    def test_migrations_in_other_threads_have_their_own(self):
        seen = []
        with transfer.fetching_from('10.0.2.11'):
            other = threading.Thread(
                target=lambda: seen.append(transfer.source('compute3')))
            other.start()
            other.join()
        self.assertEqual(['compute3'], seen)


@ddt.ddt
class TestRemoteFilesystem(testtools.TestCase):

    def copied(self, src):
        with mock.patch.object(
                remotefs.RemoteFilesystem, 'copy_file', autospec=True) as copy:
            transfer.RemoteFilesystem().copy_file(src, '/inst')
        return copy.call_args.args[1]

    @ddt.data(('10.0.2.11', '10.0.2.11:/inst/disk.config'),
              ('fd00::11', '[fd00::11]:/inst/disk.config'),
              ('c1.migration', 'c1.migration:/inst/disk.config'),
              (None, 'compute1:/inst/disk.config'))
    @ddt.unpack
    def test_fetches_from_the_migration_address(self, address, src):
        with transfer.fetching_from(address):
            self.assertEqual(src, self.copied('compute1:/inst/disk.config'))

    def test_a_local_path_is_left_alone(self):
        with transfer.fetching_from('10.0.2.11'):
            self.assertEqual('/inst/disk', self.copied('/inst/disk'))
