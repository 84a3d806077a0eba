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

"""Addresses that another host told us, before they reach a command line."""

from __future__ import annotations

import ipaddress
import re

# RFC 1123: labels of letters, digits and hyphens that neither begin nor end
# with a hyphen. The underscore is no part of it but of many a host's name.
_LABEL = re.compile(r'(?!-)[A-Za-z0-9_-]{1,63}(?<!-)')
_MAX_NAME = 253


def check(value: object) -> str:
    """Return *value* if ssh, scp and rsync can take it as a host.

    :param value: what a peer sent or a file configured
    :returns: the same, an IPv4 or IPv6 literal without brackets or scope, or
        a host name of at most 253 characters
    :raises ValueError: it is anything else: a path, an option that begins
        with a dash, several words, a ``user@host``
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
    """Say whether the whole of it is an address.

    inet_aton(3), which oslo.utils asks, ignores what follows a blank.
    """
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True
