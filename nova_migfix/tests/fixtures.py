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

"""Fixtures that several tests share."""

import fixtures
from nova.objects import base
from nova.objects import migrate_data as nova_migrate_data

from nova_migfix import migrate_data


class PatchedMigrateData(fixtures.Fixture):
    """Our migrate_data in the place of Nova's, as in a patched service."""

    def _setUp(self):
        self.addCleanup(base.NovaObjectRegistry.register,
                        nova_migrate_data.LibvirtLiveMigrateData)
        migrate_data.register()
