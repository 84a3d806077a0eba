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

"""What libvirt takes for QEMU: the real one, always emulating.

Nova asks for the number of queues only with ``virt_type = kvm``, so libvirt
has to believe in KVM. When it asks what QEMU can do, the real QEMU answers
with the library `data/kvm_claim.c` loaded, which says that KVM is there; when
it starts a guest, KVM becomes TCG and vhost is left out.

Only the standard library is used: every QEMU of the lab starts through this.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import os


# The host's own, not the machine's: it may be given a library that is loaded
# instead of the machine's, and a policy in the place of /etc/gnutls/config.
GNUTLS = '/etc/libvirt/gnutls'

# QEMU before 9.0 loses what an emulated CPU writes while memory is copied:
# where a block of memory is a multiple of 64 pages it clears the dirty bits
# word by word and leaves the pages in the CPU's TLB, which then sets none
# again (mended by "physmem: Fix migration dirty bitmap coherency with TCG
# memory access"). Two pages less, and it goes page by page, as it should.
_LESS = 8192  # bytes; QEMU rounds the memory of a guest to this


def _memory(value: str) -> str:
    """The value of -m, in MiB as libvirt writes it, a little smaller."""
    return f'{(int(value) * 1024 * 1024 - _LESS) // 1024}k'


def _backend(value: str) -> str:
    """The memory backend of the machine, made as small as -m says."""
    backend = json.loads(value)
    if backend.get('id') == 'pc.ram':
        backend['size'] -= _LESS
    return json.dumps(backend)


def _netdev(value: str) -> str:
    """A tap without vhost."""
    if value.startswith('{'):
        netdev = json.loads(value)
        return json.dumps({key: netdev[key] for key in netdev
                           if not key.startswith('vhost')})
    return ','.join(part for part in value.split(',')
                    if not part.startswith('vhost'))


_CHANGED: dict[str, Callable[[str], str]] = {
    # One thread for all CPUs: they would wait for one another with the few
    # processors of a machine that tests.
    '-accel': lambda value: ('tcg,thread=single' if value == 'kvm'
                             else value),
    '-m': _memory,
    '-object': lambda value: (_backend(value) if value.startswith('{')
                              else value),
    '-netdev': _netdev,
}


def emulated(argv: list[str]) -> list[str]:
    """The arguments of a guest without KVM and vhost."""
    return [_CHANGED.get(option, str)(value)
            for option, value in zip(['', *argv], argv)]


def main(qemu: str, claim: str, argv: list[str]) -> None:
    """Become *qemu*.

    :param qemu: path of the real one
    :param claim: the library for a QEMU that is only asked what it can do
    :param argv: as libvirt gave them
    """
    environment = {
        **os.environ, 'LD_LIBRARY_PATH': GNUTLS,
        'GNUTLS_SYSTEM_PRIORITY_FILE': f'{GNUTLS}/config'}
    if 'none,accel=kvm:tcg' in argv:
        environment['LD_PRELOAD'] = claim
    os.execve(qemu, [qemu, *emulated(argv)], environment)
