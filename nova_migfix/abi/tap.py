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

"""Find the features of tap devices on this host.

The limit of queues is the kernel's MAX_TAP_QUEUES: 8 before Linux 4.0, 256
since then, and 256 in some older kernels of distributions. As the version
number does not determine the limit, this module opens queues as libvirt does
for a guest. It sets offloads as QEMU does.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import struct

import nova.privsep

# <linux/if_tun.h>
TUNSETIFF = 0x400454ca
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_MULTI_QUEUE = 0x0100
IFF_VNET_HDR = 0x4000
TUNSETOFFLOAD = 0x400454d0
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04
TUN_F_USO4, TUN_F_USO6 = 0x20, 0x40
TUN_F_UDP_TUNNEL_GSO = 0x80

# Flags that QEMU probes: tap_probe_has_uso and tap_probe_has_tunnel in
# net/tap-linux.c. A kernel accepts a flag only with those that it depends on.
# Linux 6.2 has USO, Linux 6.17 the other.
OFFLOADS = {
    'USO': TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6,
    'UDP tunnel': TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_UDP_TUNNEL_GSO,
}
# struct ifreq: a name of 16 bytes and a union of 24 that has ifr_flags
IFREQ = '16sH22x'

# No kernel has a higher limit, and no guest has more queues.
ENOUGH = 256


@nova.privsep.sys_admin_pctxt.entrypoint
def count_queues(wanted: int) -> int:
    """Open queues of one tap device until the kernel refuses one.

    The device is not persistent: the kernel removes it when its last
    descriptor is closed.

    :param wanted: number of queues at which to stop
    :returns: the number of queues that the kernel opened, at most *wanted*
    :raises OSError: for another reason than the kernel's limit
    """
    queues: list[int] = []
    name = b'migfix%d'
    try:
        while len(queues) < wanted:
            queues.append(os.open('/dev/net/tun', os.O_RDWR | os.O_CLOEXEC))
            request = struct.pack(
                IFREQ, name, IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE)
            try:
                answer = fcntl.ioctl(queues[-1], TUNSETIFF, request)
            except OSError as error:
                # The limit. Before Linux 3.8 there is no second queue.
                if error.errno in (
                        errno.E2BIG, errno.EBUSY, errno.EINVAL):
                    return max(1, len(queues) - 1)
                raise
            name = answer[:16].rstrip(b'\0')
        return len(queues)
    finally:
        for descriptor in queues:
            os.close(descriptor)


@functools.cache
def max_queues() -> int:
    """Return the limit of the running kernel, which is constant."""
    return count_queues(ENOUGH)


@nova.privsep.sys_admin_pctxt.entrypoint
def accepted_offloads() -> list[str]:
    """Return the keys of OFFLOADS that a tap device of this kernel accepts.

    The device is not persistent.

    :raises OSError: the kernel does not allow a tap device
    """
    descriptor = os.open('/dev/net/tun', os.O_RDWR | os.O_CLOEXEC)
    found = []
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack(
            IFREQ, b'migfix%d', IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        for name, flags in OFFLOADS.items():
            try:
                fcntl.ioctl(descriptor, TUNSETOFFLOAD, flags)
                found.append(name)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
    finally:
        os.close(descriptor)
    return found


@functools.cache
def offloads() -> frozenset[str]:
    """Return the offloads of the running kernel, which are constant."""
    return frozenset(accepted_offloads())
