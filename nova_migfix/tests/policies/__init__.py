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

"""GnuTLS configurations: those that work, and those that do nothing.

Each stands in a file of its name beside this one. What is expected was read
off a QEMU that was built with the priority NORMAL, as Debian and Ubuntu do, or
with @QEMU,SYSTEM, as the RHEL family does; crypto-policies.config is what
update-crypto-policies writes there, shortened.
"""

import pathlib
from typing import NamedTuple


class Expected(NamedTuple):
    version: str
    cipher: str
    complaint: str      # of lint: a part of its first finding


TLS12 = ('TLSv1.2', 'ECDHE-ECDSA-AES256-GCM-SHA384')
CHACHA20 = ('TLSv1.3', 'TLS_CHACHA20_POLY1305_SHA256')
REKEYS = ('TLSv1.3', 'TLS_AES_256_GCM_SHA384')

EXPECTED = {
    'disabled-version': Expected(*TLS12, ''),
    'any-case': Expected(*TLS12, ''),
    'comment': Expected(*TLS12, ''),
    'both': Expected(*TLS12, ''),
    'merged': Expected(*TLS12, ''),
    'disabled-ciphers': Expected(*CHACHA20, ''),
    'none': Expected(*REKEYS, 'no setting keeps QEMU from TLS 1.3'),
    'priorities': Expected(*REKEYS, 'does not read [priorities]'),
    'list': Expected(*REKEYS, 'one line for each of tls1.2,tls1.3'),
    'priority-as-value': Expected(*REKEYS, 'write "tls1.3"'),
    'quoted': Expected(*REKEYS, 'write "tls1.3"'),
    'misspelt-key': Expected(*REKEYS, 'write "disabled-version"'),
    'misspelt-section': Expected(*REKEYS, 'write [overrides]'),
    'other-section': Expected(*REKEYS, 'write it into [overrides]'),
    'one-cipher': Expected('TLSv1.3', 'TLS_AES_128_GCM_SHA256',
                           'no setting keeps QEMU from TLS 1.3'),
    'indented': Expected(*REKEYS, 'indented, so that GnuTLS takes it'),
    'long-line': Expected(*REKEYS, 'ignores the whole file'),
    'two-versions': Expected('', '', 'TLS 1.2 is disabled'),
    'malformed': Expected(*REKEYS, 'ignores the whole file'),
}

NO_SESSION = ('', '')

EXPECTED_OF_SYSTEM = {
    'crypto-policies': Expected(*REKEYS, 'no setting keeps QEMU from TLS 1.3'),
    'priorities': Expected(*TLS12, ''),
    'both': Expected(*TLS12, ''),
    'merged': Expected(*TLS12, ''),
    'disabled-version': Expected(*NO_SESSION, 'every session fails'),
    'disabled-ciphers': Expected(*NO_SESSION, 'every session fails'),
    'none': Expected(*NO_SESSION, 'every session fails'),
}


def path(name):
    return pathlib.Path(__file__).with_name(f'{name}.config')
