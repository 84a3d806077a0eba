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

"""The rekeying fault between two QEMUs of this machine, in seconds.

Both load a GnuTLS that changes keys sooner, see eager_gnutls. Each has its own
/etc, so that only the destination has a policy.
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

# Memory of the guest; sending it takes three changes of keys here.
_MEMORY = 400 * qemu_pair.MIB
# Bytes of memory until the first: 2 records for each page of 4 KiB.
_PER_REKEY = eager_gnutls.records() // 2 * 4096
# Bytes a second: GnuTLS accepts at most 8 changes of keys a second.
_BANDWIDTH = 200 * qemu_pair.MIB


class Pair(qemu_pair.Pair):

    def __init__(self, etcs, libraries, kernel):
        """Prepare two QEMUs that load these libraries.

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
        """Begin to migrate; return the Pair."""
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
    """Pre-copy, with a return path as libvirt sets it; the guest is paused."""

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
    """Post-copy: the guest runs, and switches to the destination at once."""

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
