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
"""Check the certificates that migrations to and from this host use.

GnuTLS refuses a certificate that has ended, or that lacks the address to which
a peer connects: ``[libvirt] live_migration_inbound_addr``.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import pathlib
import socket
import ssl

from cryptography import x509
import nova.conf
from oslo_upgradecheck import upgradecheck

from nova_migfix.status import qemu
from nova_migfix.status import results
from nova_migfix.status.results import failure
from nova_migfix.status.results import success
from nova_migfix.status.results import warning
from nova_migfix.tls import probe
from nova_migfix.tls import qmp
from nova_migfix.tls import validity

CONF = nova.conf.CONF

# Seconds to wait for a connection and handshake.
_TIMEOUT = 5
# Days left from which on a certificate is a warning.
_SOON = 30

#: libvirt's names; see https://libvirt.org/kbase/tlscerts.html
_LIBVIRT = pathlib.Path('/etc/pki/libvirt')
_LIBVIRT_CA = pathlib.Path('/etc/pki/CA/cacert.pem')
#: QEMU's names: certificate and key
_CA = 'ca-cert.pem'
_SERVER = 'server-cert.pem', 'server-key.pem'
_CLIENT = 'client-cert.pem', 'client-key.pem'


def _judge(name: str, certificate: x509.Certificate,
           host: str | None = None) -> Iterator[upgradecheck.Result]:
    """Yield the problems of a certificate.

    :param host: name or address that it must have; None: any
    """
    left = int(validity.days_left(certificate))
    if validity.days_left(certificate) < 0:
        yield failure(f'{name}: the certificate ended {-left} days ago. '
                      'Renew it.')
    elif left < _SOON:
        yield warning(f'{name}: the certificate ends in {left} days. Renew '
                      'it.')
    if not validity.has_begun(certificate):
        yield failure(f'{name}: the certificate is not yet valid. Compare the '
                      'clocks of the hosts.')
    try:
        if host and not validity.covers(certificate, host):
            has = ', '.join(
                f'{kind}:{name}' for kind, names in zip(
                    ('DNS', 'IP'), validity.names(certificate), strict=True)
                for name in names) or 'no name'
            yield failure(
                f'{name}: the certificate is not valid for {host}, but for '
                f'{has}. Peers refuse it. Make one that has {host} in its '
                'subject alternative name.')
    except ValueError as error:
        yield failure(f'{name}: the certificate is invalid: {error}.')


def _judge_file(path: pathlib.Path, host: str | None = None,
                shown: pathlib.Path | None = None,
                ) -> Iterator[upgradecheck.Result]:
    """Yield the problems of the certificates in a file.

    :param host: as for :func:`_judge`, of the first one
    :param shown: path for the user; None: *path*
    :raises PermissionError: this process may not read the file
    """
    try:
        found = validity.load(path)
    except PermissionError:
        raise
    except OSError as error:
        yield failure(f'{shown or path} cannot be read: {error.strerror}.')
        return
    except ValueError as error:
        yield failure(f'{shown or path} is invalid: {error}.')
        return
    for certificate in found:
        yield from _judge(str(shown or path), certificate, host)
        host = None


def _exists(path: pathlib.Path) -> bool:
    """Return whether a file exists.

    :raises PermissionError: this process may not examine it
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


# -- libvirt -----------------------------------------------------------------

def of_libvirt(where: tuple[str, int]) -> upgradecheck.Result:
    """Check the certificates of libvirt's TLS.

    :param where: address and port at which libvirt serves TLS
    """
    try:
        problems = list(_judge_server(where))
        for path in (_LIBVIRT / 'clientcert.pem', _LIBVIRT_CA):
            problems += _judge_file(path) if _exists(path) else [warning(
                f'Not checked: {path} does not exist here. The libvirt of '
                'this host needs it.')]
    except PermissionError as error:
        return _not_checked(error)
    return results.merged(
        problems, f'The certificates of server, client and CA have at least '
        f'{_SOON} days left; that of the server is valid for {where[0]}.')


def _judge_server(where: tuple[str, int]) -> Iterator[upgradecheck.Result]:
    path = _LIBVIRT / 'servercert.pem'
    if os.access(path, os.R_OK):
        yield from _judge_file(path, where[0])
    else:
        yield from judge_served(where)


def judge_served(where: tuple[str, int]) -> Iterator[upgradecheck.Result]:
    """Yield the problems of the certificate at a host and a port."""
    try:
        certificate = _served(where)
    except (OSError, ValueError) as error:
        yield warning(f'Not checked: the certificate that libvirt has at '
                      f'{where[0]}, port {where[1]}: {error}.')
        return
    yield from _judge(f'{where[0]}, port {where[1]}', certificate, where[0])


