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


"""QEMU's TLS credentials on the compute hosts: right ones and wrong ones."""

from __future__ import annotations

from collections.abc import Iterable
import datetime
import pathlib
import shutil
import tempfile

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography import x509

from lab import cloud
from lab import topology
from lab import users
from nova_migfix.tls import certificates

NATIVE_TLS = ('libvirt', 'live_migration_with_native_tls')

# Nova addresses a destination by this.
ADDRESSES = tuple(map(topology.MIGRATION.address, topology.COMPUTES))

_DAY = datetime.timedelta(days=1)


def give(cloud: cloud.Cloud, names: Iterable[str] = ADDRESSES) -> None:
    """Give both hosts new certificates of one authority.

    :param names: names and addresses in the certificates
    """
    with tempfile.TemporaryDirectory() as directory:
        certificates.write(pathlib.Path(directory), names)
        for host in topology.COMPUTES:
            shutil.copytree(directory, cloud.libvirt[host].certificates,
                            dirs_exist_ok=True)
            _own(cloud, host, users.QEMU)


def take(cloud: cloud.Cloud, host: str, file: str = '') -> None:
    """Make a file, or the directory, unreadable for QEMU's user, until `give`.

    :param file: its name; '': the directory
    """
    _own(cloud, host, 'root', file)
    if file:
        (cloud.libvirt[host].certificates / file).chmod(0o600)


def _own(cloud: cloud.Cloud, host: str, user: str, file: str = '') -> None:
    """Give a user a file, or the directory, which only its owner can enter."""
    cloud.hosts[host].run('chown', '--recursive', user,
                          f'/etc/libvirt/migration/{file}')


def expire(cloud: cloud.Cloud, host: str) -> None:
    """Replace the server's certificate by one that ended two days ago.

    The authority's key is gone, so the server's own key signs it: QEMU looks
    at the dates before the signature.
    """
    directory = cloud.libvirt[host].certificates
    file = directory / 'server-cert.pem'
    key = serialization.load_pem_private_key(
        (directory / 'server-key.pem').read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    old = x509.load_pem_x509_certificate(file.read_bytes())
    now = datetime.datetime.now(datetime.timezone.utc)
    expired = x509.CertificateBuilder(
        old.issuer, old.subject, old.public_key(), old.serial_number,
        extensions=list(old.extensions),
    ).not_valid_before(now - 9 * _DAY).not_valid_after(
        now - 2 * _DAY).sign(key, hashes.SHA256())
    file.write_bytes(expired.public_bytes(serialization.Encoding.PEM))
