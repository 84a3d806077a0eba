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

"""Reproduce the fault between two QEMUs of this machine, in seconds.

Both load a GnuTLS that rekeys sooner, see eager_gnutls. Each has its own /etc:
only the destination has a policy.
"""

import pathlib
import signal

import fixtures

from nova_migfix.tests import eager_gnutls
from nova_migfix.tests import etc
from nova_migfix.tests.functional.tls import base
from nova_migfix.tests.functional.tls import busy_guest
from nova_migfix.tests import qemu_pair
from nova_migfix.tls import policy
from nova_migfix.tls import qmp

# Of the guest, bytes; all are sent, with three rekeys of that library.
_MEMORY = 400 * qemu_pair.MIB
# Bytes until the first rekey: 2 records for a page of 4 KiB.
_PER_REKEY = eager_gnutls.records() // 2 * 4096
# Bytes per second: GnuTLS allows at most 8 rekeys in one second.
_BANDWIDTH = 200 * qemu_pair.MIB


class Pair(qemu_pair.Pair):

    def __init__(self, etcs, libraries, kernel):
        """Prepare two QEMUs that load certain libraries.

        :param etcs: etc.Etc of each end
        """
        super().__init__(_MEMORY, ('-kernel', kernel))
        self._etcs = etcs
        self._libraries = libraries

    def command(self, end):
        return [*self._etcs[end].entered(), 'env',
                f'LD_LIBRARY_PATH={self._libraries}', *super().command(end)]


class RekeyTestCase(base.QemuTestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        try:
            eager_gnutls.make(self.qemu, self.directory)
        except eager_gnutls.CannotBeMade as error:
            self.skipTest(str(error))
        self.etc_of_destination = self.useFixture(etc.Etc())

    def give_policy_to_destination(self):
        self.etc_of_destination.file.write_text(policy.merge(
            policy.FAMILIES['debian'], policy.TLS12, ''))

    def migrate(self, *capabilities):
        """Start the migration; return the Pair."""
        kernel = self.directory / 'kernel'
        kernel.write_bytes(busy_guest.kernel(_MEMORY))
        qemus = self.useFixture(Pair(
            {'source': self.etc, 'destination': self.etc_of_destination},
            self.directory, kernel))
        try:
            qemus.migrate(*capabilities, bandwidth=_BANDWIDTH)
        except qmp.QemuError as error:
            # for example without userfaultfd
            self.skipTest(str(error))
        return qemus


class PreCopyTestCase(RekeyTestCase):
    """With a return path, as with libvirt; the guest is paused."""

    def test_precopy_source_crashes_on_rekeying(self):
        qemus = self.migrate('return-path')
        self.assertRaises(qmp.QemuError, qemus.wait, *qemu_pair.ENDED)
        self.assertEqual(-signal.SIGSEGV, qemus.processes['source'].wait())

    def test_precopy_guest_arrives_with_a_policy_on_the_destination(self):
        self.give_policy_to_destination()
        found = self.migrate('return-path').wait(*qemu_pair.ENDED)
        self.assertEqual('completed', found['status'])

    def test_precopy_guest_arrives_without_a_return_path(self):
        found = self.migrate().wait(*qemu_pair.ENDED)
        self.assertEqual('completed', found['status'])


class PostCopyTestCase(RekeyTestCase):
    """The guest runs, and continues on the destination at once."""

    def post_copy(self):
        qemus = self.migrate('postcopy-ram')
        qemus.source.ask('cont')
        qemus.wait('active')
        qemus.source.ask('migrate-start-postcopy')
        return qemus.wait(*qemu_pair.ENDED)

    def test_postcopy_fails_at_the_first_rekeying(self):
        found = self.post_copy()
        self.assertEqual('postcopy-paused', found['status'])
        self.assertEqual(1, found['ram']['transferred'] // _PER_REKEY)

    def test_postcopy_guest_arrives_with_a_policy_on_the_destination(self):
        self.give_policy_to_destination()
        self.assertEqual('completed', self.post_copy()['status'])
