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

import sys
from unittest import mock

import fixtures
from nova.virt import driver as virt_driver
import os_vif
from os_vif import exception
import testtools

from nova_migfix import osvif


class _Without(fixtures.Fixture):
    """A dictionary that lacks one key for a while."""

    def __init__(self, dictionary, key):
        self.dictionary = dictionary
        self.key = key

    def _setUp(self):
        if self.key in self.dictionary:
            self.addCleanup(self.dictionary.__setitem__, self.key,
                            self.dictionary.pop(self.key))


class TestMigfixPlugin(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(_Without(sys.modules, osvif.DRIVER))
        finders = list(sys.meta_path)
        self.addCleanup(sys.meta_path.__setitem__, slice(None), finders)
        sys.meta_path[:] = [f for f in finders
                            if not isinstance(f, osvif.DriverFinder)]

    def test_os_vif_makes_the_driver_importable(self):
        self.assertRaises(ImportError, __import__, osvif.DRIVER)
        os_vif.initialize(reset=True)
        __import__(osvif.DRIVER)
        driver = sys.modules[osvif.DRIVER]
        self.assertTrue(
            issubclass(driver.LibvirtDriver, virt_driver.ComputeDriver))
        self.assertEqual(osvif.DRIVER, driver.LibvirtDriver.__module__)

    def test_loading_twice_leaves_one_finder(self):
        osvif.MigfixPlugin.load('migfix')
        osvif.MigfixPlugin.load('migfix')
        self.assertEqual(1, sum(isinstance(f, osvif.DriverFinder)
                                for f in sys.meta_path))

    def test_finder_ignores_other_module_names(self):
        finder = osvif.DriverFinder()
        for name in ('nova.virt.libvirt', 'nova.virt.migfixed', 'migfix'):
            self.assertIsNone(finder.find_spec(name))

    def test_finder_returns_none_without_the_driver_module(self):
        with mock.patch('importlib.util.find_spec', return_value=None):
            self.assertIsNone(osvif.DriverFinder().find_spec(osvif.DRIVER))

    def test_plugin_plugs_no_vif(self):
        plugin = osvif.MigfixPlugin.load('migfix')
        self.assertEqual([], plugin.describe().vif_info)
        self.assertRaises(
            exception.NoMatchingPlugin, plugin.plug, None, None)
        self.assertRaises(
            exception.NoMatchingPlugin, plugin.unplug, None, None)
