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

"""Plugin and patches agree on real disks: they describe and complete them.

test_patched_nova runs this in a patched Nova: either host of a migration, or
one host before and after an upgrade, may have the plugin or the patches.
"""

import json
import pathlib
import subprocess
from unittest import mock

import fixtures
from nova import conf
from nova import objects
from nova.virt.libvirt import driver
from nova.virt.libvirt import ephemeral
from oslo_serialization import jsonutils
import testtools

from nova_migfix.fixes import ephemeral as fix
from nova_migfix.storage import disks
from nova_migfix.storage import image_file

BASE = 'ephemeral_1_40d1d2c'
NAMES = ('disk.eph0', 'disk.eph1')


def run(*command):
    return subprocess.run(command, check=True, text=True,
                          stdout=subprocess.PIPE).stdout


class DisksTestCase(testtools.TestCase):
    """Two overlays; the guest has written to the first."""

    def setUp(self):
        super().setUp()
        conf.CONF([], project='nova')
        root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.base = root / '_base' / BASE
        self.directory = root / 'instance'
        for directory in (self.base.parent, self.directory):
            directory.mkdir()
        self.make_base()
        self.paths = [self.directory / name for name in NAMES]
        for path in self.paths:
            run('qemu-img', 'create', '-f', 'qcow2', '-F', 'raw',
                '-b', self.base, path)
        run('qemu-io', '-f', 'qcow2', '-c', 'write -P 7 1M 64k',
            self.paths[0])
        raw = self.directory / 'disk.eph2'
        raw.touch()
        (self.directory / 'disk.info').write_text(json.dumps({
            **{str(path): 'qcow2' for path in self.paths}, str(raw): 'raw'}))

    def make_base(self):
        self.base.unlink(missing_ok=True)
        run('qemu-img', 'create', '-f', 'raw', self.base, '1G')
        run('mkfs', '-t', 'ext4', '-q', '-F', self.base)

    def overlays(self):
        """Return the overlays, which plugin and patches find alike."""
        found = list(disks.ephemeral_overlays(str(self.directory)))
        self.assertEqual(list(map(tuple, found)), list(map(
            tuple, ephemeral.get_overlays(str(self.directory)))))
        return found

    def test_plugin_and_patches_find_the_same_overlays(self):
        self.assertEqual(
            [(name, str(path), str(self.base))
             for name, path in zip(NAMES, self.paths)],
            list(map(tuple, self.overlays())))

    def test_plugin_and_patches_agree_on_written_overlays(self):
        for is_written in (disks.is_written, ephemeral.is_written):
            self.assertEqual(
                [True, False], list(map(is_written, self.overlays())))

    def test_plugin_and_patches_find_the_same_swap_overlays(self):
        path = self.directory / 'disk.swap'
        base = self.base.with_name('swap_1')
        run('qemu-img', 'create', '-f', 'raw', base, '1M')
        run('qemu-img', 'create', '-f', 'qcow2', '-F', 'raw', '-b', base, path)
        (self.directory / 'disk.info').write_text(
            json.dumps({str(path): 'qcow2'}))
        expected = [('disk.swap', str(path), str(base))]
        for found in (disks.overlays(str(self.directory)),
                      ephemeral.get_overlays(str(self.directory), 'swap')):
            self.assertEqual(expected, list(map(tuple, found)))

    def test_plugin_and_patches_agree_on_missing_bases(self):
        def missing():
            found = [disks.lacks_backing_file(overlay)
                     for overlay in self.overlays()]
            self.assertEqual(found, [
                ephemeral.get_loss(overlay) == 'is missing' for overlay
                in ephemeral.get_overlays(str(self.directory))])
            return found
        self.assertEqual([False, False], missing())
        self.base.unlink()
        self.assertEqual([True, True], missing())

    def test_plugin_and_patches_agree_on_file_systems(self):
        blank = self.directory / 'blank'
        run('qemu-img', 'create', '-f', 'raw', blank, '1M')
        for path in (self.base, blank, self.directory / 'nothing'):
            self.assertEqual(image_file.filesystem(str(path)),
                             ephemeral.get_filesystem(str(path)))

    def test_plugin_and_patches_complete_disks_with_the_same_bytes(self):
        before = self.directory / 'before'
        run('qemu-img', 'convert', '-O', 'raw', self.paths[0], before)
        for name, make_complete in (('plugin', image_file.flatten),
                                    ('patches', ephemeral.make_complete)):
            made = str(self.directory / name)
            make_complete(str(self.paths[0]), 'qcow2', made)
            self.assertIn('Images are identical', run(
                'qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', before,
                made))
            self.assertNotIn('backing', run('qemu-img', 'info', made))

    def test_complete_disk_is_no_overlay(self):
        path = str(self.paths[0])
        image_file.flatten(path, 'qcow2', path)
        self.assertEqual([NAMES[1]], [disk.name for disk in self.overlays()])

    # -- a live migration between plugin and patches -------------------------

    def describe(self):
        """Return the disk info of unmodified Nova."""
        return [{'path': str(path), 'type': 'qcow2', 'backing_file': BASE,
                 'virt_disk_size': 1 << 30} for path in self.paths]

    def test_plugin_and_patches_share_the_destination_capability(self):
        self.assertEqual(
            fix.FETCHES_BASES, driver.DEST_PULLS_EPHEMERAL_BASES)

    def test_patches_understand_the_disk_info_of_the_plugin(self):
        described = self.describe()
        fix.Ephemeral().set_source_fields(
            objects.migrate_data.LibvirtLiveMigrateData(), described)
        destination = mock.Mock()
        driver.LibvirtDriver._pull_disks(
            destination, objects.Instance(), str(self.directory), described,
            'src')
        *_, files = destination._pull_files.call_args.args
        self.assertEqual([(str(self.base), list(NAMES))],
                         [(path, names) for path, names, _place in files])

    def test_plugin_understands_the_disk_info_of_the_patches(self):
        source = mock.Mock()
        source._get_instance_disk_info.return_value = self.describe()
        described = jsonutils.loads(
            driver.LibvirtDriver.get_instance_disk_info(
                source, objects.Instance()))
        wanted, = fix.Ephemeral().files_to_fetch(
            objects.Instance(), str(self.directory), described)
        self.assertEqual((str(self.base), NAMES),
                         (wanted.path, wanted.used_for))
