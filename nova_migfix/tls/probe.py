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
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import NamedTuple

from nova_migfix.status import terminal
from nova_migfix.tls import apparmor
from nova_migfix.tls import certificates
from nova_migfix.tls import client
from nova_migfix.tls import gnutls
from nova_migfix.tls import qemu_conf
from nova_migfix.tls import qmp
from nova_migfix.tls import users

#: QEMU's names and paths in distributions, in the order of attempts
QEMUS = ('qemu-system-x86_64', '/usr/libexec/qemu-kvm', 'qemu-kvm',
         'qemu-system-aarch64', 'qemu-system-ppc64', 'qemu-system-s390x')

# Seconds to wait for the TLS client.
_TIMEOUT = 60


class Answer(NamedTuple):
    """The result of a probe.

    :param version: of the protocol, 'TLSv1.3'; '' without a session
    :param cipher: OpenSSL's name of the cipher suite
    :param error: why there is no session
    :param doubt: why a guest's QEMU may negotiate something else
    """

    version: str = ''
    cipher: str = ''
    error: str = ''
    doubt: str = ''

    @property
    def rekeys(self) -> bool:
        """Whether GnuTLS rekeys a long session; see :mod:`rekey`."""
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


def _doubt(user: str | None) -> str:
    """Return why the QEMU of a guest may have another policy than ours.

    :param user: requested for QEMU
    :returns: '' if both read the same file, or none
    """
    path = gnutls.system_file()
    if path is None:
        return ''
    if (user or users.is_public(path)
            or users.user_of_guests() == users.find_user()):
        return apparmor.problem(path)
    return (f'not every user can read {path}, and this process cannot start '
            'QEMU as the user of the guests; give the file mode 0644, or run '
            '"nova-migfix-tls probe" as root')


def probe(qemu: str, user: str | None = None, credentials: str | None = None,
          priority: str | None = None) -> Answer:
    """Return the TLS that a QEMU negotiates.

    :param qemu: its path
    :param user: name of the user to run it as; another user than the current
        one needs root. None: the user of the guests, if possible
    :param credentials: directory with the certificates of the host, as
        libvirt's migrate_tls_x509_cert_dir; None: use temporary ones
    :param priority: the priority string that libvirt passes to QEMU; '': none;
        None: that of this host's libvirt
    :raises qmp.QemuError: QEMU did not start, or did not listen
    """
    configured = (qemu_conf.priority() if priority is None
                  else qemu_conf.Priority(priority))
    if configured.doubt:
        return Answer(doubt=configured.doubt)
    try:
        name = user or users.find_user()
    except KeyError as error:
        raise qmp.QemuError(
            f'{error.args[0]}; name the user of the guests with --user'
        ) from error
    with listening(qemu, name, credentials, configured.string) as address:
        answer = handshake(address)
    return answer if answer.doubt else answer._replace(doubt=_doubt(user))


@contextlib.contextmanager
def listening(qemu: str, user: str, credentials: str | None = None,
              priority: str | None = None) -> Iterator[tuple[str, int]]:
    """Run a QEMU that waits for a migration; return its address.

    Root makes all files. QEMU's user gets no directory with write access: a
    symbolic link there could direct root to any file of the host.

    Parameters and errors are those of :func:`probe`; *user* is a name.
    """
    try:
        owner = pwd.getpwnam(user)
    except KeyError as error:
        raise qmp.QemuError(f'there is no user {user}; name the user of the '
                            'guests with --user') from error
    with tempfile.TemporaryDirectory(prefix='migfix-probe-') as name:
        directory = pathlib.Path(name)
        if credentials is None:
            place = directory / 'certificates'
            credentials = str(place)
            certificates.write(place)
            _let_read(owner, place)
            if users.can_read(user, place / 'ca-cert.pem') is False:
                raise qmp.QemuError(
                    f'{user} cannot enter {directory.parent}; set TMPDIR to a '
                    'directory that all users can enter')
        with _started(qemu, owner, directory, credentials,
                      priority) as address:
            yield address


