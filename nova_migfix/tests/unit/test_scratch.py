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

import os
import shutil
import time
from unittest import mock

import fixtures
from oslo_config import cfg
from oslo_config import fixture as config_fixture
import testtools

from nova_migfix import scratch
from nova_migfix.tests import fixtures as migfix_fixtures


class TestScratch(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))
        self.config.config(host='compute1.example')

    def killed(self):
        """Leave a directory behind, as a process that is killed does."""
        with mock.patch.object(scratch, '_RUN', 'killed'), \
                scratch.directory(str(self.instances.base / 'file')) as path:
            kept = f'{path}-kept'
            os.mkdir(kept)
        return os.path.exists(kept), kept

    def test_it_is_beside_the_file_and_gone_afterwards(self):
        with scratch.directory(str(self.instances.base / 'file')) as path:
            self.assertEqual(str(self.instances.base), os.path.dirname(path))
            (self.instances.base / 'other').touch()
        self.assertEqual(['other'], os.listdir(self.instances.base))

    def test_the_name_means_nothing_to_the_image_cache(self):
        self.config.config(host='a_host_with_a_name_of_more_than_40_letters')
        with scratch.directory(str(self.instances.base / 'file')) as path:
            name = os.path.basename(path)
            self.assertLess(len(name), 40)
            self.assertNotIn(name.split('_')[0], ('ephemeral', 'swap'))

    def test_what_a_killed_process_left_is_swept_away(self):
        existed, path = self.killed()
        self.assertTrue(existed)
        scratch.sweep()
        self.assertFalse(os.path.exists(path))

    def test_what_this_process_uses_stays(self):
        with scratch.directory(str(self.instances.base / 'file')) as path:
            scratch.sweep()
            self.assertTrue(os.path.exists(path))

    def test_what_cannot_be_removed_stays(self):
        _existed, path = self.killed()
        log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        with mock.patch.object(shutil, 'rmtree', side_effect=PermissionError):
            scratch.sweep()
        self.assertIn(path, log.output)

    def test_an_archive_that_its_peer_removes_meanwhile_is_no_matter(self):
        (self.instances.base / scratch.archive()).touch()
        with mock.patch.object(
                os.path, 'getmtime', side_effect=FileNotFoundError):
            scratch.sweep()

    def test_other_hosts_directories_on_shared_storage_are_not(self):
        _existed, path = self.killed()
        self.config.config(host='compute2.example')
        scratch.sweep()
        self.assertTrue(os.path.exists(path))

    def test_an_archive_that_nobody_wants_any_more_is(self):
        old, new = (self.instances.base / scratch.archive() for _ in '12')
        for path, age in ((old, 2), (new, 0)):
            path.touch()
            then = time.time() - age * 24 * 3600
            os.utime(path, (then, then))
        scratch.sweep()
        self.assertEqual([new.name], os.listdir(self.instances.base))
