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
"""The guests on this hypervisor, read from libvirt."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from concurrent import futures
import contextlib
import dataclasses
import functools
import threading
from typing import Any
from typing import TypeVar

from lxml import etree
from nova.compute import power_state
from nova.virt.libvirt import driver
from nova.virt.libvirt import guest

from nova_migfix.abi import domain as domain_xml
from nova_migfix import status
from nova_migfix.status import queries
from nova_migfix.transport import libvirt_uri

T = TypeVar('T')

# Seconds to wait for a connection to this host's libvirt.
_TIMEOUT = 30


@dataclasses.dataclass(frozen=True)
class Domain:
    """A running guest."""

    uuid: str
    name: str           # libvirt's, 'instance-0000002a'
    xml: str            # of the running guest
    is_paused: bool = False     # by a user

    @functools.cached_property
    def document(self) -> etree._Element:
        return domain_xml.parse(self.xml)

    @functools.cached_property
    def nova(self) -> etree._Element | None:
        """Nova's element in the domain's metadata, None if it has none."""
        found = self.document.xpath(
            './metadata/*[local-name() = "instance"]')
        return found[0] if found else None

    def metadata(self, path: str) -> list[etree._Element]:
        """Return elements of Nova's metadata.

        :param path: of local names, as the namespace contains a version
        """
        found = [] if self.nova is None else [self.nova]
        for name in path.split('/'):
            found = [child for element in found for child in element
                     if etree.QName(child).localname == name]
        return found


def domains(uuids: Collection[str] = ()) -> list[Domain]:
    """Return the running guests, sorted by libvirt's names.

    :param uuids: return these guests only; empty: all
    :raises Error: libvirt does not answer, or one of them does not run here
    """
    libvirt = _libvirt()
    with _connected(libvirt) as connection:
        running = connection.listAllDomains(
            libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    known = {domain.UUIDString(): domain for domain in running}
    if missing := sorted(set(uuids).difference(known)):
        raise status.Error(f'Not running on this host: {", ".join(missing)}.')
    found = (_domain(libvirt, known[uuid]) for uuid in uuids or known)
    return sorted(filter(None, found), key=lambda domain: domain.name)


def state(uuid: str) -> str:
    """Return Nova's name of a domain's power state, as 'running'.

    'absent' if libvirt on this host has no such domain.

    :raises Error: libvirt does not answer
    """
    libvirt = _libvirt()
    with _connected(libvirt) as connection:
        try:
            number, _reason = connection.lookupByUUIDString(uuid).state()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return 'absent'
            raise
    return str(power_state.STATE_MAP[guest.LIBVIRT_POWER_STATE[number]])


def open_uri(uri: str, seconds: float) -> Any:
    """Connect to libvirt at a URI, as the libvirt of a source does.

    :param seconds: to wait for libvirt, which has no limit itself
    :returns: the connection
    :raises Unavailable: there is no connection
    :raises Error: this environment has no libvirt-python
    """
    libvirt = _libvirt()
    if libvirt_uri.transport(uri) == 'ssh':
        # ask for no password
        uri += ('&' if '?' in uri else '?') + 'no_tty=1'
    return limited(seconds, lambda: libvirt.openAuth(uri, _auth(libvirt), 0))


class Unavailable(Exception):
    """libvirt does not answer, or refuses a connection."""


def limited(seconds: float, call: Callable[[], T]) -> T:
    """Call libvirt, and wait only so many seconds.

    :raises Unavailable: libvirt fails, or does not answer in time
    :raises Error: this environment has no libvirt-python
    """
    libvirt = _libvirt()
    try:
        return _within(seconds, call)
    except libvirt.libvirtError as error:
        raise Unavailable(str(error)) from error


def _within(seconds: float, call: Callable[[], T]) -> T:
    answer: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)
    # an executor would wait for the thread at the end of this process
    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except futures.TimeoutError:
        raise Unavailable(f'no answer within {seconds} seconds') from None


@contextlib.contextmanager
def asked(note: Callable[[str], object]) -> Iterator[queries.Queries]:
    """Connect to nova-compute's libvirt for questions.

    :param note: is called with each thing that is not known
    :raises Error: libvirt does not answer
    """
    libvirt = _libvirt()
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(_connected(libvirt, flags=0))
        except status.Error:
            connection = stack.enter_context(_connected(libvirt))
        yield queries.Queries(libvirt, connection, note)


def ask(connection: Any,
        note: Callable[[str], object]) -> queries.Queries:
    """Return the questions to libvirt through a connection of open_uri()."""
    return queries.Queries(_libvirt(), connection, note)


def deprecated_machines() -> frozenset[tuple[str, str]]:
    """Return architecture and name of machine types to be removed from QEMU.

    libvirt's capabilities show what QEMU reports: attribute ``deprecated`` of
    ``machine``.

    :raises Error: libvirt does not answer
    """
    with _connected(_libvirt()) as connection:
        capabilities = domain_xml.parse(connection.getCapabilities())
    return frozenset(
        (str(machine.xpath('string(ancestor::arch/@name)')), str(machine.text))
        for machine in capabilities.iterfind(
            './guest/arch//machine[@deprecated="yes"]'))


@contextlib.contextmanager
def guests() -> Iterator[dict[str, guest.Guest]]:
    """Connect to libvirt for writing, as nova-compute does.

    :returns: Nova's Guest objects of all domains on this host, also of those
        that are shut off, by their UUIDs
    :raises Error: libvirt does not answer
    """
    with _connected(_libvirt(), flags=0) as connection:
        found = {domain.UUIDString(): guest.Guest(domain)
                 for domain in connection.listAllDomains(0)}
        yield found


@contextlib.contextmanager
def _connected(libvirt: Any, flags: int | None = None) -> Iterator[Any]:
    """Connect to the libvirt of nova-compute, by default read-only.

    All users may use the read-only socket, unless libvirt is configured
    otherwise. Over TCP libvirt may request a name and a password; libvirt's
    client reads them from auth.conf. This command cannot supply them.

    :param flags: of virConnectOpenAuth; None: read-only
    :raises Error: libvirt does not answer
    """
    uri = driver.LibvirtDriver._uri()
    try:
        yield _within(_TIMEOUT, lambda: libvirt.openAuth(
            uri, _auth(libvirt),
            libvirt.VIR_CONNECT_RO if flags is None else flags))
    except Unavailable as error:
        raise status.Error(f'libvirt at {uri} does not answer: {error}. '
                           'See the log of libvirtd or virtqemud on this '
                           'hypervisor, and restart it.') from error
    except libvirt.libvirtError as error:
        otherwise = (
            'It requires a name and a password from auth.conf, in '
            '/etc/libvirt or in .config/libvirt in the home of '
            'nova-compute\'s user: run this command as that user.'
            if error.get_error_code() == libvirt.VIR_ERR_AUTH_FAILED else
            'Run this command on the hypervisor, where nova-compute runs, as '
            'a user with access to libvirt\'s read-only socket.')
        raise status.Error(f'libvirt at {uri} does not answer: {error}. '
                           f'{otherwise}') from error


def _auth(libvirt: Any) -> list[Any]:
    """Return an authentication that supplies no name and no password."""
    kinds = [libvirt.VIR_CRED_AUTHNAME, libvirt.VIR_CRED_ECHOPROMPT,
             libvirt.VIR_CRED_REALM, libvirt.VIR_CRED_PASSPHRASE,
             libvirt.VIR_CRED_NOECHOPROMPT, libvirt.VIR_CRED_EXTERNAL]
    return [kinds, lambda asked, _none: -1 if asked else 0, None]


def _libvirt() -> Any:
    try:
        import libvirt
    except ImportError as error:
        raise status.Error(
            f'{error}: run this command in the Python environment of '
            'nova-compute, which has libvirt-python.') from error
    # libvirt would print the text of its exceptions, too
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt


def _domain(libvirt: Any, domain: Any) -> Domain | None:
    try:
        return Domain(
            domain.UUIDString(), domain.name(), domain.XMLDesc(0),
            domain.state() == [libvirt.VIR_DOMAIN_PAUSED,
                               libvirt.VIR_DOMAIN_PAUSED_USER])
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None         # the guest ended in the meantime
        raise
