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
copied is active, as the NBD server on the destination needed it. A CD-ROM
drive, such as the config drive, and a disk on shared storage are not copied.

QEMU locks an active image, so an image without locks is inactive. Images on
the network have no file that shows it: there the CPU time of the vCPUs
decides. A guest whose vCPUs have used none has not run since its QEMU was
started, so it was paused as it arrived. Without KVM, libvirt does not know
that time.
"""

from __future__ import annotations

from typing import Any

from nova.compute import power_state
from nova import exception
from nova.i18n import _
from oslo_utils import units

from nova_migfix.abi import image_lock
from nova_migfix.fixes import base

# The first QEMU that inactivates only active images.
_REPAIRED_QEMU = (10, 0, 0)

# CPU time in nanoseconds that a vCPU needs for no more than its state, which
# takes less than a millisecond with QEMU 7.2.
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
                or not _has_inactive_image(guest)):
            return
        raise exception.MigrationPreCheckError(reason=_(
            'Instance %(uuid)s is paused and has not run since its last live '
            'migration, and QEMU before 10.0 on %(host)s would abort. Unpause '
            'it, and pause it again; or migrate it cold.') % {
                'uuid': instance.uuid, 'host': instance.host})


def _has_inactive_image(guest: Any) -> bool:
    are_active = [_is_active(disk) for disk in guest.get_all_disks()
                  if disk.source_path or disk.source_name]
    if None in are_active:
        are_active.append(_has_run(guest))
    return False in are_active


def _is_active(disk: Any) -> bool | None:
    """Return whether QEMU uses the image of a disk, None if that is unknown.

    :param disk: nova.virt.libvirt.config.LibvirtConfigGuestDisk
    """
    if disk.source_type == 'network':
        return None
    try:
        return image_lock.is_locked(disk.source_path)
    except OSError:
        return None


def _has_run(guest: Any) -> bool:
    return any(vcpu.time > _LOADED for vcpu in guest.get_vcpus_info())
