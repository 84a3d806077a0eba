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

"""Puts our driver where Nova's tests find Nova's."""

import importlib

from nova.objects import migrate_data as nova_data
from nova.virt import libvirt
from nova.virt.libvirt import driver

from nova_migfix import osvif
from nova_migfix import peer

NovaDriver = driver.LibvirtDriver


class _Constructor:
    """Keeps Nova's constructor from calling itself.

    Up to 32 it says ``super(LibvirtDriver, self).__init__(virtapi)``, and
    the name now leads to the driver that is being constructed.
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
    """Make every ``LibvirtDriver`` of Nova's libvirt package ours.

    Tests put a static method of the class aside and back by its name, which
    makes a plain function of one that is inherited. So the class which they
    find has all of them itself, as Nova's has.

    They also make migrate_data by its module's name and ask for the class of
    the registry, where ours is. Nova itself makes it by the latter only.
    """
    osvif.MigfixPlugin.load('migfix')
    ours = importlib.import_module(osvif.DRIVER).LibvirtDriver
    static = {name: vars(ours).get(name, method)
              for name, method in vars(NovaDriver).items()
              if isinstance(method, (classmethod, staticmethod))}
    libvirt.LibvirtDriver = driver.LibvirtDriver = type(
        'LibvirtDriver', (_Constructor, ours), static)
    nova_data.LibvirtLiveMigrateData = peer.LibvirtLiveMigrateData
