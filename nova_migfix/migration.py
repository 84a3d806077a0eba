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

"""The migration for which the current thread prepares this destination.

Nova passes the source's host name to the functions that fetch files. Only the
methods several calls further up the stack, which get the migrate_data or the
disk info, know the source's address on the migration network. A context
variable passes it down within one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import contextvars
import dataclasses
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
