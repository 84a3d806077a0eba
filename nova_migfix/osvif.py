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

"""Make ``nova.virt.migfix`` importable, so that Nova can load the driver.

Nova imports only ``nova.virt.<compute_driver>``, and a file of ours inside
Nova's package would break an editable installation of Nova. nova-compute loads
every ``os_vif`` plugin before it loads its driver. os-vif does not catch
exceptions while it does so: an exception here stops nova-compute. So this
module is small and imports nothing from Nova.
"""

from __future__ import annotations

from collections.abc import Sequence
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

from os_vif import exception
from os_vif.objects import host_info
from os_vif.objects import instance_info as osv_instance
from os_vif.objects import vif as osv_vif
from os_vif import plugin

DRIVER = 'nova.virt.migfix'


class DriverFinder(importlib.abc.MetaPathFinder):
    """Find one module, the one that Nova imports for ``compute_driver``.

    Python executes the module under that name, so that its logger is a child
    of ``nova`` and Nova's default log levels apply to it.
    """

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != DRIVER:
            return None
        spec = importlib.util.find_spec('nova_migfix.driver')
        if spec is None or spec.origin is None:
            return None
        return importlib.util.spec_from_file_location(DRIVER, spec.origin)


class MigfixPlugin(plugin.PluginBase):
    """An os-vif plugin that plugs no VIF and only adds the finder."""

    @classmethod
    def load(cls, plugin_name: str) -> MigfixPlugin:
        if not any(isinstance(finder, DriverFinder)
                   for finder in sys.meta_path):
            sys.meta_path.append(DriverFinder())
        return super().load(plugin_name)

    def describe(self) -> host_info.HostPluginInfo:
        return host_info.HostPluginInfo(
            plugin_name='migfix', vif_info=[])

    def plug(
        self,
        vif: osv_vif.VIFBase,
        instance_info: osv_instance.InstanceInfo,
    ) -> None:
        raise exception.NoMatchingPlugin(plugin_name='migfix')

    unplug = plug
