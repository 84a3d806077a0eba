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

"""No call blocks a nova-compute under eventlet for more than 100 ms.

All greenthreads share one thread: while a call waits for a disk, no other
greenthread runs, and with many instances the service appears to be down.
"""

import subprocess
import sys

import ddt
from eventlet import patcher
import fixtures
import testtools
from testtools import content

from nova_migfix import nova_release
from nova_migfix.tests import blocking

# The longest gap, in seconds, or as a share of a call that takes long, as it
# does on a busy machine.
LIMIT, SHARE = 0.1, 1 / 3


@testtools.skipUnless(
    nova_release.major() < 34 and patcher.is_monkey_patched('os'),
    'nova-compute of this release has threads')
@ddt.ddt
class TestOtherGreenthreads(testtools.TestCase):

    def blocks(self, call):
        """Return whether a call blocks all greenthreads for too long."""
        directory = self.useFixture(fixtures.TempDir()).path
        done = subprocess.run(
            [sys.executable, '-m', blocking.__name__, call, directory],
            capture_output=True, text=True, timeout=120)
        self.assertEqual(0, done.returncode, done.stderr)
        gap, seconds = map(float, done.stdout.split())
        self.addDetail('measured', content.text_content(done.stdout))
        return gap > max(LIMIT, SHARE * seconds)

    @ddt.data(*sorted(blocking.CALLS.keys() - {'blocks'}))
    def test_greenthreads_continue_during(self, call):
        self.assertFalse(self.blocks(call))

    def test_blocking_call_is_detected(self):
        self.assertTrue(self.blocks('blocks'))
