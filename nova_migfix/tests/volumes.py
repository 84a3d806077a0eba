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

"""Guests with a volume, for unit tests."""

import types
from unittest import mock

from nova import objects
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt.volume import volume

# Nova's modules expect it before the first use of an object.
objects.register_all()

INSTANCE = '5f1d0a5e-0000-4000-8000-00000000abcd'
VOLUME = 'aaaaaaaa-0000-4000-8000-000000000001'
OTHER_VOLUME = 'aaaaaaaa-0000-4000-8000-000000000002'
SOURCE_PATH = '/dev/disk/by-path/source-lun-1'
DESTINATION_PATH = '/dev/disk/by-path/destination-lun-7'


def disk(elements='', serial=VOLUME, device='disk', path=SOURCE_PATH,
         kind='block'):
    """Return the disk of a volume in a running guest."""
    if '<driver' not in elements:
        elements += '<driver name="qemu" type="raw" cache="none"/>'
    if serial:
        elements += f'<serial>{serial}</serial>'
    return (f'<disk type="{kind}" device="{device}"><source dev="{path}"/>'
            f'<target dev="vdb" bus="virtio"/>{elements}</disk>')


def domain(*disks):
    return f'<domain><devices>{"".join(disks)}</devices></domain>'


def instance():
    return objects.Instance(
        uuid=INSTANCE, image_ref='', system_metadata={},
        flavor=objects.Flavor(vcpus=1, extra_specs={}))


def connected(data=(), serial=VOLUME, kind='disk'):
    """Return a volume that the destination has connected."""
    info = objects.LibvirtLiveMigrateBDMInfo(
        serial=serial, bus='virtio', dev='vdb', type=kind, format=None,
        boot_index=None)
    info.connection_info = {
        'driver_volume_type': 'local', 'serial': serial,
        'data': {'device_path': DESTINATION_PATH, **dict(data)}}
    return info


def driver(**cachemodes):
    """Return a driver of Nova that can configure volumes, and no more.

    :param cachemodes: type of storage and cache mode, of
        ``[libvirt] disk_cachemodes``
    """
    nova_class = libvirt_driver.LibvirtDriver
    fake = mock.create_autospec(nova_class, instance=True)
    for name in ('_get_volume_config', '_set_cache_mode'):
        setattr(fake, name, types.MethodType(getattr(nova_class, name), fake))
    fake.disk_cachemodes = cachemodes
    if hasattr(fake, '_sev_enabled'):
        fake._sev_enabled.return_value = False
    host = mock.Mock()
    host.find_secret.return_value = None
    fake._get_volume_driver.return_value = volume.LibvirtVolumeDriver(host)
    return fake
