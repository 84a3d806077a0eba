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

"""Check the addresses that peers send before a command line uses them."""

from __future__ import annotations

import ipaddress
import re

# RFC 1123: labels of letters, digits and hyphens that neither begin nor end
# with a hyphen. It does not allow underscores, but many host names have them.
_LABEL = re.compile(r'(?!-)[A-Za-z0-9_-]{1,63}(?<!-)')
_MAX_NAME = 253


def check(value: object) -> str:
    """Return *value* if ssh, scp and rsync accept it as a host.

    :param value: a value from a peer or from a configuration file
    :returns: *value*: an IPv4 or IPv6 literal without brackets or scope, or a
        host name of at most 253 characters
    :raises ValueError: *value* is anything else, such as a path, an option
        that begins with a dash, several words, or ``user@host``
    """
    if isinstance(value, str):
        if '%' not in value and _is_ip(value):
            return value
        labels = value[:-1] if value.endswith('.') else value
        if len(value) <= _MAX_NAME and all(
                _LABEL.fullmatch(label) for label in labels.split('.')):
            return value
    raise ValueError(
        f'{value!r:.80} is neither a host name nor an IP address')


def _is_ip(value: str) -> bool:
    """Return whether the whole of *value* is an IP address.

    oslo.utils calls inet_aton(3), which ignores the text after a blank.
    """
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True
