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

"""Find the TLS that a hypervisor's QEMU negotiates as a destination.

A policy may have a spelling mistake, be unreadable for QEMU's user, or not
apply to this build of QEMU, and QEMU does not report it. The probe therefore
starts the host's QEMU without a guest, as the user of the guests, lets it
listen for a migration, and connects to it as another QEMU would.

Only root can start it as the user of the guests. Otherwise the result is
unknown, unless all users can read the policy.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import pwd
import re
import shutil
import socket
import ssl
import stat
import subprocess
import tempfile
from typing import Any
from typing import NamedTuple

from nova_migfix.tls import certificates
from nova_migfix.tls import gnutls
from nova_migfix.tls import qmp

#: QEMU's names and paths in distributions, in the order of attempts
QEMUS = ('qemu-system-x86_64', '/usr/libexec/qemu-kvm', 'qemu-kvm',
         'qemu-system-aarch64', 'qemu-system-ppc64', 'qemu-system-s390x')
#: libvirt's default users for guests, by distribution
USERS = ('libvirt-qemu', 'qemu')

_QEMU_CONF = pathlib.Path('/etc/libvirt/qemu.conf')
_USER = re.compile(r'^\s*user\s*=\s*"\+?([^"]+)"', re.MULTILINE)

# Seconds to wait for a connection and handshake.
_TIMEOUT = 10


class Answer(NamedTuple):
    """The result of a probe.

    :param version: of the protocol, 'TLSv1.3'; '' without a session
    :param cipher: OpenSSL's name of the cipher suite
    :param error: why there is no session
    :param doubt: why a guest's QEMU may negotiate something else
    """

    version: str
    cipher: str
    error: str = ''
    doubt: str = ''

    @property
    def rekeys(self) -> bool:
        """Whether GnuTLS rekeys a long session.

        It does under TLS 1.3, unless the cipher is ChaCha20-Poly1305.
        """
        return self.version == 'TLSv1.3' and 'CHACHA20' not in self.cipher

    @property
    def verdict(self) -> str:
        if self.doubt:
            return 'unknown'
        if self.error:
            return 'no session'
        return 'rekeys' if self.rekeys else 'safe'


def find_qemu() -> str:
    """Return the path of this host's QEMU.

    :raises qmp.QemuError: the host has no QEMU
    """
    for name in QEMUS:
        path = shutil.which(name)
        if path:
            return path
    raise qmp.QemuError('no QEMU found; name it with --qemu')


def find_user() -> str:
    """Return the user of the guests.

    Return the current user if that is not known, or only root could start a
    process of that user.
    """
    found = user_of_guests() if os.geteuid() == 0 else ''
    return found or _current_user()


def _current_user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def user_of_guests() -> str:
    """Return the user in qemu.conf, else libvirt's default; '': not known."""
    try:
        configured = _configured_user()
    except OSError:
        return ''
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in (configured, *USERS) if name in known), '')


def _configured_user() -> str:
    """Return the user in libvirt's qemu.conf; '' if it has none.

    :raises OSError: this user cannot read qemu.conf
    """
    try:
        match = _USER.search(_QEMU_CONF.read_text())
        name = match[1] if match else ''
        return pwd.getpwuid(int(name)).pw_name if name.isdigit() else name
    except (FileNotFoundError, KeyError):
        return ''


def _doubt() -> str:
    """Return why the QEMU of a guest may have another policy than ours.

    :returns: '' if both read the same file, or none
    """
    path = gnutls.system_file()
    if (path is None or _is_same_for_all(path)
            or user_of_guests() == find_user()):
        return ''
    return (f'not every user can read {path}, and this process cannot start '
            'QEMU as the user of the guests; give the file mode 0644, or run '
            '"nova-migfix-tls probe" as root')


def _is_same_for_all(path: pathlib.Path) -> bool:
    """Return whether a file does not exist, or all users can read it."""
    try:
        file = path.resolve(strict=True)
        return bool(file.stat().st_mode & stat.S_IROTH) and all(
            parent.stat().st_mode & stat.S_IXOTH
            for parent in (*path.parents, *file.parents))
    except FileNotFoundError:
        return True
    except OSError:
        return False


def probe(qemu: str, user: str | None = None, credentials: str | None = None,
          priority: str | None = None) -> Answer:
    """Return the TLS that a QEMU negotiates.

    :param qemu: its path
    :param user: name of the user to run it as; another user than the current
        one needs root. None: the user of the guests, if possible
    :param credentials: directory with the certificates of the host, as
        libvirt's migrate_tls_x509_cert_dir; None: use temporary ones
    :param priority: the priority string that libvirt would pass to QEMU
    :raises qmp.QemuError: QEMU did not start, or did not listen
    """
    with listening(qemu, user or find_user(), credentials,
                   priority) as address:
        answer = handshake(address)
    return answer if user else answer._replace(doubt=_doubt())


