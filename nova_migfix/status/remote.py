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
"""Connect to the libvirt of a host as the source of a migration does."""

from __future__ import annotations

import re
import socket
from typing import Any
from typing import NamedTuple

from nova.virt.libvirt import driver
from oslo_upgradecheck import upgradecheck

from nova_migfix import status
from nova_migfix.status import hypervisor
from nova_migfix.status.results import failure
from nova_migfix.status.results import success
from nova_migfix.status.results import warning
from nova_migfix.transport import libvirt_uri

# Seconds to wait for a connection of TCP.
_TCP_TIMEOUT = 5
# Seconds to wait for a connection of libvirt.
_TIMEOUT = 20

# Sockets of systemd, and settings of libvirtd.conf without them.
_LISTEN = {'tcp': 'libvirtd-tcp.socket, or listen_tcp',
           'tls': 'libvirtd-tls.socket, or listen_tls',
           '': 'libvirtd-tls.socket, or listen_tls'}

# Errors of libvirt's client: pattern, whether any user would get it, remedy.
_ERRORS: tuple[tuple[str, bool, str], ...] = (
    ('does not match the hostname', True,
     'The certificate lacks this name or address: make one that has it in '
     'its subject alternative name.'),
    ('certificate.* has expired', True, 'Renew the certificate.'),
    ('not yet active', True, 'Compare the clocks of the hosts.'),
    # libvirt 9 tells no more of any fault of the host's certificate
    ("Failed to verify peer's certificate|Certificate failed validation",
     True, 'The check of certificates says whether its name, address and time '
     'are right. If they are, it is of a CA that this host does not have: '
     'give all hosts certificates of one CA.'),
    ('Unable to read TLS confirmation', False,
     'The host refuses the client certificate of this one: compare its CA, '
     'and tls_allowed_dn_list in libvirtd.conf of the host.'),
    ('Cannot read|Unable to set x509', False,
     'This user cannot read the certificates of libvirt\'s client, or they '
     'are not here: run this command as root, or beside the libvirt of the '
     'source.'),
    ('(?i)unable to resolve address|could not resolve hostname', True,
     'Add the name to DNS, or to /etc/hosts of the source.'),
    ('connect to (host|server) .*Connection refused', True,
     'Let sshd listen there, at the port in ssh_config.'),
    ('Host key verification failed', False,
     'Add the host key to known_hosts of this user, and of the user of '
     'libvirt, mostly root.'),
    (r'Permission denied|currently not available', False,
     'Let this user, and the user of libvirt, mostly root, log in there with '
     'a key.'),
    ('(?i)sasl|authentication failed|auth credentials', False,
     'Compare auth.conf of this host with the SASL users of the other one.'),
    ('no answer within', True,
     'The host accepts connections, but libvirt does not answer: look for a '
     'busy libvirtd, and for a firewall or an MTU that drops packets.'),
)
_OTHERWISE = (
    'The libvirt of the source opens this URI as its own user, mostly root, '
    'whose keys and passwords may differ from those of this user. Try "virsh '
    '--connect URI uri" beside the libvirt of the source.')


class Connected(NamedTuple):
    """The connection, None if there is none, and the result of the attempt."""

    connection: Any
    result: upgradecheck.Result


def uri_of(host: str) -> str:
    """Return the URI at which a source connects to the libvirt of a host.

    :raises LiveMigrationURINotAvailable: there is none for this virt_type
    :raises Error: nova.conf has an invalid one
    """
    try:
        return str(driver.LibvirtDriver._live_migration_uri(host))
    except (TypeError, ValueError) as error:
        raise status.Error(
            f'[libvirt] live_migration_uri is invalid: {error}. It needs one '
            '%s for the address of the destination; or set '
            'live_migration_scheme instead.') from error


def port(uri: str) -> tuple[str, int] | None:
    """Return host and TCP port of a URI of libvirt.

    :returns: None if libvirt uses ssh or another command
    """
    where = libvirt_uri.server(uri)
    return where if where and libvirt_uri.transport(uri) != 'ssh' else None


def connect(uri: str) -> Connected:
    """Connect to libvirt at a URI; wait at most 25 seconds.

    An error that another user may not get is a warning: in a migration the
    libvirt of the source opens the URI.

    :raises Error: this environment has no libvirt-python
    """
    if problem := _unreachable(uri):
        return Connected(None, failure(problem))
    try:
        connection = hypervisor.open_uri(uri, _TIMEOUT)
    except hypervisor.Unavailable as error:
        return Connected(None, _judge(uri, str(error)))
    return Connected(connection, success(f'libvirt answers at {uri}.'))


def _unreachable(uri: str) -> str:
    """Return why libvirt's port cannot be reached; '' if it can."""
    where = port(uri)
    if not where:
        return ''
    host, number = where
    try:
        socket.create_connection(where, _TCP_TIMEOUT).close()
    except (socket.gaierror, UnicodeError) as error:
        return (f'{host} cannot be resolved: {error}. Add the name to DNS, or '
                'to /etc/hosts of the source.')
    except OSError as error:
        return (
            f'libvirt does not answer at {host}, port {number}: {error}. No '
            'guest can be migrated to this address. Let libvirt listen there '
            f'({_LISTEN[libvirt_uri.transport(uri)]}), allow the port in '
            'firewalls, or change [libvirt] live_migration_inbound_addr of '
            'the host.')
    return ''


def _judge(uri: str, problem: str) -> upgradecheck.Result:
    for pattern, is_certain, remedy in _ERRORS:
        if re.search(pattern, problem):
            make = failure if is_certain else warning
            return make(f'{uri}: {problem}. {remedy}')
    return warning(f'{uri}: {problem}. {_OTHERWISE}')
