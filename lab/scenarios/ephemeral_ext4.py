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
"""Migrate a guest that writes to a large ext4 ephemeral disk.

The metadata of a small ext4 happen to lie in clusters that are copied: only a
large one shows the damage. The amount of copied data must not grow with the
size.
"""

from __future__ import annotations

from lab import guest
from lab import scenario
from lab.scenarios import ephemeral
from lab.scenarios import ephemeral_xfs


class EphemeralExt4(ephemeral_xfs.EphemeralXfs):
    name = 'ephemeral-ext4'
    title = '200 GB ext4 under writing, no base on the destination.'
    kind = 'ext4'
    ephemerals = (guest.Ephemeral(200),)
    cases = {'no base there': ephemeral.forget_bases}
    expected = {scenario.NEITHER: ephemeral.DAMAGES,
                scenario.BOTH: ephemeral.KEEPS}
