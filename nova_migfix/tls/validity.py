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
"""Names and dates of certificates, as GnuTLS judges them."""

from __future__ import annotations

import datetime
import ipaddress
import pathlib

from cryptography import x509
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


def load(path: pathlib.Path) -> list[x509.Certificate]:
    """Return the certificates of a PEM file.

    :raises OSError: the file cannot be read
    :raises ValueError: the file has no valid certificate
    """
    return x509.load_pem_x509_certificates(path.read_bytes())


def names(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    """Return the DNS names and the addresses of a certificate.

    The common name counts if the subject alternative name has no DNS name; see
    gnutls_x509_crt_check_hostname2(3).

    :raises ValueError: an extension is invalid
    """
    try:
        found = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        found = x509.SubjectAlternativeName([])
    dns = found.get_values_for_type(x509.DNSName) or [
        str(attribute.value) for attribute in
        certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return dns, list(map(str, found.get_values_for_type(x509.IPAddress)))


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Return whether a certificate is valid for a host.

    GnuTLS since 3.6.0 compares an address with addresses only. A wildcard
    stands for the first label of a name.

    :param host: name or IP literal
    :raises ValueError: an extension is invalid
    """
    dns, addresses = names(certificate)
    try:
        return str(ipaddress.ip_address(host)) in addresses
    except ValueError:
        host = host.lower().rstrip('.')
    domain = host.partition('.')[2]
    known = {name.lower().rstrip('.') for name in dns}
    return host in known or ('.' in domain and f'*.{domain}' in known)


def days_left(certificate: x509.Certificate) -> float:
    """Return the days until a certificate ends; negative: it has ended."""
    return (_utc(certificate, 'not_valid_after') - _now()) / _DAY


def has_begun(certificate: x509.Certificate) -> bool:
    """Return whether the validity of a certificate has begun."""
    return _utc(certificate, 'not_valid_before') <= _now()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _utc(certificate: x509.Certificate, name: str) -> datetime.datetime:
    """Return a date with its time zone, also from cryptography before 42."""
    found: datetime.datetime = (
        getattr(certificate, f'{name}_utc', None) or getattr(
            certificate, name).replace(tzinfo=datetime.timezone.utc))
    return found
