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

"""Services that do not answer during a live migration."""

import itertools
import threading

import fixtures
from nova.compute import rpcapi
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import migration as libvirt_migrate
import oslo_messaging

from nova_migfix import nova_release
from nova_migfix.tests.functional import base


class OutageTestCase(base.MigrationTestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MonkeyPatch(
            'nova_migfix.fixes.outage._INTERVAL', 0))
        self.has_failed = threading.Event()
        self.boot()

    def _migrate_stub(self, domain, destination, params, flags):
        domain = self.source_domain()
        domain._job_type = fakelibvirt.VIR_DOMAIN_JOB_UNBOUNDED
        self.assertTrue(self.has_failed.wait(30))
        super()._migrate_stub(domain, destination, params, flags)

    def fail_to_save(self):
        """Let Nova's monitor fail as it saves its first statistics."""
        real = libvirt_migrate.save_stats

        def save_stats(*args):
            if self.has_failed.is_set():
                real(*args)
                return
            self.has_failed.set()
            raise oslo_messaging.MessagingTimeout
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.migration.save_stats', save_stats))

    def lose(self, reaches_destination):
        """Lose the first last call to the destination, or its answer."""
        self.has_failed.set()
        real = rpcapi.ComputeAPI.post_live_migration_at_destination
        attempts = itertools.count(1)

        def call(api, *args, **kwargs):
            is_first = next(attempts) == 1
            if reaches_destination or not is_first:
                real(api, *args, **kwargs)
            if is_first:
                raise oslo_messaging.MessagingTimeout
        self.useFixture(fixtures.MonkeyPatch(
            'nova.compute.rpcapi.ComputeAPI.'
            'post_live_migration_at_destination', call))

    def assert_arrives(self):
        self.live_migrate('completed')
        self.assertEqual('dest', self.host())
        self.assertEqual({}, self._get_allocations_by_server_uuid(
            self.migrations()[-1]['uuid']))


class SurvivedOutageTestCase(OutageTestCase):

    def test_monitor_survives_an_outage_of_the_conductor(self):
        self.fail_to_save()
        self.assert_arrives()

    def test_lost_last_call_is_repeated(self):
        self.lose(reaches_destination=False)
        self.assert_arrives()

    def test_lost_answer_to_the_last_call_is_no_failure(self):
        self.lose(reaches_destination=True)
        self.assert_arrives()


class WithoutFixTestCase(OutageTestCase):
    """The fault of Nova that the fix prevents."""

    enabled_fixes = ['arrival', 'vnic']

    def test_unmodified_nova_gives_up_after_an_outage(self):
        self.fail_to_save()
        self.live_migrate('error', 'ERROR')
        self.assertEqual('src', self.host())
        # the guest runs on a host that the database does not name
        self.assertEqual(1, len(
            self.dest.driver._host.get_connection()._vms))

    def test_unmodified_nova_reports_a_lost_last_call_as_an_error(self):
        if nova_release.major() == 29:
            self.skipTest('Nova 29 ignores it: the server stays MIGRATING')
        self.lose(reaches_destination=False)
        self.live_migrate('error', 'ERROR')
