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

import functools
import unittest
from unittest import mock

import ddt
from lxml import etree
from nova import objects
from nova.virt.libvirt import migration
import testtools

from nova_migfix.abi import domain
from nova_migfix.fixes import iothread_pin
from nova_migfix import nova_release

PINS = ('<domain><cputune><vcpupin vcpu="0" cpuset="1"/>'
        '<emulatorpin cpuset="1"/>{}</cputune><numatune>'
        '<memory nodeset="0"/><memnode cellid="0" nodeset="0"/></numatune>'
        '</domain>')
OLD = PINS.format('')
NEW = PINS.format('<iothreadpin iothread="1" cpuset="1"/>')


def recompute(xml):
    """Return the domain that Nova computes for CPU 3 of the destination."""
    objects.register_all()
    data = objects.LibvirtLiveMigrateData(
        dst_numa_info=objects.LibvirtLiveMigrateNUMAInfo(
            cpu_pins={'0': {3}}, cell_pins={'0': {0}}, emulator_pins={3}))
    return etree.tostring(
        migration._update_numa_xml(etree.fromstring(xml), data),
        encoding='unicode')


@ddt.ddt
class TestIothreadPin(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.fix = iothread_pin.IothreadPin()

    def arrive(self, running):
        return domain.updated(
            recompute(self.for_nova(running)), functools.partial(
                self.fix.update_destination_xml, None, None, None), None)

    def for_nova(self, running):
        return domain.updated(running, functools.partial(
            self.fix.update_running_xml, None))

    @unittest.skipUnless(nova_release.major() == 33, 'only Nova 33 fails')
    def test_unmodified_nova_33_fails_without_an_io_thread(self):
        self.assertRaises(AttributeError, recompute, OLD)

    def test_guest_without_an_io_thread_gets_none(self):
        self.assertEqual(OLD.replace('cpuset="1"', 'cpuset="3"'),
                         self.arrive(OLD))

    def test_io_thread_of_a_guest_stays(self):
        self.assertEqual(1, self.arrive(NEW).count('<iothreadpin'))
        self.assertIn('iothread="1"', self.arrive(NEW))

    def test_guest_without_pins_is_left_alone(self):
        self.assertEqual('<domain/>', self.for_nova('<domain/>'))

    @ddt.data(29, 32, 33, 34)
    def test_only_nova_33_needs_the_fix(self, release):
        with mock.patch.object(nova_release, 'major', autospec=True,
                               return_value=release):
            self.assertEqual(release != 33, bool(self.fix.not_needed()))
