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

"""nova-compute loads and logs the fixes when it starts."""

import pathlib
from unittest import mock

import ddt
import fixtures
from nova import exception
from stevedore import extension
from stevedore import named
import testtools

from nova_migfix import fixes
from nova_migfix.fixes import arrival
from nova_migfix.fixes import base
from nova_migfix.fixes import config_drive
from nova_migfix.fixes import ephemeral
from nova_migfix.fixes import iothread_pin
from nova_migfix.fixes import kernel_ramdisk
from nova_migfix.fixes import libvirt_events
from nova_migfix.fixes import nvram
from nova_migfix.fixes import outage
from nova_migfix.fixes import paused
from nova_migfix.fixes import post_copy
from nova_migfix.fixes import rbd_monitors
from nova_migfix.fixes import restart
from nova_migfix.fixes import rollback_state
from nova_migfix.fixes import serial_console
from nova_migfix.fixes import source_address
from nova_migfix.fixes import tls_rekey
from nova_migfix.fixes import vnic
from nova_migfix.fixes import volume
from nova_migfix import nova_release

OURS = [arrival.Arrival, config_drive.ConfigDrive, ephemeral.Ephemeral,
        iothread_pin.IothreadPin, kernel_ramdisk.KernelRamdisk,
        libvirt_events.LibvirtEvents, nvram.Nvram, outage.Outage,
        paused.Paused, post_copy.PostCopy, rbd_monitors.RbdMonitors,
        restart.Restart, rollback_state.RollbackState,
        serial_console.SerialConsole, source_address.SourceAddress,
        tls_rekey.TlsRekey, vnic.Vnic, volume.Volume]


PATCHES = pathlib.Path(__file__).parents[4] / 'patches'


