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

import time

import ddt
from hypothesis import given
from hypothesis import strategies as st
from oslo_concurrency import processutils
import testtools

from nova_migfix.transport import fetch


@ddt.ddt
class TestErrorReason(testtools.TestCase):
    """The reason that an operator reads for a file that was not fetched."""

    @ddt.data(
        ('Warning: Permanently added compute1 to the list of known hosts.\n'
         'tar: ephemeral_1: Cannot stat: No such file or directory\n'
         'tar: Exiting with failure status due to previous errors\n',
         'tar: ephemeral_1: Cannot stat: No such file or directory'),
        ('Authorized users only\n'
         'tar: ephemeral_1: Wrote only 512 of 10240 bytes\n'
         'tar: ephemeral_1: Cannot write: No space left on device\n'
         'tar: Error is not recoverable: exiting now\n',
         'tar: ephemeral_1: Wrote only 512 of 10240 bytes; '
         'tar: ephemeral_1: Cannot write: No space left on device'),
        ('Timeout, server 10.0.2.11 not responding.\r\n'
         'tar: Unexpected EOF in archive\n'
         'tar: Unexpected EOF in archive\n',
         'Timeout, server 10.0.2.11 not responding; '
         'tar: Unexpected EOF in archive'),
        ('ssh: connect to host 10.0.2.11 port 22: Connection refused\r\n'
         'rsync: connection unexpectedly closed (0 bytes received so far) '
         '[Receiver]\n'
         'rsync error: unexplained error (code 255) at io.c(232)\n',
         'ssh: connect to host 10.0.2.11 port 22: Connection refused'),
        ("stat: cannot statx '/inst/kernel': No such file or directory\n"
         'tar: This does not look like a tar archive\n'
         'tar: Exiting with failure status due to previous errors\n',
         "stat: cannot statx '/inst/kernel': No such file or directory"),
        ('\x1b[31mtar:\tdisk\x1b[0m\x07 is \x9b1mlost\x00\u202e\n',
         'tar: disk is 1mlost'),
    )
    @ddt.unpack
    def test_reason_is_the_error_that_ended_the_command(self, stderr, reason):
        self.assertEqual(reason, fetch.reason(
            processutils.ProcessExecutionError(stderr=stderr)))

    @ddt.data((OSError('no space'), 'no space'),
              (ValueError(), 'ValueError()'))
    @ddt.unpack
    def test_reason_of_another_error_is_its_text(self, error, reason):
        self.assertEqual(reason, fetch.reason(error))

    def test_long_output_is_cut_and_its_end_is_kept(self):
        said = self.reason('x' * (64 << 20) + ' No space left on device')
        self.assertEqual(240, len(said))
        self.assertTrue(said.startswith('...x'))
        self.assertTrue(said.endswith('No space left on device'))

    def test_time_for_long_output_is_linear(self):
        ratios = [self.seconds(64 << 20) / self.seconds(16 << 20)
                  for _pair in range(3)]
        self.assertLess(min(ratios), 1.5 * 4, ratios)

    def seconds(self, size):
        """Return the processor seconds for an output of a size."""
        stderr = 'x' * size + ' No space left on device'
        begin = time.thread_time()
        self.reason(stderr)
        return time.thread_time() - begin

    def reason(self, stderr):
        return fetch.reason(
            processutils.ProcessExecutionError(stderr=stderr))

    @given(st.text() | st.text('a\n\t\x1b[0m;.\u2028\x85\u202e', max_size=600))
    def test_any_output_gives_one_short_line(self, stderr):
        for said in (self.reason(stderr), fetch.reason(OSError(stderr))):
            self.assertTrue(said.isprintable(), said)
            self.assertLessEqual(len(said), 240)
            self.assertTrue(said)
