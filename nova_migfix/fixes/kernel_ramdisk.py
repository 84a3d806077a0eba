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
"""Block migrate guests that boot from a kernel image.

``LibvirtDriver._fetch_instance_kernel_ramdisk`` fetches kernel and ramdisk as
if they were disk images. The inspection of disk images that came with
OSSA-2024-001 takes a kernel for a disk image of an unknown format and raises
ImageUnacceptable. The first boot does not inspect them.

With the fix the destination fetches both files from the source, which is the
only host that has them if Glance has lost them. Nova fetches missing files.
"""

from __future__ import annotations

from collections.abc import Iterable
import functools
import os
import shutil
from typing import Any

from oslo_log import log as logging

from nova_migfix.fixes import base
from nova_migfix.transport import fetch

LOG = logging.getLogger(__name__)

# attribute of the instance: file name in the instance's directory
_FILES = {'kernel_id': 'kernel', 'ramdisk_id': 'ramdisk'}


class KernelRamdisk(base.Fix):
    name = 'kernel_ramdisk'
    bug = 'kernel and ramdisk are inspected as disk images'
    fixed_upstream_marker = (
        'nova.virt.libvirt.driver.LibvirtDriver._try_fetch_raw_image')
    # Nova 29 takes a kernel for a raw disk and accepts it. If Glance has lost
    # the kernel, Nova 29 fetches it; with the patches, from the right address.
    fixed_upstream_marker_29 = (
        'nova.virt.libvirt.driver.LibvirtDriver._get_source_host')

    def files_to_fetch(
        self, instance: Any, instance_dir: str, disks: list[dict[str, Any]],
    ) -> Iterable[fetch.FileRequest]:
        if not instance.kernel_id:
            return
        source_dir = (os.path.dirname(disks[0]['path']) if disks
                      else instance_dir)
        for attribute, name in _FILES.items():
            target = os.path.join(instance_dir, name)
            if getattr(instance, attribute) and not os.path.exists(target):
                yield fetch.FileRequest(
                    os.path.join(source_dir, name), (name,),
                    functools.partial(_keep, instance, target))


def _keep(instance: Any, target: str, copy: str) -> None:
    shutil.move(copy, target)
    LOG.info('%(name)s taken from the source where Nova would have fetched a '
             'disk image (%(bug)s)', {
                 'name': os.path.basename(target), 'bug': KernelRamdisk.bug},
             instance=instance)
