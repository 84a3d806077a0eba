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

import re
import shlex

import ddt
from hypothesis import given
from hypothesis import strategies as st
import testtools

from nova_migfix.transport import address


@ddt.ddt
class TestAddress(testtools.TestCase):

    @ddt.data('10.0.2.11', 'fd00::2:11', '::1', 'compute1', 'c-1.example.org',
              'c-1.example.org.', 'node_7', '3com.example', 'a' * 63)
    def test_valid_host_is_accepted(self, value):
        self.assertEqual(value, address.check(value))

    @ddt.data('', '.', '-oProxyCommand=id', 'a -oProxyCommand=id', ' a', 'a ',
              'a\n', 'a b', '/etc/passwd', '../a', 'a/b', 'root@a', 'a:b',
              '[fd00::1]', 'fd00::1%eth0', 'fd00::1%-o', 'a..b', '.a', 'a-.b',
              '-a.b', 'a.-b', 'a;b', '$(id)', 'ä', 'a' * 64,
              'a.' * 126 + 'ab', '127.0.0.1 -oProxyCommand=id',
              '127.0.0.1\n', '10.0.2.11\thost', '127.1 x', '::1 -v',
              '1.2.3.4\x00', None, 7, b'a', ['a'])
    def test_invalid_host_is_refused(self, value):
        self.assertRaises(ValueError, address.check, value)

    @given(st.ip_addresses().map(str))
    def test_every_ip_address_is_accepted(self, value):
        self.assertEqual(value, address.check(value))

    @given(st.ip_addresses().map(str) | st.just('127.1'),
           st.sampled_from(' \t\n\r\v\f\x00\x1c\x85\u2028/@%,;'), st.text())
    def test_text_after_an_address_is_refused(self, value, separator, rest):
        self.assertRaises(ValueError, address.check, value + separator + rest)

    @given(st.text('0123456789abcdefx.:-_ %@[]\n', max_size=20))
    def test_accepted_host_is_one_shell_word_and_no_option(self, value):
        try:
            address.check(value)
        except ValueError:
            return
        self.assertEqual([value], shlex.split(value))
        self.assertTrue(re.fullmatch(r'[0-9a-z_.:][0-9a-z_.:-]*', value),
                        value)

    def test_long_value_is_cut_in_the_message(self):
        error = self.assertRaises(ValueError, address.check, '-' * 10000)
        self.assertLess(len(str(error)), 200)
