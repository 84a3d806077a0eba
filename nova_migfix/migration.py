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

"""The migration that a thread of the destination prepares for.

Nova gives the functions that fetch files the source's host name. The source's
address on the migration network is known several calls further up, where the
migration arrives. Other threads do not see it.
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
    #: literal; None if the source does not say
    source_address: str | None
    #: whether the guest runs meanwhile
    is_live: bool


_incoming: contextvars.ContextVar[Incoming | None] = contextvars.ContextVar(
    'nova_migfix_incoming', default=None)


@contextlib.contextmanager
def incoming(source_address: str | None, is_live: bool) -> Iterator[None]:
    """Prepare for an instance within this context."""
    token = _incoming.set(Incoming(source_address, is_live))
    try:
        yield
    finally:
        _incoming.reset(token)


def is_live() -> bool:
    """Say whether this thread prepares for a live migration."""
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
    :returns: the source's migration address where it is known, else *host*
    """
    current = _incoming.get()
    if host is None or not current or current.source_address is None:
        return host
    return current.source_address
