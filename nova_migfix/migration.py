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

"""The migrations that this host carries out.

On the destination: Nova passes the source's host name to the functions that
fetch files. Only the methods several calls further up the stack, which get the
migrate_data or the disk info, know the source's address on the migration
network. A context variable passes it down within one thread.

On the source: one thread calls libvirt and another one monitors the migration.
An :class:`Operation` passes the outcome of the call from the first thread to
the second.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import contextvars
import dataclasses
from typing import Any
from typing import overload


@dataclasses.dataclass(frozen=True)
class Incoming:
    """An instance that migrates to this host."""

    #: the source's address on the migration network, a host name or an IP
    #: literal; None if the source has not sent it
    source_address: str | None
    #: whether the guest is running
    is_live: bool


_incoming: contextvars.ContextVar[Incoming | None] = contextvars.ContextVar(
    'nova_migfix_incoming', default=None)


@contextlib.contextmanager
def incoming(source_address: str | None, is_live: bool) -> Iterator[None]:
    """Set the current migration of this thread within the context.

    :param source_address: see Incoming
    :param is_live: see Incoming
    """
    token = _incoming.set(Incoming(source_address, is_live))
    try:
        yield
    finally:
        _incoming.reset(token)


def is_live() -> bool:
    """Return whether this thread prepares for a live migration."""
    current = _incoming.get()
    return bool(current and current.is_live)


@overload
def source(host: str) -> str: ...


@overload
def source(host: None) -> None: ...


def source(host: str | None) -> str | None:
    """Return the host to fetch files from.

    :param host: the host that Nova would use, None if Nova fetches nothing
        from another host
    :returns: the source's migration address if it is known, else *host*
    """
    current = _incoming.get()
    if host is None or not current or current.source_address is None:
        return host
    return current.source_address


@dataclasses.dataclass
class Operation:
    """libvirt's migration of a guest, for the monitor of the migration."""

    #: whether libvirt was called while the guest was active
    has_started: bool = False
    #: whether the call has returned, or Nova has failed before it
    has_ended: bool = False
    #: the error of the call, or of Nova before it; None after a success
    error: BaseException | None = None

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the end of the operation, which runs within the context."""
        try:
            yield
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.has_ended = True


@dataclasses.dataclass
class Outgoing:
    """A guest that migrates live from this host, as its monitor sees it."""

    context: Any
    instance: Any
    #: host name of the destination's nova-compute
    dest: str
    migrate_data: Any
    #: nova.virt.libvirt.guest.Guest or a proxy
    guest: Any
    #: Nova calls it after the guest has arrived
    post_method: Any
    #: Nova calls it if the guest stays on this host
    recover_method: Any
    #: None if the caller of the monitor has not called libvirt
    operation: Operation | None
    #: Nova's monitor, with the above; it takes and returns nothing
    monitor: Callable[[], None]
