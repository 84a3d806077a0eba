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

"""Refuse a second live migration of a paused guest that would kill its QEMU.

The destination of a live migration leaves the images of a paused guest
inactive until the guest resumes. QEMU before 10.0 aborts if it has to
make them inactive again at the end of a second migration: ``Assertion
`!(bs->open_flags & BDRV_O_INACTIVE)' failed``. Only a disk that libvirt
copies is active again, as the copy job needs it. A CD-ROM drive, such as the
config drive, and a disk on shared storage are not copied.

A vCPU that has used no CPU time has not run since QEMU was started, so the
guest was paused as it arrived. The state of a vCPU is loaded in less than a
millisecond; this was measured with QEMU 7.2 without KVM.
"""

from __future__ import annotations

from typing import Any

from nova.compute import power_state
from nova import exception
from nova.i18n import _
from oslo_utils import units

from nova_migfix.fixes import base
from nova_migfix import peer

# The first QEMU that inactivates only active images.
_REPAIRED_QEMU = (10, 0, 0)

# CPU time in nanoseconds that a vCPU needs for no more than its state.
_LOADED = 50 * units.M


class Paused(base.Fix):
    name = 'paused'
    bug = 'a second live migration of a paused guest kills it (QEMU before 10)'

    def check_can_live_migrate_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        if host.has_min_version(hv_ver=_REPAIRED_QEMU):
            return
        guest = host.get_guest(instance)
        if (guest.get_power_state(host) != power_state.PAUSED
                or _has_run(guest)
                or _copies_all_disks(guest, migrate_data)):
            return
        raise exception.MigrationPreCheckError(reason=_(
            'instance %(uuid)s is paused and has not run since its last live '
            'migration. QEMU before 10.0 would abort if it left %(host)s now, '
            'and the guest would be lost. Unpause the instance, and pause it '
            'again if it has to stay paused; or migrate it cold.') % {
                'uuid': instance.uuid, 'host': instance.host})


def _has_run(guest: Any) -> bool:
    return any(vcpu.time > _LOADED for vcpu in guest.get_vcpus_info())


def _copies_all_disks(guest: Any, migrate_data: Any) -> bool:
    """Return whether libvirt copies each disk to the destination."""
    return bool(peer.get(migrate_data, 'block_migration')) and all(
        (disk.source_type, disk.source_device) == ('file', 'disk')
        for disk in guest.get_all_disks())
