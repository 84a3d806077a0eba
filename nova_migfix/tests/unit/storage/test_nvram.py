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
import pathlib
import stat

import ddt
import fixtures
from nova import privsep
import testtools

from nova_migfix.storage import nvram

NAME = 'instance-00000001_VARS.fd'
VARIABLES, OTHERS = b'variables' * 100, b'others' * 100


@ddt.ddt
class NvramFilesTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        privsep.sys_admin_pctxt.set_client_mode(False)
        self.addCleanup(privsep.sys_admin_pctxt.set_client_mode, True)
        self.root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.directory = self.root / 'libvirt/qemu/nvram'
        self.directory.mkdir(parents=True)
        for name, path in (('_ROOT', self.root / 'libvirt'),
                           ('DIRECTORY', self.directory)):
            self.useFixture(fixtures.MockPatchObject(nvram, name, str(path)))
        self.file = self.directory / NAME
        self.copy = self.root / 'nvram.7'
        # a file that none of the functions may read or change
        self.secret = self.root / 'secret'
        self.secret.write_bytes(OTHERS)

    def save(self, name=NAME):
        nvram.save(name, str(self.copy), os.geteuid())

    def restore(self, name=NAME):
        nvram.restore(str(self.copy), name)

    # ways in which a process of QEMU's user, or a peer, can place a path

    def link(self, path):
        path.symlink_to(self.secret)

    def hard_link(self, path):
        path.hardlink_to(self.secret)

    def fifo(self, path):
        os.mkfifo(path)

    def huge(self, path):
        path.touch()
        os.truncate(path, nvram.MAX_SIZE + 1)

    def directory_in_place(self, path):
        path.mkdir()

    def test_copy_has_the_variables_and_belongs_to_one_user(self):
        self.file.write_bytes(VARIABLES)
        self.file.chmod(0o600)
        self.save()
        self.assertEqual(VARIABLES, self.copy.read_bytes())
        self.assertEqual(0o600, stat.S_IMODE(self.copy.stat().st_mode))
        self.assertEqual(os.geteuid(), self.copy.stat().st_uid)

    @ddt.data('link', 'hard_link', 'fifo', 'huge', 'directory_in_place')
    def test_only_a_regular_file_of_limited_size_is_saved(self, way):
        getattr(self, way)(self.file)
        self.assertRaises((OSError, ValueError), self.save)
        self.assertFalse(self.copy.exists())

    @ddt.data('link', 'hard_link', 'fifo')
    def test_copy_overwrites_no_file(self, way):
        self.file.write_bytes(VARIABLES)
        getattr(self, way)(self.copy)
        self.assertRaises(FileExistsError, self.save)
        self.assertEqual(OTHERS, self.secret.read_bytes())

    def test_restored_file_belongs_to_the_owner_of_the_directory(self):
        self.copy.write_bytes(VARIABLES)
        self.restore()
        self.assertEqual(VARIABLES, self.file.read_bytes())
        self.assertEqual(0o600, stat.S_IMODE(self.file.stat().st_mode))
        self.assertEqual(self.directory.stat().st_uid,
                         self.file.stat().st_uid)
        self.assertEqual([NAME], os.listdir(self.directory))

    @ddt.data('link', 'hard_link', 'fifo', 'huge')
    def test_restored_file_replaces_whatever_is_there(self, way):
        getattr(self, way)(self.file)
        self.copy.write_bytes(VARIABLES)
        self.restore()
        self.assertFalse(self.file.is_symlink())
        self.assertEqual(VARIABLES, self.file.read_bytes())
        self.assertEqual(OTHERS, self.secret.read_bytes())

    def test_failed_replacement_leaves_no_new_file(self):
        self.directory_in_place(self.file)
        self.copy.write_bytes(VARIABLES)
        self.assertRaises(OSError, self.restore)
        self.assertEqual([NAME], os.listdir(self.directory))

    @ddt.data('link', 'hard_link', 'fifo', 'huge', 'directory_in_place')
    def test_only_a_regular_copy_of_limited_size_is_restored(self, way):
        self.file.write_bytes(VARIABLES)
        getattr(self, way)(self.copy)
        self.assertRaises((OSError, ValueError), self.restore)
        self.assertEqual(VARIABLES, self.file.read_bytes())

    @ddt.data('../secret', '../../../secret', '/etc/passwd', '..', '.', '')
    def test_name_leads_to_no_other_directory(self, name):
        self.copy.write_bytes(VARIABLES)
        self.assertRaises(ValueError, self.restore, name)
        self.assertRaises(ValueError, nvram.remove, name)
        self.copy.unlink()
        self.assertRaises(ValueError, self.save, name)
        self.assertEqual(OTHERS, self.secret.read_bytes())

    @ddt.data('libvirt/qemu', 'libvirt/qemu/nvram')
    def test_directory_that_is_a_link_is_not_entered(self, place):
        elsewhere = self.root / 'elsewhere'
        (self.root / place).rename(elsewhere)
        (self.root / place).symlink_to(elsewhere)
        for path in self.root.rglob(NAME):
            path.write_bytes(OTHERS)
        self.copy.write_bytes(VARIABLES)
        for function in (self.save, self.restore,
                         lambda: nvram.remove(NAME)):
            self.assertRaises(NotADirectoryError, function)
        self.assertEqual([], list(self.root.rglob(NAME)))

    def test_file_of_a_guest_that_has_left_is_removed(self):
        self.file.write_bytes(VARIABLES)
        self.assertTrue(nvram.remove(NAME))
        self.assertFalse(self.file.exists())

    def test_link_is_removed_without_its_target(self):
        self.link(self.file)
        self.assertTrue(nvram.remove(NAME))
        self.assertEqual(OTHERS, self.secret.read_bytes())

    def test_file_that_other_hosts_may_see_is_kept(self):
        self.file.write_bytes(VARIABLES)
        nfs = 0x6969
        with fixtures.MockPatchObject(
                nvram, '_file_system', autospec=True, return_value=nfs):
            self.assertFalse(nvram.remove(NAME))
        self.assertEqual(VARIABLES, self.file.read_bytes())

    def test_missing_file_or_directory_needs_no_removal(self):
        self.assertFalse(nvram.remove(NAME))
        self.directory.rmdir()
        self.assertFalse(nvram.remove(NAME))
