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

"""Put the plugin's driver where Nova's tests find Nova's."""

import importlib

from nova.objects import migrate_data as nova_data
from nova.virt import libvirt
from nova.virt.libvirt import driver

from nova_migfix import osvif
from nova_migfix import peer

NovaDriver = driver.LibvirtDriver


class _Constructor:
    """Keep Nova's constructor from calling itself.

    Up to Nova 32 it calls ``super(LibvirtDriver, self).__init__(virtapi)``,
    and the name now refers to the driver that is being constructed.
    """

    _under_construction = False

    def __init__(self, virtapi, read_only=False):
        if self._under_construction:
            super(NovaDriver, self).__init__(virtapi)
            return
        self._under_construction = True
        super().__init__(virtapi, read_only)
        del self._under_construction


def install():
    """Replace ``LibvirtDriver`` in all of Nova's libvirt package.

    Tests save and restore a static method of the class by its name, which
    turns an inherited one into a plain function. So the class that they find
    defines all static methods itself, as Nova's does.

    Tests also create migrate_data by the name in its module and expect the
    class of the registry, which is the plugin's. Nova creates it only by the
    registry.
    """
    osvif.MigfixPlugin.load('migfix')
    ours = importlib.import_module(osvif.DRIVER).LibvirtDriver
    static = {name: vars(ours).get(name, method)
              for name, method in vars(NovaDriver).items()
              if isinstance(method, (classmethod, staticmethod))}
    libvirt.LibvirtDriver = driver.LibvirtDriver = type(
        'LibvirtDriver', (_Constructor, ours), static)
    nova_data.LibvirtLiveMigrateData = peer.LibvirtLiveMigrateData
