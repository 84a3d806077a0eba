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

"""Make a GnuTLS that changes keys after 2^16 records, or fewer, not 2^24.

It is a copy of the machine's library with two lower constants; the code is the
library's own. The copy exists only in a directory of the caller.
"""

import pathlib
import re
import subprocess

from nova_migfix.tls import gnutls
from nova_migfix.tls import rekey

# On x86-64: and $0xffffff,%eax; cmp $0xfffffd,%rax
_COUNTS = re.compile(rb'(\x25)\xff\xff\xff\x00(\x48\x3d)\xfd\xff\xff\x00')
# The first constant is a mask of ones.
_MASK = (1 << 16) - 1


def records(mask=_MASK):
    """Return how many records a session sends under one key."""
    return mask - 2


class CannotBeMade(Exception):
    """The library of this machine cannot be changed; the text says why."""


def make(qemu, directory, mask=_MASK):
    """Copy the GnuTLS that a QEMU loads, and lower its limit.

    :param directory: gets the copy; in LD_LIBRARY_PATH, it makes QEMU load it
    :param mask: mask of the record counter, 2^n - 1
    :raises CannotBeMade: this GnuTLS changes keys safely, or the limit was not
        found
    """
    library = loaded_by(qemu)
    version = gnutls.version(library)
    if version is None or rekey.is_fixed(version):
        raise CannotBeMade(f'GnuTLS {version} changes keys safely')
    content, count = _COUNTS.subn(
        lambda match: match[1] + mask.to_bytes(4, 'little')
        + match[2] + records(mask).to_bytes(4, 'little'),
        library.read_bytes())
    if count != 1:
        raise CannotBeMade(
            f'the limit is found {count} times in GnuTLS {version}')
    pathlib.Path(directory, library.name).write_bytes(content)


def loaded_by(qemu):
    """Return the path of the GnuTLS that a QEMU loads."""
    out = subprocess.run(['ldd', qemu], capture_output=True, text=True,
                         check=True).stdout
    match = re.search(r'libgnutls\S* => (\S+)', out)
    if not match:
        raise CannotBeMade(f'{qemu} does not load GnuTLS by itself')
    return pathlib.Path(match[1])
