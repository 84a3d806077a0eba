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

import testtools

from nova_migfix import migration


class TestSourceHost(testtools.TestCase):

    def test_migration_address_replaces_the_host_name(self):
        with migration.incoming('10.0.2.11', is_live=True):
            self.assertEqual('10.0.2.11', migration.source('compute1'))
        self.assertEqual('compute1', migration.source('compute1'))

    def test_host_name_of_nova_is_used_without_an_address(self):
        with migration.incoming(None, is_live=True):
            self.assertEqual('compute1', migration.source('compute1'))

    def test_fetch_without_a_host_stays_without_a_host(self):
        with migration.incoming('10.0.2.11', is_live=True):
            self.assertIsNone(migration.source(None))

    def test_migration_address_is_reset_after_an_error(self):
        def fail():
            with migration.incoming('10.0.2.11', is_live=True):
                raise ValueError
        self.assertRaises(ValueError, fail)
        self.assertEqual('compute1', migration.source('compute1'))

    def test_migration_address_applies_to_one_thread_only(self):
        seen = []
        with migration.incoming('10.0.2.11', is_live=True):
            other = threading.Thread(
                target=lambda: seen.append(migration.source('compute3')))
            other.start()
            other.join()
        self.assertEqual(['compute3'], seen)

    def test_live_migration_is_not_a_cold_one(self):
        self.assertFalse(migration.is_live())
        for is_live in (True, False):
            with migration.incoming(None, is_live):
                self.assertEqual(is_live, migration.is_live())
        self.assertFalse(migration.is_live())