@contextlib.contextmanager
def listening(qemu: str, user: str, credentials: str | None = None,
              priority: str | None = None) -> Iterator[tuple[str, int]]:
    """Run a QEMU that waits for a migration; return its address.

    Root makes all files. QEMU's user gets no directory with write access: a
    symbolic link there could direct root to any file of the host.

    Parameters and errors are those of :func:`probe`; *user* is a name.
    """
    with tempfile.TemporaryDirectory(prefix='migfix-probe-') as name:
        directory = pathlib.Path(name)
        if credentials is None:
            credentials = str(directory / 'certificates')
            certificates.write(pathlib.Path(credentials))
            _let_read(user, pathlib.Path(credentials))
        with _started(qemu, user, directory, credentials,
                      priority) as address:
            yield address


def _let_read(user: str, directory: pathlib.Path) -> None:
    """Give a user the files of a directory, but not the directory itself.

    The directory and its parent stay root's; the user may only look up names
    in them.
    """
    if os.geteuid() != 0:
        return
    owner = pwd.getpwnam(user)
    for path in directory.iterdir():
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    for parent in (directory, directory.parent):
        parent.chmod(0o711)


@contextlib.contextmanager
def _started(qemu: str, user: str, directory: pathlib.Path,
             credentials: str, priority: str | None,
             ) -> Iterator[tuple[str, int]]:
    # A comma separates properties; a double comma is a literal one.
    properties = ','.join(
        f'{key}={value.replace(",", ",,")}' for key, value in {
            'id': 'tls0', 'endpoint': 'server', 'dir': credentials,
            'verify-peer': 'off', 'priority': priority or ''}.items()
        if value)
    path = directory / 'monitor'
    # QEMU's user may not create the socket, so QEMU inherits it.
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        descriptor = listener.fileno()
        process = subprocess.Popen(  # noqa: S603 - no shell
            [qemu, '-machine', 'none', '-nodefaults', '-display', 'none',
             '-S', '-object', f'tls-creds-x509,{properties}',
             '-chardev', 'socket,id=monitor,server=on,wait=off,'
             f'fd={descriptor}', '-mon', 'chardev=monitor,mode=control',
             '-incoming', 'defer'],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, pass_fds=[descriptor],
            # without root's terminal, into which QEMU could insert input
            start_new_session=True, **as_user(pwd.getpwnam(user)))
    try:
        with contextlib.closing(
                qmp.Monitor(path, process)) as monitor:
            monitor.ask('migrate-set-parameters', **{'tls-creds': 'tls0'})
            monitor.ask('migrate-incoming', uri='tcp:127.0.0.1:0')
            (address,) = monitor.ask('query-migrate')['socket-address']
            yield address['host'], int(address['port'])
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def as_user(user: pwd.struct_passwd) -> dict[str, Any]:
    """Return the arguments of subprocess that change to a user."""
    if user.pw_uid == os.geteuid():
        return {}
    return {'user': user.pw_uid, 'group': user.pw_gid,
            'extra_groups': os.getgrouplist(user.pw_name, user.pw_gid)}


def handshake(address: tuple[str, int]) -> Answer:
    """Connect as a TLS client; return the server's choice."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(address, _TIMEOUT) as connection:
            with context.wrap_socket(connection) as session:
                cipher = session.cipher()
                return Answer(session.version() or '',
                              cipher[0] if cipher else '')
    except OSError as error:
        return Answer('', '', str(error))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``probe``."""
    parser.add_argument('--qemu', metavar='BINARY',
                        help='default: the QEMU of this host')
    parser.add_argument('--user', help='user of the guests; default: the user '
                        f'in {_QEMU_CONF}, {" or ".join(USERS)}')
    parser.add_argument('--creds', metavar='DIR', help='directory with '
                        'certificates, named as for libvirt; default: '
                        'temporary ones')
    parser.add_argument('--priority', help='value of migrate_tls_priority in '
                        'qemu.conf of libvirt 11.6 and later')
    parser.add_argument('--json', action='store_true',
                        help='print JSON instead of a line')


def run(args: argparse.Namespace) -> int:
    """Print the negotiated TLS.

    :returns: 0: safe; 1: TLS 1.3 with rekeys, or unknown; 2: no session, or
        QEMU did not run
    """
    try:
        answer = probe(args.qemu or find_qemu(), args.user, args.creds,
                       args.priority)
    except qmp.QemuError as error:
        answer = Answer('', '', str(error))
    if args.json:
        print(json.dumps({**answer._asdict(), 'verdict': answer.verdict}))
    else:
        print(' '.join(part for part in (
            answer.version, answer.cipher, f'{answer.verdict}:',
            answer.doubt or answer.error or _MEANING[answer.verdict])
            if part))
    return {'safe': 0, 'rekeys': 1, 'unknown': 1,
            'no session': 2}[answer.verdict]


_MEANING = {
    'safe': 'sessions with this destination are never rekeyed',
    'rekeys': 'migrations of large guests fail if the source has a GnuTLS '
              'older than 3.8.11; give this host a policy',
}
