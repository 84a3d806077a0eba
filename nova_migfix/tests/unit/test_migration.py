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


class TestSource(testtools.TestCase):

    def test_the_migration_address_stands_in_for_the_host_name(self):
        with migration.incoming('10.0.2.11', is_live=True):
            self.assertEqual('10.0.2.11', migration.source('compute1'))
        self.assertEqual('compute1', migration.source('compute1'))

    def test_without_an_address_nova_chooses(self):
        with migration.incoming(None, is_live=True):
            self.assertEqual('compute1', migration.source('compute1'))

    def test_what_nova_fetches_from_nobody_is_fetched_from_nobody(self):
        with migration.incoming('10.0.2.11', is_live=True):
            self.assertIsNone(migration.source(None))

    def test_it_ends_with_an_error_too(self):
        def fail():
            with migration.incoming('10.0.2.11', is_live=True):
                raise ValueError
        self.assertRaises(ValueError, fail)
        self.assertEqual('compute1', migration.source('compute1'))

    def test_migrations_in_other_threads_have_their_own(self):
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
