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

import dataclasses
import os
import pathlib

import ddt
import fixtures
from nova import objects
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_serialization import jsonutils
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix import journal
from nova_migfix import peer
from nova_migfix.tests import fixtures as migfix_fixtures


@ddt.ddt
class TestJournal(testtools.TestCase):

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.useFixture(migfix_fixtures.PatchedMigrateData())
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.state = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.useFixture(config_fixture.Config(cfg.CONF)).config(
            state_path=str(self.state))
        data = peer.LibvirtLiveMigrateData(
            block_migration=True, source_connect_addr='10.0.2.11',
            migration=objects.Migration(id=7))
        if 'vtpm_secret_value' in data.fields:
            data.vtpm_secret_uuid = uuids.secret
            data.vtpm_secret_value = 'a secret'
        self.entry = journal.Entry(
            uuids.guest, 7, 'dest', False, data,
            objects.BlockDeviceMappingList(objects=[
                objects.BlockDeviceMapping(
                    instance_uuid=uuids.guest, volume_id=uuids.volume,
                    attachment_id=uuids.attachment,
                    connection_info='{"data": {}}')]))

    def files(self):
        return sorted((self.state / 'migfix').glob('*'))

    def read(self, host='src', instance=uuids.guest):
        return journal.read(host, instance, 'context')

    def test_entry_is_read_as_it_was_written(self):
        journal.write('src', self.entry)
        entry = self.read()
        self.assertEqual(
            (uuids.guest, 7, 'dest', False),
            (entry.instance, entry.migration, entry.dest, entry.is_prepared))
        self.assertEqual('10.0.2.11', entry.migrate_data.source_connect_addr)
        self.assertNotIn('migration', entry.migrate_data)
        bdm, = entry.source_bdms
        self.assertEqual(
            (uuids.attachment, '{"data": {}}', 'context'),
            (bdm.attachment_id, bdm.connection_info, bdm._context))

    def test_entry_replaces_the_former_one(self):
        journal.write('src', self.entry)
        journal.write('src', dataclasses.replace(
            self.entry, is_prepared=True))
        self.assertTrue(self.read().is_prepared)
        self.assertEqual(1, len(self.files()))

    def test_only_nova_compute_can_read_the_entry(self):
        journal.write('src', self.entry)
        path, = self.files()
        self.assertEqual(0o600, os.stat(path).st_mode & 0o777)
        self.assertEqual(0o700, os.stat(path.parent).st_mode & 0o777)

    def test_secret_of_a_vtpm_is_not_written(self):
        if 'vtpm_secret_value' not in peer.NOVA_FIELDS:
            self.skipTest('this Nova does not migrate a vTPM live')
        journal.write('src', self.entry)
        path, = self.files()
        self.assertNotIn('a secret', path.read_text())
        self.assertTrue(self.read().migrate_data.has_vtpm)
        self.assertEqual(
            'a secret', self.entry.migrate_data.vtpm_secret_value)

    def test_hosts_with_one_directory_have_their_own_entries(self):
        journal.write('src', self.entry)
        self.assertIsNone(self.read(host='dest'))
        self.assertEqual([], journal.instances('dest'))
        self.assertEqual([uuids.guest], journal.instances('src'))
        journal.remove('dest', uuids.guest)
        self.assertIsNotNone(self.read())

    def test_name_of_a_host_makes_no_path(self):
        journal.write('../src', self.entry)
        self.assertEqual([uuids.guest], journal.instances('../src'))
        self.assertEqual(['migfix'], [
            path.name for path in self.state.iterdir()])

    def test_removed_entry_is_absent(self):
        journal.write('src', self.entry)
        journal.remove('src', uuids.guest)
        journal.remove('src', uuids.guest)
        self.assertIsNone(self.read())
        self.assertEqual([], self.files())

    def test_absent_entry_is_no_problem(self):
        self.assertIsNone(self.read())
        self.assertEqual([], journal.instances('src'))
        self.assertEqual('', self.log.output)

    @ddt.data(
        lambda content: {}, lambda content: [],
        lambda content: {**content, 'version': 2},
        lambda content: {**content, 'host': 'dest'},
        lambda content: {**content, 'instance': uuids.other},
        lambda content: {**content, 'migration': '7'},
        lambda content: {**content, 'is_prepared': 1},
        lambda content: {**content, 'dest': None},
        lambda content: {**content, 'migrate_data': None},
        lambda content: {
            **content, 'migrate_data': content['source_bdms']},
        lambda content: {
            **content, 'source_bdms': content['migrate_data']},
        lambda content: jsonutils.loads(jsonutils.dumps(content).replace(
            uuids.guest, uuids.other).replace(
                uuids.other, uuids.guest, 1)))
    def test_damaged_entry_is_absent(self, damage):
        journal.write('src', self.entry)
        path, = self.files()
        path.write_text(jsonutils.dumps(
            damage(jsonutils.loads(path.read_text()))))
        self.assertIsNone(self.read())
        self.assertIn(f'{path} of the live migration', self.log.output)

    @ddt.data('', '{', '\0' * 100)
    def test_truncated_entry_is_absent(self, content):
        journal.write('src', self.entry)
        path, = self.files()
        path.write_text(content)
        self.assertIsNone(self.read())
