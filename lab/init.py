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

"""The first process of a lab host.

Run as a script in new mount, UTS, network and PID namespaces. It gives the
host a name and the few directories that must not be shared with the machine
or with the other hosts, and then reaps orphans, as a pid 1 has to. When it
dies the kernel ends every process of the host and frees its mounts and
interfaces.

    init.py NAME DIRECTORY MOUNT_POINT

:param DIRECTORY: the files of this host alone; mounted at MOUNT_POINT, and
    the entries of PRIVATE below it at their usual paths
"""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys

# Paths that the installed packages have created: the lab creates no mount
# point in the machine's own file system.
PRIVATE = (
    'etc/group',
    'etc/hosts',
    'etc/libvirt',
    'etc/passwd',
    'etc/shadow',
    'etc/ssh/ssh_config',
    'etc/sudoers',
    'var/cache/libvirt',
    'var/lib/libvirt',
    'var/log/libvirt',
)

# Devices that libvirt, QEMU and Open vSwitch open. KVM and vhost are empty
# placeholders: QEMU emulates all guests (see qemu_tcg.py), so that the lab
# needs no hardware and behaves the same on every machine.
DEVICES = ('null', 'zero', 'full', 'random', 'urandom', 'tty', 'net/tun')
PLACEHOLDERS = ('kvm', 'vhost-net')
LINKS = {'ptmx': 'pts/ptmx', 'fd': '/proc/self/fd', 'stdin': 'fd/0',
         'stdout': 'fd/1', 'stderr': 'fd/2'}


def mount(*arguments: str) -> None:
    subprocess.run(('mount',) + arguments, check=True)


def mount_private(directory: pathlib.Path, mount_point: str) -> None:
    mount('--bind', str(directory), mount_point)
    for place in PRIVATE:
        mount('--bind', str(directory / place), f'/{place}')


def mount_devices(dev: pathlib.Path) -> None:
    """Replace /dev by one with only DEVICES, PLACEHOLDERS and LINKS."""
    dev.mkdir(exist_ok=True)
    mount('-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', str(dev))
    for name in ('net', 'pts', 'shm'):
        (dev / name).mkdir()
    for name in DEVICES:
        subprocess.run(('cp', '-a', f'/dev/{name}', str(dev / name)),
                       check=True)
    for name in PLACEHOLDERS:
        subprocess.run(('cp', '-a', '/dev/null', str(dev / name)), check=True)
    for name, target in LINKS.items():
        (dev / name).symlink_to(target)
    mount('-t', 'devpts', '-o', 'newinstance,ptmxmode=0666,mode=620',
          'devpts', str(dev / 'pts'))
    mount('-t', 'tmpfs', 'tmpfs', str(dev / 'shm'))
    mount('--rbind', str(dev), '/dev')


def main(name: str, directory: str, mount_point: str) -> None:
    own = pathlib.Path(directory)
    socket.sethostname(name)
    mount('--make-rprivate', '/')
    mount('-t', 'proc', 'proc', '/proc')
    mount('-t', 'sysfs', 'sysfs', '/sys')
    mount('-t', 'tmpfs', '-o', 'mode=755', 'tmpfs', '/run')
    for place in ('lock', 'libvirt', 'openvswitch', 'sshd'):
        pathlib.Path('/run', place).mkdir()
    mount_private(own, mount_point)
    mount_devices(own / 'dev')
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    (own / 'ready').touch()
    while True:
        signal.pause()


if __name__ == '__main__':
    os.umask(0o022)
    main(*sys.argv[1:])
