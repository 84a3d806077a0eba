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
"""Check this host as the destination of a migration, as others will use it.

Other hosts reach it at ``[libvirt] live_migration_inbound_addr``. The checks
connect to this very address. :data:`CHECKS` has one function for each.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import functools
import os
import pwd
import re
import socket
import subprocess

import nova.conf
from nova import exception
from oslo_concurrency import processutils
from oslo_upgradecheck import upgradecheck

from nova_migfix import status
from nova_migfix.status import credentials
from nova_migfix.status import qemu
from nova_migfix.status import remote
from nova_migfix.status.results import failure
from nova_migfix.status.results import success
from nova_migfix.status.results import warning
from nova_migfix.status import shared
from nova_migfix.status import userfault
from nova_migfix.tls import users
from nova_migfix.transport import address
from nova_migfix.transport import libvirt_uri

CONF = nova.conf.CONF

# Seconds to wait for a connection and its first line.
_TIMEOUT = 5
# Seconds to wait for a login.
_LOGIN_TIMEOUT = 20

Check = Callable[[], upgradecheck.Result]


# -- the address -------------------------------------------------------------

def _address() -> upgradecheck.Result:
    own = CONF.libvirt.live_migration_inbound_addr
    if not own:
        return warning(
            '[libvirt] live_migration_inbound_addr is unset: destinations '
            'fetch images that Glance no longer has from this host by its '
            'name, over the network to which the name resolves. Set it to an '
            'address of this host.')
    try:
        found = _resolved(own)
    except OSError as error:
        return failure(f'{own} cannot be resolved: {error}.')
    if not any(map(_is_here, found)):
        return failure(f'{own} ({", ".join(sorted(found))}) is not '
                       'an address of this host: set [libvirt] '
                       'live_migration_inbound_addr to one that is.')
    return success(f'{own} is an address of this host.')


def _resolved(host: str) -> set[str]:
    return {str(info[4][0]) for info in socket.getaddrinfo(
        host, None, type=socket.SOCK_STREAM)}


def _is_here(literal: str) -> bool:
    family = socket.AF_INET6 if ':' in literal else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as attempt:
        try:
            attempt.bind((literal, 0))
        except OSError:
            return False
    return True


def _at_address(check: Callable[[str], upgradecheck.Result]) -> Check:
    """Return a check that calls *check* with the address of migrations."""
    @functools.wraps(check)
    def checked() -> upgradecheck.Result:
        own = CONF.libvirt.live_migration_inbound_addr
        if not own:
            return success('Not checked: [libvirt] '
                           'live_migration_inbound_addr is unset.')
        try:
            is_here = any(map(_is_here, _resolved(address.check(own))))
        except (OSError, ValueError):
            is_here = False
        if not is_here:
            return success(f'Not checked: {own} is not an address of this '
                           'host.')
        return check(own)
    return checked


# -- ssh ---------------------------------------------------------------------

def _ssh() -> upgradecheck.Result:
    own = CONF.libvirt.live_migration_inbound_addr or socket.gethostname()
    try:
        where = _ssh_destination(address.check(own))
        with socket.create_connection(where, _TIMEOUT) as connection:
            greeting = connection.makefile('rb').readline()
    except (OSError, ValueError, processutils.ProcessExecutionError) as error:
        return failure(
            f'{own} does not answer to ssh: {error}. Destinations fetch files '
            'of guests from this address: let sshd listen on it, at the port '
            'that ssh_config has for it.')
    if not greeting.startswith(b'SSH-'):
        return failure(
            f'{own}: the server at port {where[1]} is not sshd. Let sshd '
            'listen there, or change the port in ssh_config.')
    return success(f'sshd answers on {own} at port {where[1]}.')


def _ssh_destination(host: str) -> tuple[str, int]:
    """Return address and port that this user's ssh_config has for a host."""
    output, _errors = processutils.execute('ssh', '-G', '--', host)
    words = dict(line.split(' ', 1) for line in output.splitlines()
                 if ' ' in line)
    return words['hostname'], int(words['port'])