def _served(where: tuple[str, int]) -> x509.Certificate:
    """Return the certificate of a TLS server, unverified.

    :raises OSError: there is no session
    :raises ValueError: the certificate is invalid
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(OSError):
        context.load_cert_chain(_LIBVIRT / 'clientcert.pem',
                                _LIBVIRT / 'private' / 'clientkey.pem')
    with socket.create_connection(where, _TIMEOUT) as connection, \
            context.wrap_socket(connection) as session:
        return x509.load_der_x509_certificate(
            session.getpeercert(binary_form=True) or b'')


# -- QEMU --------------------------------------------------------------------

def of_qemu() -> upgradecheck.Result:
    """Check the certificates that QEMU gets as a destination or a source."""
    if not CONF.libvirt.live_migration_with_native_tls:
        return success('Not used: [libvirt] live_migration_with_native_tls.')
    directory = qemu.credentials()
    host = CONF.libvirt.live_migration_inbound_addr
    try:
        place = _visible(directory)
        if not _exists(place):
            return _missing(directory)
        problems = [
            *_judge_file(place / _CA, None, directory / _CA),
            *_judge_file(place / _SERVER[0], host, directory / _SERVER[0]),
            *_judge_client(place, directory),
            *_unreadable(place, directory, qemu.user(),
                         (_CA, *_SERVER, *_CLIENT))]
    except OSError as error:
        return _not_checked(error)
    return results.merged(
        problems, f'The certificates in {directory} have at least {_SOON} '
        'days left.')


def _not_checked(error: OSError) -> upgradecheck.Result:
    return warning(f'Not checked: {error}. Run this command as root.')


def _visible(directory: pathlib.Path) -> pathlib.Path:
    """Return where the directory is here, or where a running QEMU has it.

    With Kolla it exists in the container nova_libvirt only.
    """
    if not _exists(directory):
        for process in qemu.running():
            return process.root / directory.relative_to('/')
    return directory


def _missing(directory: pathlib.Path) -> upgradecheck.Result:
    try:
        probe.find_qemu()
    except qmp.QemuError:
        return warning(
            f'Not checked: {directory} is not here. Run this command where '
            'QEMU is installed; with Kolla in the container nova_libvirt.')
    return failure(f'{directory} does not exist: QEMU has no certificates, so '
                   'that migrations with TLS fail. Install them there.')


def _judge_client(place: pathlib.Path, directory: pathlib.Path,
                  ) -> Iterator[upgradecheck.Result]:
    if _exists(place / _CLIENT[0]):
        yield from _judge_file(place / _CLIENT[0], None,
                               directory / _CLIENT[0])
    else:
        yield warning(
            f'{directory / _CLIENT[0]} does not exist: destinations whose '
            'qemu.conf has migrate_tls_x509_verify refuse guests of this '
            'host.')


def _unreadable(place: pathlib.Path, directory: pathlib.Path,
                user: qemu.User | None, names: tuple[str, ...],
                ) -> Iterator[upgradecheck.Result]:
    """Yield the files that QEMU cannot read.

    :raises OSError: this process may not examine a file
    """
    if user is None:
        yield warning('Not checked: whether QEMU can read its certificates, '
                      'as the user of QEMU is not known.')
        return
    for name in names:
        if _exists(place / name) and not user.may_read(place / name):
            yield failure(
                f'QEMU (user ID {user.uid}) cannot read {directory / name}. '
                'Change owner or mode, of its directories, too.')


# -- running guests ----------------------------------------------------------

def of_guests() -> upgradecheck.Result:
    """Check the certificates in the mount namespaces of running guests.

    A guest's QEMU opens them when its migration starts, as a client. If a
    container was made again since, it has other files than its guests.
    """
    if not CONF.libvirt.live_migration_with_native_tls:
        return success('Not used: [libvirt] live_migration_with_native_tls.')
    guests: dict[tuple[upgradecheck.Code, str], list[str]] = {}
    try:
        running = qemu.running()
        for guest in running:
            for problem in _of_guest(guest):
                names = guests.setdefault(
                    (problem.code, str(problem.details)), [])
                names.append(guest.name)
    except OSError as error:
        return _not_checked(error)
    return results.merged((upgradecheck.Result(
        code, f'{_listed(names)}: {details} Hard-reboot the guest if its '
        'files cannot be restored.')
        for (code, details), names in guests.items()),
        f'{len(running)} running guests have certificates with at least '
        f'{_SOON} days left.')


def _of_guest(guest: qemu.Process) -> Iterator[upgradecheck.Result]:
    directory = qemu.credentials()
    place = guest.root / directory.relative_to('/')
    yield from _judge_file(place / _CA, None, directory / _CA)
    if _exists(place / _CLIENT[0]):
        yield from _judge_file(place / _CLIENT[0], None,
                               directory / _CLIENT[0])
    yield from _unreadable(place, directory, guest.user, (_CA, *_CLIENT))


def _listed(names: list[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(names[:3]) + more
