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

"""A guest of a few bytes that writes to all its memory pages in a loop.

It is a kernel of the Multiboot specification 0.6.96, for QEMU's -kernel.
"""

import struct

_MAGIC, _ADDRESSES_FOLLOW = 0x1BADB002, 1 << 16
_LOADED_AT = 1 << 20
_FROM = 2 << 20
# Memory that the firmware uses.
_AT_THE_END = 1 << 20


def kernel(memory):
    """Return the kernel for a guest.

    :param memory: of the guest, bytes
    """
    header = (_MAGIC, _ADDRESSES_FOLLOW, -(_MAGIC + _ADDRESSES_FOLLOW))
    addresses = (_LOADED_AT, _LOADED_AT, 0, 0, _LOADED_AT + 32)
    return struct.pack('<IIiIIIII', *header, *addresses) + b''.join((
        b'\xbe', struct.pack('<I', _FROM),          # begin: mov $_FROM,%esi
        b'\xff\x06',                                # next: incl (%esi)
        b'\x81\xc6', struct.pack('<I', 4096),       # add $4096,%esi
        b'\x81\xfe', struct.pack('<I', memory - _AT_THE_END),   # cmp ...,%esi
        b'\x72\xf0',                                # jb next
        b'\xeb\xe9',                                # jmp begin
    ))
