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

import contextlib
import threading
import unittest
from unittest import mock

import fixtures
from nova.tests import fixtures as nova_fixtures
from nova.virt import event as virtevent
from nova.virt.libvirt import host as libvirt_host
import testtools

from nova_migfix.fixes import libvirt_events

# Seconds: longer than a call without a deadlock takes.
SOON = 2
# Seconds until a thread that must go on has gone on.
PATIENCE = 30


@unittest.skipIf(libvirt_events.LibvirtEvents.not_needed(),
                 'this Nova queues events')
class TestEventsOfLibvirt(testtools.TestCase):
    """Nova's own Host, whose connection libvirt closes."""

    def setUp(self):
        super().setUp()
        self.useFixture(nova_fixtures.LibvirtFixture())
        self.log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.events = []
        self.handled = threading.Event()
        self.host = libvirt_host.Host(
            'qemu:///system', conn_event_handler=mock.Mock())
        self.host._event_handler = libvirt_host._ThreadingLibvirtEventHandler(
            self.host._connection_closed, self.handle)
        # the thread of libvirt's event loop
        self.useFixture(fixtures.MockPatchObject(
            self.host._event_handler, '_native_thread'))
        self.old, self.new = mock.Mock(), mock.Mock()
        self.host._wrapped_conn = self.old
        self.useFixture(fixtures.MockPatchObject(
            self.host, '_test_connection', self.close))
        self.useFixture(fixtures.MockPatchObject(
            self.host, '_get_new_connection', return_value=self.new))

    def handle(self, event):
        self.events.append((event, threading.current_thread()))
        self.handled.set()

    def close(self, connection):
        """libvirt reports a closed connection within a call."""
        self.host._close_callback(connection, 1, self.host)
        return False

    def enable(self):
        libvirt_events.LibvirtEvents().extend_driver(
            mock.Mock(_host=self.host))
        self.host._event_handler.start()

    def connect(self):
        """Return whether a thread gets a connection."""
        def get():
            # of the lock that a test releases
            with contextlib.suppress(RuntimeError):
                self.host._get_connection()
        thread = threading.Thread(target=get, daemon=True)
        thread.start()
        thread.join(SOON)
        return not thread.is_alive()

    def emit(self, event):
        self.host._event_handler._queue_event(event)
        self.assertTrue(self.handled.wait(PATIENCE))

    def test_unmodified_nova_waits_for_its_own_lock(self):
        self.assertFalse(self.connect())
        self.host._wrapped_conn_lock.release()

    def test_closed_connection_is_replaced(self):
        self.enable()
        self.assertTrue(self.connect())
        self.assertIs(self.new, self.host._wrapped_conn)
        # All earlier events have been handled.
        self.emit(virtevent.LifecycleEvent('uuid', 0))
        enabled = []
        while not self.host._conn_event_handler_queue.empty():
            self.host._conn_event_handler_queue.get()()
            enabled.append(self.host._conn_event_handler.call_args.args[0])
        self.assertEqual([False, True], enabled)

    def test_closed_connection_that_is_in_use_is_reported(self):
        self.enable()
        self.host._close_callback(self.old, 1, self.host)
        self.emit(virtevent.LifecycleEvent('uuid', 0))
        self.assertIsNone(self.host._wrapped_conn)

    def test_event_is_handled_in_another_thread(self):
        self.enable()
        event = virtevent.LifecycleEvent('uuid', 0)
        self.emit(event)
        (found, thread), = self.events
        self.assertIs(event, found)
        self.assertIsNot(threading.current_thread(), thread)

    def test_event_that_fails_is_logged(self):
        self.enable()
        self.host._event_handler._queue_event(None)
        self.emit(virtevent.LifecycleEvent('uuid', 0))
        self.assertIn('could not be handled', self.log.output)

    def test_events_with_eventlet_are_left_alone(self):
        self.host._event_handler = mock.sentinel.handler
        libvirt_events.LibvirtEvents().extend_driver(
            mock.Mock(_host=self.host))
        self.assertIs(mock.sentinel.handler, self.host._event_handler)
