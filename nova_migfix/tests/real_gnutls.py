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

"""The GnuTLS of this machine as the server of a TLS session.

GnuTLS reads its configuration when a process loads it: each session has a
process of its own. The client is that of the probe.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import socket
import subprocess
import sys

import fixtures

from nova_migfix.tls import certificates
from nova_migfix.tls import client

_LIBRARY = 'libgnutls.so.30'

# gnutls.h
_SERVER, _PEM, _CREDENTIALS = 1, 1, 1

# Time limit of a session, seconds.
_LIMIT = 60


class RealGnutls(fixtures.Fixture):
    """A process that starts a server for each session."""

    def _setUp(self):
        directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self._policy = directory / 'policy'
        certificates.write(directory / 'certificates')
        openssl = directory / 'openssl.cnf'
        openssl.write_text(client.CONFIGURATION)
        self._process = subprocess.Popen(
            [sys.executable, '-m', __name__, directory / 'certificates'], env={
                 'OPENSSL_CONF': str(openssl),
                 'GNUTLS_SYSTEM_PRIORITY_FILE': str(self._policy),
                 'PYTHONPATH': ':'.join(sys.path)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(self._end)

    def _end(self):
        self._process.stdin.close()
        self._process.wait(_LIMIT)
        self._process.stdout.close()

    def negotiate(self, policy, priority):
        """Return the answer of the client.

        :param policy: content of GnuTLS' configuration, bytes
        :param priority: the priority string of the server
        """
        self._policy.write_bytes(policy)
        self._process.stdin.write(f'{priority}\n')
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def is_present():
    """Return whether this machine has GnuTLS; does not load it."""
    return subprocess.run(
        [sys.executable, '-c', f'import ctypes; ctypes.CDLL({_LIBRARY!r})'],
        capture_output=True, timeout=_LIMIT).returncode == 0


def _serve(descriptor, directory, priority):
    """Shake hands; return whether there is a session."""
    gnutls = ctypes.CDLL(_LIBRARY)
    credentials, session = ctypes.c_void_p(), ctypes.c_void_p()
    gnutls.gnutls_certificate_allocate_credentials(ctypes.byref(credentials))
    gnutls.gnutls_certificate_set_x509_key_file(
        credentials, f'{directory}/server-cert.pem'.encode(),
        f'{directory}/server-key.pem'.encode(), _PEM)
    gnutls.gnutls_init(ctypes.byref(session), _SERVER)
    if gnutls.gnutls_priority_set_direct(session, priority.encode(), None):
        return
    gnutls.gnutls_credentials_set(session, _CREDENTIALS, credentials)
    gnutls.gnutls_transport_set_int2(session, descriptor, descriptor)
    if gnutls.gnutls_handshake(session) == 0:
        # as QEMU: read until the client closes the connection
        gnutls.gnutls_record_recv(session, ctypes.create_string_buffer(1), 1)


def _session(directory, priority):
    ours, theirs = socket.socketpair()
    server = os.fork()
    if not server:
        try:
            ours.close()
            _serve(theirs.fileno(), directory, priority)
        finally:
            os._exit(0)
    theirs.close()
    ours.settimeout(_LIMIT)
    with contextlib.closing(ours):
        answer = client.negotiate(ours)
    os.waitpid(server, 0)
    return answer


def main(directory):
    """Print the answer for each priority string of the standard input."""
    for line in sys.stdin:
        print(json.dumps(_session(directory, line.rstrip('\n'))), flush=True)


if __name__ == '__main__':
    main(sys.argv[1])
