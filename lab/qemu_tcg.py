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

"""The wrapper that libvirt starts as QEMU; it always emulates.

Nova requests multiple queues only with ``virt_type = kvm``, so libvirt has to
find KVM. When libvirt probes QEMU's capabilities, the wrapper starts the real
QEMU with the library `data/kvm_claim.c`, which claims that KVM exists; when
libvirt starts a guest, the wrapper replaces KVM by TCG and removes vhost.

It uses only the standard library: each QEMU of the lab starts through it.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import os


# A directory of the host, not of the machine. A scenario may put a library
# there, which QEMU loads instead of the machine's, and a policy, which
# replaces /etc/gnutls/config.
GNUTLS = '/etc/libvirt/gnutls'

# QEMU before 9.0 loses writes of an emulated CPU while memory is copied: where
# a block of memory is a multiple of 64 pages it clears the dirty bits word by
# word and leaves the pages in the CPU's TLB, which then sets no dirty bit
# again (fixed by "physmem: Fix migration dirty bitmap coherency with TCG
# memory access"). With two pages less QEMU goes page by page, correctly.
_LESS = 8192  # bytes; QEMU rounds the memory of a guest to this


def _memory(value: str) -> str:
    """Return the value of -m, in MiB from libvirt, reduced by _LESS."""
    return f'{(int(value) * 1024 * 1024 - _LESS) // 1024}k'


def _backend(value: str) -> str:
    """Return the machine's memory backend, reduced by _LESS like -m."""
    backend = json.loads(value)
    if backend.get('id') == 'pc.ram':
        backend['size'] -= _LESS
    return json.dumps(backend)


def _netdev(value: str) -> str:
    """Return the value of -netdev without vhost."""
    if value.startswith('{'):
        netdev = json.loads(value)
        return json.dumps({key: netdev[key] for key in netdev
                           if not key.startswith('vhost')})
    return ','.join(part for part in value.split(',')
                    if not part.startswith('vhost'))


_CHANGED: dict[str, Callable[[str], str]] = {
    # One thread for all CPUs: several ones would wait for one another on a
    # machine with few processors.
    '-accel': lambda value: ('tcg,thread=single' if value == 'kvm'
                             else value),
    '-m': _memory,
    '-object': lambda value: (_backend(value) if value.startswith('{')
                              else value),
    '-netdev': _netdev,
}


def emulated(argv: list[str]) -> list[str]:
    """Return the arguments of a guest without KVM and vhost."""
    return [_CHANGED.get(option, str)(value)
            for option, value in zip(['', *argv], argv)]


def main(qemu: str, claim: str, argv: list[str]) -> None:
    """Replace this process by *qemu*.

    :param qemu: the path of the real QEMU
    :param claim: the library for a QEMU whose capabilities libvirt probes
    :param argv: QEMU's arguments from libvirt
    """
    environment = {
        **os.environ, 'LD_LIBRARY_PATH': GNUTLS,
        'GNUTLS_SYSTEM_PRIORITY_FILE': f'{GNUTLS}/config'}
    if 'none,accel=kvm:tcg' in argv:
        environment['LD_PRELOAD'] = claim
    os.execve(qemu, [qemu, *emulated(argv)], environment)
