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
"""Migrate a guest that writes to XFS while only one host has a fixed Nova.

A fixed source completes the disk before the migration, as an unmodified
destination does not fetch its base; a fixed destination fetches the base from
the source's host name.
"""

from __future__ import annotations

from lab import guest
from lab import scenario
from lab.scenarios import ephemeral
from lab.scenarios import ephemeral_xfs
from lab import topology

_BY_SOURCE = scenario.Said(
    scenario.SOURCE, 'nova-compute',
    r'made complete (by (QEMU|a block pull) )?in [\d.]+ s')


class EphemeralMixed(ephemeral_xfs.EphemeralXfs):
    name = 'ephemeral-mixed'
    title = 'One host has a fixed Nova; 20 GB XFS under writing.'
    # A copy of a base costs less than a block pull.
    ephemerals = (guest.Ephemeral(20),)
    networks = (topology.MANAGEMENT, topology.MIGRATION)
    expected = {
        scenario.SOURCE_ONLY: scenario.Arrives(
            said=(_BY_SOURCE,), text=ephemeral.KEEPS.text),
        scenario.DESTINATION_ONLY: ephemeral.KEEPS,
    }
