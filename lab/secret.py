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


"""Secrets of libvirt, and a disk that needs one."""

from __future__ import annotations

import base64
import pathlib

from lab import host

_PASSPHRASE = 'lab'

_SECRET = '''
<secret ephemeral='no' private='no'>
  <uuid>{name}</uuid>
</secret>
'''

# libvirt regards a disk that is only read as shared between the hosts, and
# Nova does not copy it.
_DISK = '''
<disk type='file' device='disk'>
  <driver name='qemu' type='raw'/>
  <source file='{path}'>
    <encryption format='luks'>
      <secret type='passphrase' uuid='{name}'/>
    </encryption>
  </source>
  <target dev='vdz' bus='virtio'/>
  <readonly/>
</disk>
'''


def define(on: host.Host, name: str) -> None:
    """Define a secret on a host.

    :param name: its UUID
    """
    value = base64.b64encode(_PASSPHRASE.encode()).decode()
    on.run('virsh', 'secret-define', on.write(
        'etc/secret.xml', _SECRET.format(name=name)))
    on.run('virsh', 'secret-set-value', name, '--file', on.write(
        'etc/secret.base64', value))


def undefine(on: host.Host, name: str) -> None:
    on.run('virsh', 'secret-undefine', name)


def attach_disk(on: host.Host, domain: str, name: str,
                path: pathlib.Path) -> None:
    """Make an encrypted disk and attach it to a running guest.

    :param name: UUID of the secret with its passphrase
    :param path: of the disk, the same on both hosts
    """
    on.run('qemu-img', 'create', '-f', 'luks', '--object',
           f'secret,id=key,data={_PASSPHRASE}', '-o',
           'key-secret=key,iter-time=10', path, '1M')
    on.run('virsh', 'attach-device', domain, on.write(
        'etc/disk.xml', _DISK.format(name=name, path=path)), '--live')
