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


from unittest import mock

import ddt
import fixtures
from nova import exception
from nova import objects
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import guest as libvirt_guest
from nova.virt.libvirt import host as libvirt_host
import oslo_messaging
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.fixes import post_copy
from nova_migfix.tests import clock

# State and reason of a domain (virDomainState).
RUNNING = [1, 1]
SENDING = [3, 12]
FAILED = [3, 13]
DESTROYED = [5, 2]
MIGRATED = [5, 4]

RESUME = 1 << 19
NOT_THERE = exception.InstanceInvalidState(
    attr='power state', instance_uuid=uuids.guest, state='running',
    method='get_diagnostics')
SILENT = exception.HypervisorUnavailable()


def error(code, text='no route to host'):
    return fakelibvirt.make_libvirtError(
        fakelibvirt.libvirtError, text, error_code=code)


UNREACHABLE = error(38)
REFUSED = error(55, "domain 'g' is not processing incoming migration")


class PostCopyTestCase(testtools.TestCase):
    """libvirt's call has failed.

    :ivar states: of the domain, one for each look; the last one stays
    :ivar sent: bytes that QEMU has sent, likewise
    """

    def setUp(self):
        super().setUp()
        objects.register_all()
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.guest.libvirt', fakelibvirt))
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.clock = self.useFixture(fixtures.MonkeyPatch(
            'nova_migfix.fixes.post_copy.time', clock.Clock())).new_value
        self.states, self.sent = [FAILED], [7]
        self.guest = mock.create_autospec(libvirt_guest.Guest, instance=True)
        self.guest._domain = mock.Mock(spec=['state'])
        self.guest._domain.state.side_effect = lambda: self.next(self.states)
        self.guest.get_job_info.side_effect = lambda: libvirt_guest.JobInfo(
            memory_processed=self.next(self.sent))
        self.host = mock.create_autospec(libvirt_host.Host, instance=True)
        self.host.get_guest.return_value = self.guest
        self.host.has_min_version.return_value = True
        self.driver = mock.Mock(
            spec=['_host', 'virtapi'], _host=self.host,
            virtapi=mock.Mock(spec=['_compute']))
        self.ask = (self.driver.virtapi._compute.compute_rpcapi
                    .get_instance_diagnostics) = mock.Mock()
        self.instance = objects.Instance(uuid=uuids.guest, host='src')
        self.data = objects.LibvirtLiveMigrateData(
            migration=objects.Migration(
                status='running (post-copy)', dest_compute='dest'))
        self.uri = 'qemu+tcp://dest/system'
        self.connect = self.useFixture(fixtures.MockPatchObject(
            post_copy.socket, 'create_connection', autospec=True)).mock
        self.migrate = mock.Mock()

    @staticmethod
    def next(values):
        return values.pop(0) if len(values) > 1 else values[0]

    def fail(self):
        return post_copy.PostCopy().migrate_failed(
            self.driver, 'context', self.instance, self.data, self.uri,
            self.migrate)


@ddt.ddt
class TestResume(PostCopyTestCase):

    def test_interrupted_migration_is_resumed(self):
        self.assertTrue(self.fail())
        self.migrate.assert_called_once_with(self.guest, RESUME)
        self.assertIn('is completed on dest', self.log.output)
        self.assertIn(post_copy.PostCopy.bug, self.log.output)

    def test_resume_is_tried_until_the_network_is_back(self):
        self.migrate.side_effect = [UNREACHABLE] * 100 + [None]
        self.assertTrue(self.fail())
        self.assertEqual(101, self.migrate.call_count)
        self.assertEqual(
            9, self.log.output.count('and not resumed yet:'))
        self.assertIn('no route to host', self.log.output)
        self.ask.assert_not_called()

    @ddt.data(
        ('qemu+tcp://h/system', ('h', 16509)),
        ('qemu+tls://h/system', ('h', 16514)),
        ('qemu+ssh://nova@h/system', ('h', 22)),
        ('qemu+tcp://[2001:db8::1]:99/system', ('2001:db8::1', 99)))
    @ddt.unpack
    def test_libvirt_is_not_called_while_the_host_is_silent(
            self, uri, address):
        self.uri = uri
        self.connect.side_effect = [TimeoutError(), OSError(), mock.Mock()]
        self.assertTrue(self.fail())
        self.connect.assert_called_with(address, 5)
        self.assertEqual(3, self.connect.call_count)
        self.migrate.assert_called_once_with(self.guest, RESUME)

    def test_refusal_of_the_host_is_a_response(self):
        self.connect.side_effect = ConnectionRefusedError()
        self.assertTrue(self.fail())

    def test_host_with_an_unknown_scheme_is_not_asked(self):
        self.uri = 'qemu+other://h/system'
        self.assertTrue(self.fail())
        self.connect.assert_not_called()

    def test_migration_that_sends_memory_is_left_alone(self):
        self.sent = list(range(50))
        self.states = [FAILED] * 40 + [MIGRATED]
        self.assertTrue(self.fail())
        self.migrate.assert_not_called()

    def test_migration_that_has_not_failed_is_left_alone(self):
        # after a restart of libvirtd
        self.states = [SENDING] * 40 + [MIGRATED]
        self.assertTrue(self.fail())
        self.migrate.assert_not_called()

    def test_migration_is_resumed_again_after_a_second_failure(self):
        self.states = [FAILED, FAILED, SENDING, FAILED]
        self.sent = [1, 1, 2]
        self.migrate.side_effect = [UNREACHABLE, None]
        self.assertTrue(self.fail())
        self.assertEqual(2, self.migrate.call_count)

    @ddt.data(SILENT, UNREACHABLE)
    def test_libvirt_of_the_source_may_be_silent_meanwhile(self, problem):
        self.host.get_guest.side_effect = [problem] * 3 + [self.guest] * 2
        self.assertTrue(self.fail())


