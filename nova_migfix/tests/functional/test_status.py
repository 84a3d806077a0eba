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
"""``preflight`` on guests that the real libvirt describes.

libvirt's test driver reads the same file as the unit tests and needs no
daemon. The tests are skipped without libvirt-python, which Nova's own tests
do not need.
"""

import importlib.util
import unittest

from nova_migfix.tests.unit.status import base
from nova_migfix.tests.unit.status import test_preflight


@unittest.skipUnless(importlib.util.find_spec('libvirt'),
                     'libvirt-python is not installed')
class TestLibvirt(test_preflight.PreflightTestCase):

    real = True

    def test_preflight_reads_all_guests_from_libvirt(self):
        self.assertEqual(self.expected(), self.findings())

    def test_preflight_reads_one_guest_from_libvirt(self):
        self.assertEqual(self.expected(2), self.findings(
            '--instance', base.uuid(2)))

    def test_preflight_reports_an_unreachable_libvirt(self):
        self.host.command.write(
            '[libvirt]\nconnection_uri = qemu+unix:///system?socket=/none\n')
        ran = self.host.run('preflight')
        self.assertEqual(255, ran.code)
        self.assertIn('libvirt at qemu+unix:', ran.err)
        self.assertIn('/none', ran.err)
        self.assertNotIn('Traceback', ran.err)