def _login(own: str) -> upgradecheck.Result:
    """Log in on this host as nova-compute of another host does.

    A warning, because a host need not accept its own key.
    """
    if CONF.libvirt.images_type == 'rbd' or shared.has_shared_disks():
        return success('Not needed: instances have no local disks.')
    try:
        user = _compute_user()
    except KeyError as error:
        return warning(f'Not checked: the user of nova-compute: {error}.')
    try:
        done = subprocess.run(  # noqa: S603 - no shell
            ['ssh', '-o', 'BatchMode=yes', '-o',  # noqa: S607
             f'ConnectTimeout={_TIMEOUT}', '--', own, 'true'],
            stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=_LOGIN_TIMEOUT, **users.as_user(user))
        problem = '' if done.returncode == 0 else (
            done.stderr.decode(errors='replace').strip()[-300:]
            or f'exit code {done.returncode}')
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if not problem:
        return success(f'{user.pw_name} can log in on {own}.')
    return warning(
        f'{user.pw_name} cannot log in on {own} by ssh: {problem}. Nova and '
        'the plugin copy files between hosts by such a login. Give all hosts '
        f'the keys of {user.pw_name}, and the host keys of all migration '
        'addresses; or try it from another host.')


def _compute_user() -> pwd.struct_passwd:
    """Return the user of nova-compute.

    That is the current one, or the owner of instances_path if root runs this.
    """
    uid = os.geteuid()
    if uid == 0 and os.path.isdir(CONF.instances_path):
        uid = os.stat(CONF.instances_path).st_uid
    return pwd.getpwuid(uid)


# -- libvirt -----------------------------------------------------------------

def _at_uri(check: Callable[[str], upgradecheck.Result],
            ) -> Callable[[str], upgradecheck.Result]:
    """Return a check that calls *check* with the URI of an address."""
    @functools.wraps(check)
    def checked(own: str) -> upgradecheck.Result:
        try:
            uri = remote.uri_of(own)
        except exception.LiveMigrationURINotAvailable as error:
            return success(f'Not used: {error}')
        except status.Error as error:
            return failure(str(error))
        return check(uri)
    return checked


def _libvirt(uri: str) -> upgradecheck.Result:
    try:
        return remote.connect(uri).result
    except status.Error as error:
        return warning(f'Not checked: {error}')


def _libvirt_certificates(uri: str) -> upgradecheck.Result:
    where = remote.port(uri)
    if not where or libvirt_uri.transport(uri) == 'tcp':
        return success(f'Not used: {uri}.')
    return credentials.of_libvirt(where)


# -- QEMU --------------------------------------------------------------------

def _ports(own: str) -> upgradecheck.Result:
    """Listen at each port of QEMU's migrations, and connect to it."""
    first = _port('migration_port_min', 49152)
    last = _port('migration_port_max', 49215)
    ports = range(first, last + 1)
    free = set()
    for port, problem in _usable(own, ports):
        if problem:
            return failure(
                f'A connection to {own}, port {port}, fails on this host: '
                f'{problem}. QEMU receives guests at ports {first} to {last}: '
                'allow them in the firewall.')
        free.add(port)
    if not free:
        return failure(f'None of the ports {first} to {last} of {own} is '
                       'free: no guest can be migrated to this host. Set '
                       'net.ipv4.ip_local_reserved_ports to this range.')
    return success(
        f'{len(free)} of the {len(ports)} ports {first} to {last} of {own} '
        'can be used. Not checked: filters for packets of other hosts.')


def _port(name: str, default: int) -> int:
    value = qemu.setting(name) or ''
    return int(value) if re.fullmatch('[0-9]{1,5}', value) else default


def _usable(own: str, ports: range) -> Iterator[tuple[int, str]]:
    """Yield each free port, and the problem of a connection to it; ''."""
    family, _type, _protocol, _name, where = socket.getaddrinfo(
        own, None, type=socket.SOCK_STREAM)[0]
    for port in ports:
        try:
            server = socket.create_server(
                (str(where[0]), port), family=family)
        except OSError:
            continue            # a migration or another program uses it
        with server:
            try:
                socket.create_connection(
                    (str(where[0]), port), _TIMEOUT).close()
            except OSError as error:
                yield port, str(error)
            else:
                yield port, ''


def _post_copy() -> upgradecheck.Result:
    if not CONF.libvirt.live_migration_permit_post_copy:
        return success('Not used: [libvirt] live_migration_permit_post_copy.')
    is_allowed, reason = userfault.state()
    return {True: success, False: failure, None: warning}[is_allowed](reason)


CHECKS: tuple[tuple[str, Check], ...] = (
    ('Migration address', _address),
    ('ssh to the migration address', _ssh),
    ('ssh login at the migration address', _at_address(_login)),
    ('libvirt at the migration address', _at_address(_at_uri(_libvirt))),
    ('Certificates of libvirt',
     _at_address(_at_uri(_libvirt_certificates))),
    ('Certificates of QEMU', credentials.of_qemu),
    ('Certificates of running guests', credentials.of_guests),
    ('Ports of migrations', _at_address(_ports)),
    ('Post-copy', _post_copy),
)
