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

import pathlib
import types
from unittest import mock

import ddt
import fixtures
import hypothesis
from hypothesis import strategies
import testtools

from nova_migfix.tls import qemu_conf

STRING = 'NORMAL:-VERS-TLS1.3'


@ddt.ddt
class TestValue(testtools.TestCase):

    @ddt.data(
        ('a = "x y"  # comment', 'x y'), ("\ta='x'\n", 'x'), ('a = 7', '7'),
        ('#a = 1\nba = 2\na_b = 3\n', None), ('a = 1\na = 2', '1'),
        ('a = ""', ''), ('a = [ "x" ]', None), ('', None))
    @ddt.unpack
    def test_setting_is_read(self, text, expected):
        self.assertEqual(expected, qemu_conf.value('a', text))

    @hypothesis.given(strategies.text(), strategies.from_regex(
        r'[^"\n]*', fullmatch=True), strategies.text())
    def test_written_setting_is_read(self, before, value, after):
        hypothesis.assume('name_of_it' not in before)
        self.assertEqual(value, qemu_conf.value(
            'name_of_it', f'{before}\nname_of_it = "{value}"\n{after}'))


@ddt.ddt
class TestPriority(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.path = pathlib.Path(
            self.useFixture(fixtures.TempDir()).join('qemu.conf'))
        self.useFixture(fixtures.MockPatchObject(
            qemu_conf, 'PATH', self.path))

    def priority(self, libvirt):
        """Return the priority with a release of libvirt; None: not known."""
        module = libvirt and types.SimpleNamespace(getVersion=lambda: libvirt)
        with mock.patch.dict('sys.modules', libvirt=module):
            return qemu_conf.priority()

    def write(self):
        self.path.write_text(f'migrate_tls_priority = "{STRING}"\n')

    def test_libvirt_11_6_passes_the_string(self):
        self.write()
        self.assertEqual(qemu_conf.Priority(STRING), self.priority(11006000))

    def test_older_libvirt_ignores_the_string(self):
        self.write()
        self.assertEqual(qemu_conf.Priority(), self.priority(11005000))

    def test_string_without_a_known_libvirt_is_doubted(self):
        self.write()
        found = self.priority(None)
        self.assertIsNone(found.string)
        self.assertIn(STRING, found.doubt)
        self.assertIn('--priority', found.doubt)

    @ddt.data(None, 11005000, 11006000)
    def test_unset_string_is_known(self, libvirt):
        self.assertEqual(qemu_conf.Priority(), self.priority(libvirt))
        self.path.write_text('user = "root"\n')
        self.assertEqual(qemu_conf.Priority(), self.priority(libvirt))

    @ddt.data((None, False), (11005000, False), (11006000, True))
    @ddt.unpack
    def test_unreadable_file_is_doubted_if_libvirt_uses_it(self, libvirt,
                                                           is_doubted):
        self.path.mkdir()
        found = self.priority(libvirt)
        self.assertIsNone(found.string)
        self.assertEqual(is_doubted, 'as root' in found.doubt)
