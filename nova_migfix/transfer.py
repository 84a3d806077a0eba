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

"""Where the destination fetches a guest's files from.

Nova hands the source's host name down to whatever fetches a file. The address
on the migration network is known where a migration arrives, several calls
further up, so it is remembered for the thread that prepares the destination;
threads of other migrations have their own.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import threading
from typing import Any

from nova.virt.libvirt.volume import remotefs
from oslo_utils import netutils

_thread = threading.local()


@contextlib.contextmanager
def fetching_from(address: str | None) -> Iterator[None]:
    """Within it, :func:`source` answers with *address*, unless it is None."""
    before = getattr(_thread, 'address', None)
    _thread.address = address
    try:
        yield
    finally:
        _thread.address = before


def source(host: str | None) -> str | None:
    """Return the host to fetch from.

    :param host: the host that Nova would use, None when Nova fetches nothing
        from another host
    :returns: the source's migration address where it is known, else *host*
    """
    address: str | None = getattr(_thread, 'address', None)
    return host if host is None or address is None else address


class RemoteFilesystem(remotefs.RemoteFilesystem):
    """Nova's, for the one file that it names as ``host:path`` itself.

    Up to 30.0 ``pre_live_migration`` copies an ISO config drive that way.
    """

    def copy_file(self, src: str, dst: str, *args: Any,
                  **kwargs: Any) -> None:
        host, separator, path = src.partition(':/')
        if separator:
            peer = netutils.escape_ipv6(source(host) or host)
            src = f'{peer}{separator}{path}'
        super().copy_file(src, dst, *args, **kwargs)
