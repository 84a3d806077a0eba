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


"""The network fails in the post-copy phase of a live migration."""

import fixtures
from nova import exception
from nova.tests.fixtures import libvirt as fakelibvirt

from nova_migfix.tests.functional import test_arrival

RESUME = 1 << 19
OPERATION_INVALID, UNREACHABLE = 55, 38


class InterruptedTestCase(test_arrival.EndingMigrationTestCase):
    """libvirt's call fails, and leaves a job that can be resumed.

    :ivar errors: codes of the errors of the next calls
    :ivar flags_of_calls: one for each of libvirt's calls
    """

    #: the fake has the oldest libvirt that Nova supports
    min_libvirt = (1, 0, 0)

    def setUp(self):
        super().setUp()
        for name, value in (('_INTERVAL', 0), ('_LONG_INTERVAL', 0),
                            ('_MIN_LIBVIRT', self.min_libvirt)):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova_migfix.fixes.post_copy.{name}', value))
        self.useFixture(fixtures.MockPatch(
            'nova_migfix.fixes.post_copy._is_reachable', autospec=True,
            return_value=True))
        self.errors = []
        self.flags_of_calls = []

    def _migrate_stub(self, domain, destination, params, flags):
        self.flags_of_calls.append(flags)
        domain = self.source_domain()
        if not flags & RESUME:
            self.fails_in_post_copy(domain, params['destination_xml'])
            domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED
            self.raise_error(UNREACHABLE)
        if self.errors:
            self.raise_error(self.errors.pop(0))
        domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_COMPLETED
        domain.destroy()
        domain.undefine()

    @staticmethod
    def raise_error(code):
        raise fakelibvirt.make_libvirtError(
            fakelibvirt.libvirtError, 'it fails', error_code=code)

    def assert_kept(self):
        """Assert that nothing is deleted, and that the server is in ERROR."""
        self.live_migrate('error', 'ERROR')
        self.assertEqual('src', self.host())
        self.assertEqual(self.before, self.path().read_bytes())
        self.assertTrue(self.path(host='dest').exists())
        self.assertIn('post-copy failed', self.api.get_server(
            self.server['id'])['fault']['message'])


class PostCopyTestCase(InterruptedTestCase):

    def test_interrupted_migration_is_resumed(self):
        self.errors = [UNREACHABLE, UNREACHABLE]
        self.live_migrate('completed')
        self.assertEqual('dest', self.host())
        first, *others = self.flags_of_calls
        self.assertEqual([first | RESUME] * 3, others)

    def test_guest_that_is_lost_on_the_destination_is_kept(self):
        self.useFixture(fixtures.MockPatch(
            'nova.compute.rpcapi.ComputeAPI.get_instance_diagnostics',
            autospec=True, side_effect=exception.InstanceInvalidState(
                attr='power state', instance_uuid='-', state='shutdown',
                method='get_diagnostics')))
        self.errors = [OPERATION_INVALID] * 2
        self.assert_kept()
        self.assertEqual(3, len(self.flags_of_calls))


class OldLibvirtTestCase(InterruptedTestCase):

    min_libvirt = (999, 0, 0)

    def test_guest_is_kept_where_libvirt_cannot_resume(self):
        self.assert_kept()
        self.assertEqual(1, len(self.flags_of_calls))


class WithoutFixTestCase(InterruptedTestCase):

    enabled_fixes = ['arrival']

    def test_migration_is_not_resumed(self):
        self.assert_kept()
        self.assertEqual(1, len(self.flags_of_calls))
