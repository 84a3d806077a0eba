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

"""A TLS client that offers all that QEMU on a source may offer.

It runs as a program: OpenSSL reads its configuration once in a process, and
Python before 3.15 selects the ciphers of TLS 1.3 in no other way. The program
imports nothing of this package.

It prefers AES under TLS 1.3, so that a server that allows this chooses it,
and it does not verify the server.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys

_AES = ('TLS_AES_256_GCM_SHA384', 'TLS_AES_128_GCM_SHA256',
        'TLS_AES_128_CCM_SHA256', 'TLS_AES_128_CCM_8_SHA256')
_CIPHERS = 'ALL:!ADH:!AECDH:@SECLEVEL=0'

#: OpenSSL's configuration for this program: the value of OPENSSL_CONF names it
CONFIGURATION = f'''\
openssl_conf = all
[all]
ssl_conf = modules
[modules]
system_default = tls
[tls]
Ciphersuites = {":".join((*_AES, "TLS_CHACHA20_POLY1305_SHA256"))}
CipherString = {_CIPHERS}
MinProtocol = TLSv1.2
MaxProtocol = TLSv1.3
'''

# Seconds to wait for a connection, and for each message.
_TIMEOUT = 10


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.set_ciphers(_CIPHERS)
    return context


def negotiate(connection: socket.socket) -> dict[str, str]:
    """Shake hands with a server.

    :returns: ``version`` and OpenSSL's name of the ``cipher``, or ``error``;
        ``doubt`` if this OpenSSL does not offer AES under TLS 1.3
    """
    context = _context()
    offered = {cipher['name'] for cipher in context.get_ciphers()}
    if not offered.issuperset(_AES[:2]):
        return {'doubt': 'OpenSSL of this Python does not offer AES under '
                'TLS 1.3, so that QEMU cannot choose it; run "nova-migfix-tls '
                'probe" with another Python'}
    try:
        with context.wrap_socket(connection) as session:
            cipher = session.cipher()
            return {'version': session.version() or '',
                    'cipher': cipher[0] if cipher else ''}
    except OSError as error:
        return {'error': str(error)}


def main(host: str, port: str) -> None:
    """Print the result of :func:`negotiate` as JSON."""
    try:
        with socket.create_connection((host, int(port)), _TIMEOUT) as to:
            answer = negotiate(to)
    except OSError as error:
        answer = {'error': str(error)}
    print(json.dumps(answer))


if __name__ == '__main__':
    main(*sys.argv[1:])
