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

"""Throw-away certificates, for a QEMU that is only asked."""

from __future__ import annotations

import datetime
import pathlib

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography import x509
from cryptography.x509.oid import NameOID

_HOUR = datetime.timedelta(hours=1)


def write(directory: pathlib.Path) -> None:
    """Make a certificate authority and one certificate for both ends.

    With the names that QEMU and libvirt look for, valid for an hour.

    :param directory: is made
    """
    directory.mkdir(mode=0o700)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _certificate('migfix', ca_key, 'migfix', ca_key, ca=True)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _certificate('localhost', key, 'migfix', ca_key, ca=False)
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
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey, *, ca: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name)).issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _HOUR).not_valid_after(now + _HOUR)
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(_usage(ca=ca), critical=True)
        .add_extension(x509.SubjectAlternativeName(
            [x509.DNSName(name)]), critical=False)
        .sign(issuer_key, hashes.SHA256()))


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca, key_cert_sign=ca, crl_sign=ca,
        content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False)