def _let_read(owner: pwd.struct_passwd, directory: pathlib.Path) -> None:
    """Give a user the files of a directory.

    In the directory and its parent the user may only look up names.
    """
    if os.geteuid() != 0:
        return
    for path in directory.iterdir():
        os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    for parent in (directory, directory.parent):
        parent.chmod(0o711)


@contextlib.contextmanager
def _started(qemu: str, owner: pwd.struct_passwd, directory: pathlib.Path,
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
        process = _run(
            [qemu, '-machine', 'none', '-nodefaults', '-display', 'none',
             '-S', '-object', f'tls-creds-x509,{properties}',
             '-chardev', 'socket,id=monitor,server=on,wait=off,'
             f'fd={descriptor}', '-mon', 'chardev=monitor,mode=control',
             '-incoming', 'defer'], owner, descriptor)
    try:
        with contextlib.closing(qmp.Monitor(path, process)) as monitor:
            monitor.ask('migrate-set-parameters', **{'tls-creds': 'tls0'})
            monitor.ask('migrate-incoming', uri='tcp:127.0.0.1:0')
            (address,) = monitor.ask('query-migrate')['socket-address']
            yield address['host'], int(address['port'])
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def _run(command: list[str], owner: pwd.struct_passwd,
         descriptor: int) -> subprocess.Popen[bytes]:
    """Start QEMU with the environment of libvirt's QEMUs, not this one.

    Here, GNUTLS_SYSTEM_PRIORITY_FILE and others may have been set.
    """
    try:
        return subprocess.Popen(  # noqa: S603 - no shell
            command, env={'LC_ALL': 'C',
                          'PATH': os.environ.get('PATH', os.defpath)},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, pass_fds=[descriptor],
            # without root's terminal, into which QEMU could insert input
            start_new_session=True, **users.as_user(owner))
    except OSError as error:
        raise qmp.QemuError(
            f'{command[0]} cannot be run as {owner.pw_name}: '
            f'{error.strerror}; name QEMU with --qemu') from error


def handshake(address: tuple[str, int]) -> Answer:
    """Connect as a TLS client; return the server's choice."""
    with tempfile.NamedTemporaryFile('w', prefix='migfix-openssl-') as file:
        file.write(client.CONFIGURATION)
        file.flush()
        try:
            done = subprocess.run(  # noqa: S603 - no shell
                [sys.executable, '-I', client.__file__, *map(str, address)],
                env={**os.environ, 'OPENSSL_CONF': file.name}, check=False,
                stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=_TIMEOUT)
            problem = done.stderr.strip()[-300:] if done.returncode else ''
        except (OSError, subprocess.TimeoutExpired) as error:
            problem = str(error)
    if problem:
        return Answer(doubt=f'the TLS client of the probe failed: {problem}')
    return Answer(**json.loads(done.stdout))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``probe``."""
    parser.add_argument('--qemu', metavar='BINARY',
                        help='default: the QEMU of this host')
    parser.add_argument('--user', help='user of the guests; default: the user '
                        f'in qemu.conf, {" or ".join(users.USERS)}')
    parser.add_argument('--creds', metavar='DIR', help='directory with '
                        'certificates, named as for libvirt; default: '
                        'temporary ones')
    parser.add_argument('--priority', help='priority string that libvirt '
                        'passes to QEMU; default: migrate_tls_priority in '
                        'qemu.conf with libvirt 11.6.0 and later')
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
        answer = Answer(error=str(error))
    except OSError as error:
        answer = Answer(doubt=f'the probe cannot make its files: {error}')
    if args.json:
        print(json.dumps({**answer._asdict(), 'verdict': answer.verdict}))
    else:
        print(terminal.printable(' '.join(part for part in (
            answer.version, answer.cipher, f'{answer.verdict}:',
            answer.doubt or answer.error or _MEANING[answer.verdict])
            if part)))
    return {'safe': 0, 'rekeys': 1, 'unknown': 1,
            'no session': 2}[answer.verdict]


_MEANING = {
    'safe': 'sessions with this destination are never rekeyed',
    'rekeys': 'migrations of large guests fail if the source has a GnuTLS '
              'older than 3.8.11; give this host a policy',
}
