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

"""URIs of libvirt on another host; see https://libvirt.org/uri.html."""

from __future__ import annotations

import urllib.parse

#: transport: default port, of libvirt or sshd; '' is TLS
PORTS = {'tcp': 16509, 'tls': 16514, '': 16514, 'ssh': 22}


def transport(uri: str) -> str:
    """Return the transport, such as 'tls'; '' if the URI names none."""
    return urllib.parse.urlsplit(uri).scheme.partition('+')[2]


def server(uri: str) -> tuple[str, int] | None:
    """Return host and TCP port that libvirt's client connects to.

    :returns: None for a malformed URI, or one of another transport
    """
    try:
        parts = urllib.parse.urlsplit(uri)
        port = PORTS.get(transport(uri))
        if port is None or not parts.hostname:
            return None
        return parts.hostname, parts.port or port
    except ValueError:
        return None
