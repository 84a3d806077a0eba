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

"""Handle libvirt's events outside libvirt's calls.

With native threads (optional in Nova 33, the default of Nova 34) Nova handles
each event in the thread in which libvirt reports it. That has two effects,
which together stop nova-compute for good if the conductor or the message
broker does not answer for half a minute:

- A lifecycle event of a guest makes an RPC call in the thread of libvirt's
  event loop. As long as that call waits, nova-compute does not answer
  libvirt's keepalive messages, and libvirtd closes the connection after 30
  seconds.
- The next call of libvirt reports the closed connection. Nova makes that call
  with a lock held, which the handler of the report takes again: no thread gets
  a connection to libvirt any more. A migration that has arrived never ends.

With eventlet Nova queues the events for another thread. The fix does the same
with native threads. It drops the report of a closed connection that Nova has
replaced meanwhile, which would disable the compute service.
"""

from __future__ import annotations

import functools
import queue
import threading
from typing import Any

from nova.virt.libvirt import host as libvirt_host
from oslo_log import log as logging

from nova_migfix.fixes import base

LOG = logging.getLogger(__name__)

# Nova has had it since release 33.
_HANDLER: Any = getattr(libvirt_host, '_ThreadingLibvirtEventHandler', None)


class LibvirtEvents(base.Fix):
    name = 'libvirt_events'
    bug = 'a lost connection to libvirt stops nova-compute with threads'
    fixed_upstream_marker = (
        'nova.virt.libvirt.host._ThreadingLibvirtEventHandler'
        '._dispatch_events')

    @classmethod
    def not_needed(cls) -> str | None:
        return super().not_needed() or (
            None if _HANDLER else 'it queues events')

    def extend_driver(self, driver: Any) -> None:
        if isinstance(driver._host._event_handler, _HANDLER):
            _Dispatcher(driver._host).wrap()


class _Dispatcher:
    """A queue of events, and the thread that handles them."""

    def __init__(self, host: Any) -> None:
        self._host = host
        self._handler = host._event_handler
        self._handle = self._handler._queue_event
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def wrap(self) -> None:
        """Let Nova's handler queue events as soon as it starts."""
        start = self._handler.start

        @functools.wraps(start)
        def start_both() -> None:
            threading.Thread(target=self._dispatch, daemon=True).start()
            start()

        self._handler._queue_event = self._events.put
        self._handler.start = start_both

    def _dispatch(self) -> None:
        while True:
            event = self._events.get()
            try:
                if not self._is_replaced(event):
                    self._handle(event)
            except Exception:
                LOG.exception('An event of libvirt could not be handled')

    def _is_replaced(self, event: Any) -> bool:
        """Return whether an event reports a connection of the past."""
        present = self._host._wrapped_conn
        return (isinstance(event, dict) and present is not None
                and present != event.get('conn'))
