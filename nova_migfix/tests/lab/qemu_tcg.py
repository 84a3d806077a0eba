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

import contextlib
import json
import os


def emulated(argv):
    """The arguments of a guest without KVM and vhost."""
    result = []
    for option, value in zip([None, *argv], argv):
        if option == '-accel' and value == 'kvm':
            # With a thread for each CPU, writes made while memory is being
            # copied can get lost, and the guest crashes on the destination.
            value = 'tcg,thread=single'
        elif option == '-netdev' and value.startswith('{'):
            netdev = json.loads(value)
            value = json.dumps({key: netdev[key] for key in netdev
                                if not key.startswith('vhost')})
        elif option == '-netdev':
            value = ','.join(part for part in value.split(',')
                             if not part.startswith('vhost'))
        result.append(value)
    return result


def main(qemu, claim, argv):
    """Become *qemu*.

    :param qemu: path of the real one
    :param claim: the library for a QEMU that is only asked what it can do
    :param argv: as libvirt gave them
    """
    environment = dict(os.environ)
    if 'none,accel=kvm:tcg' in argv:
        environment['LD_PRELOAD'] = claim
    # Stopped between its look at a page's dirty bit and the write, a CPU
    # writes to what has been copied meanwhile: nothing may stop it there.
    # Some containers may not ask for it.
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.execve(qemu, [qemu, *emulated(argv)], environment)
