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

"""Temporary certificates, for the probe of a QEMU and for tests."""

from __future__ import annotations

from collections.abc import Iterable
import datetime
import ipaddress
import pathlib

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography import x509
from cryptography.x509.oid import NameOID

_HOUR = datetime.timedelta(hours=1)


def write(directory: pathlib.Path,
          hosts: Iterable[str] = ('localhost',)) -> None:
    """Make a certificate authority and one certificate for both ends.

    The files have the names that QEMU and libvirt expect. The certificates
    are valid for an hour.

    :param directory: is created if it does not exist
    :param hosts: names and addresses for which the certificate is valid
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate((), ca_key, ca_key, ca=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate(hosts, key, ca_key, ca=False)
    (directory / 'ca-cert.pem').write_bytes(_pem(ca))
    for end in ('server', 'client'):
        (directory / f'{end}-cert.pem').write_bytes(_pem(certificate))
        (directory / f'{end}-key.pem').write_bytes(key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption()))


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _certificate(
    hosts: Iterable[str], key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey, *, ca: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name('migfix CA' if ca else 'migfix'))
        .issuer_name(_name('migfix CA'))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _HOUR).not_valid_after(now + _HOUR)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(_usage(ca=ca), critical=True))
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName(
            [_host(name) for name in hosts]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca,
        content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False)