@ddt.ddt
class TestGiveUp(PostCopyTestCase):

    def assert_given_up(self):
        self.assertFalse(self.fail())
        self.assertNotIn('is completed on', self.log.output)

    @ddt.data(RUNNING, DESTROYED)
    def test_other_failures_go_to_nova(self, state):
        self.states = [state]
        self.assert_given_up()
        self.assertEqual(0, self.clock.now)
        self.migrate.assert_not_called()

    def test_arrival_in_pre_copy_is_not_of_this_fix(self):
        self.data.migration.status = 'running'
        self.states = [MIGRATED]
        self.assert_given_up()

    def test_undefined_guest_goes_to_nova(self):
        self.host.get_guest.side_effect = exception.InstanceNotFound(
            instance_id=uuids.guest)
        self.assert_given_up()

    def test_silent_libvirt_is_not_awaited_in_pre_copy(self):
        self.data.migration.status = 'running'
        self.host.get_guest.side_effect = SILENT
        self.assert_given_up()
        self.assertEqual(0, self.clock.now)

    def test_operator_ends_the_wait_by_destroying_the_domain(self):
        self.states = [FAILED] * 9 + [DESTROYED]
        self.migrate.side_effect = UNREACHABLE
        self.assert_given_up()

    def test_libvirt_before_8_5_cannot_resume(self):
        self.host.has_min_version.return_value = False
        self.assert_given_up()
        self.host.has_min_version.assert_called_once_with(lv_ver=(8, 5, 0))
        self.migrate.assert_not_called()
        self.assertIn('libvirt before 8.5 cannot resume it', self.log.output)

    def test_guest_that_is_lost_on_the_destination_cannot_be_resumed(self):
        self.migrate.side_effect = REFUSED
        self.ask.side_effect = NOT_THERE
        self.assert_given_up()
        self.assertEqual(2, self.ask.call_count)
        (_context, asked), _kw = self.ask.call_args
        self.assertEqual('dest', asked.host)
        self.assertIn('does not run on dest', self.log.output)
        self.assertIn('not processing incoming', self.log.output)

    @ddt.data(None, oslo_messaging.MessagingTimeout())
    def test_resume_goes_on_unless_the_guest_is_surely_lost(self, answer):
        self.migrate.side_effect = [REFUSED] * 100 + [None]
        self.ask.side_effect = [NOT_THERE, answer] * 100
        self.assertTrue(self.fail())


@ddt.ddt
class TestAfterRestart(PostCopyTestCase):
    """Another process made libvirt's call."""

    def setUp(self):
        super().setUp()
        self.driver = mock.Mock(
            spec=['_host', 'virtapi', '_fixes', '_live_migration_flags',
                  '_block_migration_flags', '_live_migration_uri',
                  '_migrate_uri'],
            _host=self.host, _fixes=(post_copy.PostCopy(),),
            _live_migration_flags=2, _block_migration_flags=66)
        self.driver._live_migration_uri.side_effect = 'qemu://{}'.format
        self.driver._migrate_uri.side_effect = 'tcp://{}'.format

    def go_on(self):
        post_copy.go_on(self.driver, 'context', self.instance, self.data)

    @ddt.data((False, 2), (True, 66))
    @ddt.unpack
    def test_call_has_the_flags_of_nova(self, block_migration, flags):
        self.data.block_migration = block_migration
        self.go_on()
        self.guest.migrate.assert_called_once_with(
            'qemu://dest', flags=flags | RESUME, migrate_uri=None,
            bandwidth=0)

    def test_call_has_the_migration_address_of_the_destination(self):
        self.data.target_connect_addr = '192.0.2.2'
        self.go_on()
        self.guest.migrate.assert_called_once_with(
            'qemu://192.0.2.2', flags=2 | RESUME,
            migrate_uri='tcp://192.0.2.2', bandwidth=0)

    def test_nothing_is_resumed_without_the_fix(self):
        self.driver._fixes = ()
        self.go_on()
        self.host.get_guest.assert_not_called()