@ddt.ddt
class TestLoadFixes(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix.fixes'))
        self.nova = self.useFixture(fixtures.MockPatchObject(
            nova_release, 'major', autospec=True, return_value=34)).mock

    def needed(self):
        return [fix for fix in OURS if not fix.not_needed()]

    def load(self, enabled):
        return [type(fix) for fix in fixes.load(enabled)]

    def test_every_registered_fix_is_active_by_default(self):
        self.assertEqual(self.needed(), self.load(None))
        for fix in self.needed():
            self.assertIn(f'Fix {fix.name}: active ({fix.bug})',
                          self.log.output)

    def test_fix_names_match_the_entry_points(self):
        names = named.NamedExtensionManager(
            fixes.NAMESPACE, []).list_entry_points()
        self.assertEqual(
            {fix.name: f'{fix.__module__}:{fix.__name__}' for fix in OURS},
            {point.name: point.value for point in names})

    @ddt.data(['vnic'], ['vnic', 'vnic'], ['vnic', 'rollback_state'], [])
    def test_only_enabled_fixes_are_loaded(self, enabled):
        self.assertEqual([fix for fix in OURS if fix.name in enabled],
                         self.load(enabled))
        for fix in OURS:
            off = f'Fix {fix.name}: switched off by [migfix] enabled_fixes'
            check = self.assertNotIn if fix.name in enabled else self.assertIn
            check(off, self.log.output)

    def test_unknown_fix_is_an_error_that_lists_the_known_fixes(self):
        error = self.assertRaises(
            exception.InvalidConfiguration, fixes.load, ['vnic', 'vnics'])
        self.assertIn('unknown fixes: vnics.', str(error))
        known = ', '.join(fix.name for fix in OURS)
        self.assertIn(f'The known fixes are: {known}.', str(error))

    def test_fix_is_off_where_this_nova_does_not_need_it(self):
        self.nova.return_value = 31
        self.assertNotIn(rollback_state.RollbackState, self.load(None))
        self.assertIn('Fix rollback_state: not needed in this Nova, it does '
                      'not raise the error again after the rollback',
                      self.log.output)

    @ddt.data(*OURS)
    def test_fix_is_off_where_a_patched_nova_has_it(self, fix):
        if not fix.fixed_upstream_marker:
            self.skipTest('tested by itself, or no fault of Nova')
        self.useFixture(fixtures.MockPatchObject(
            nova_release, 'has', autospec=True,
            side_effect=lambda path: path == fix.fixed_upstream_marker))
        self.assertNotIn(fix, self.needed())
        self.assertEqual(self.needed(), self.load(None))
        self.assertIn(f'Fix {fix.name}: not needed in this Nova, it has '
                      f'{fix.fixed_upstream_marker}', self.log.output)

    @ddt.data(*(fix for fix in OURS if fix.fixed_upstream_marker_29))
    def test_fix_is_off_where_a_patched_nova_29_has_it(self, fix):
        asked = self.useFixture(fixtures.MockPatchObject(
            nova_release, 'has', autospec=True,
            side_effect=lambda path: (
                path == fix.fixed_upstream_marker_29))).mock
        self.nova.return_value = 30
        self.assertIn(fix, self.load(None))
        self.nova.return_value = 29
        self.assertNotIn(fix, self.load(None))
        asked.assert_any_call(fix.fixed_upstream_marker_29)

    @ddt.data(None, ['vnic'])
    def test_fix_that_fails_to_load_is_an_error(self, enabled):
        def fail(self, ep, *args, **kwargs):
            raise ImportError(f'no libfoo for {ep.name}')
        self.useFixture(fixtures.MockPatchObject(
            extension.ExtensionManager, '_load_one_plugin', fail))
        self.useFixture(fixtures.MockPatchObject(
            named.NamedExtensionManager, '_load_one_plugin', fail))
        error = self.assertRaises(
            exception.InvalidConfiguration, fixes.load, enabled)
        self.assertRegex(str(error), r'The fix (\w+) cannot be loaded from '
                         r'nova_migfix\.fixes\.\w+:\w+: no libfoo for \1')

    def test_fix_that_cannot_be_constructed_is_an_error(self):
        with mock.patch.object(vnic.Vnic, '__init__', autospec=True,
                               side_effect=OSError('no kernel')):
            self.assertRaises(OSError, fixes.load, None)


@ddt.ddt
class TestMarkers(testtools.TestCase):
    """The patches for Nova add the markers by which a fix finds them."""

    def assert_added(self, marker, release):
        name = marker.rpartition('.')[2]
        added = '\n'.join(path.read_text() for path in sorted(
            (PATCHES / release).glob('*.patch')))
        # a method, a constant or a module
        self.assertRegex(
            added, rf'(?m)^\+(?: +def {name}\(|{name} =|.*/{name}\.py$)')

    @ddt.data(config_drive.ConfigDrive, ephemeral.Ephemeral,
              kernel_ramdisk.KernelRamdisk, libvirt_events.LibvirtEvents,
              rollback_state.RollbackState, vnic.Vnic)
    def test_patches_for_the_newest_nova_add_the_marker(self, fix):
        self.assert_added(fix.fixed_upstream_marker, 'master')

    @ddt.data(config_drive.ConfigDrive, kernel_ramdisk.KernelRamdisk)
    def test_patches_for_nova_29_add_the_marker(self, fix):
        self.assert_added(fix.fixed_upstream_marker_29, '2024.1')


class TestFixHooks(testtools.TestCase):

    def test_fix_without_hooks_has_no_effect(self):
        fix = base.Fix()
        self.assertIsNone(fix.not_needed())
        self.assertEqual({}, fix.dest_capabilities())
        self.assertIsNone(fix.check_can_live_migrate_source(None, None, None))
        self.assertFalse(fix.prepare_disks(None, None))
        self.assertIsNone(fix.set_source_fields(None, []))
        self.assertIsNone(fix.source_address(None, None))
        self.assertIsNone(fix.update_running_xml(None, None))
        self.assertIsNone(fix.update_destination_xml(
            None, None, None, None, None))
        self.assertFalse(fix.live_migration_failed(
            None, None, None, None, OSError(), None))
        self.assertIsNone(fix.live_migration_monitor(None, None))


@ddt.ddt
class TestNovaRelease(testtools.TestCase):

    @ddt.data('29.4.0', '30.0.1', '34.0.0', '34.1.0.dev12')
    def test_supported_releases_are_accepted(self, version):
        with mock.patch.object(nova_release.version, 'version_string',
                               return_value=version):
            nova_release.require_supported()

    @ddt.data('nova.virt.libvirt', 'nova.virt.libvirt.driver.LibvirtDriver',
              'nova.virt.libvirt.driver.LibvirtDriver.spawn')
    def test_existing_path_is_found_in_nova(self, path):
        self.assertTrue(nova_release.has(path))

    @ddt.data('nova.virt.libwirt', 'nova.virt.libvirt.driver.Driver',
              'nova.virt.libvirt.driver.LibvirtDriver.spam')
    def test_missing_path_is_not_found_in_nova(self, path):
        self.assertFalse(nova_release.has(path))

    @ddt.data('26.2.2', '28.3.0', '35.0.0')
    def test_unsupported_release_is_refused(self, version):
        with mock.patch.object(nova_release.version, 'version_string',
                               return_value=version):
            error = self.assertRaises(exception.InvalidConfiguration,
                                      nova_release.require_supported)
        self.assertIn(f'supports Nova 29 to 34, this is {version}.',
                      str(error))
