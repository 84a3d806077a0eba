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
"""The config drive that arrives has the bytes of the one that left.

libvirt does not copy read-only disks, so an ISO config drive has to be on the
destination before the guest. Up to 30.0 Nova copied it there; since 30.1 it
makes an empty file of that size instead, and the guest reads zeros from then
on. A hard reboot does not help, as Nova builds a config drive only where there
is no file.

With the fix the destination has the file from the source beforehand, ISO or
vfat. A config drive that a migration has already emptied is reported before
the next one, and built again by a hard reboot: from the metadata as they are
now, without the files and the password that were given at the first boot,
which Nova does not keep.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import functools
import os
import shutil
from typing import Any

from nova.virt import configdrive
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from nova_migfix.fixes import base
from nova_migfix.storage import disks as local_disks
from nova_migfix.transport import fetch

LOG = logging.getLogger(__name__)

FILE = 'disk.config'

# the end of the name that a file of zeros has while another is made
_ASIDE = '.zeros'


class ConfigDrive(base.Fix):
    name = 'config_drive'
    bug = 'an ISO config drive arrives as zeros'
    mended_by = (
        'nova.virt.libvirt.driver.LibvirtDriver.'
        '_rebuild_empty_configdrive')
    # Nova 29 copies the ISO itself; by the patches from the right address.
    mended_in_29_by = 'nova.virt.libvirt.driver.LibvirtDriver._get_source_host'

    def check_can_live_migrate_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        path = _path(instance)
        if _is_empty(path, instance):
            LOG.warning('The config drive %(path)s has nothing but zeros '
                        '(%(bug)s); reboot the instance hard to have it built '
                        'again', {'path': path, 'bug': self.bug},
                        instance=instance)

    def files_to_fetch(
        self, instance: Any, instance_dir: str, disks: list[dict[str, Any]],
    ) -> Iterable[fetch.FileRequest]:
        for disk in disks:
            if os.path.basename(disk['path']) == FILE:
                yield fetch.FileRequest(
                    disk['path'], (FILE,), functools.partial(
                        _keep, instance, os.path.join(instance_dir, FILE)))

    def hard_reboot(
        self, driver: Any, context: Any, instance: Any, network_info: Any,
        block_device_info: Any,
    ) -> None:
        path = _path(instance)
        _bring_back(path)
        if not (_is_empty(path, instance)
                and configdrive.required_by(instance)):
            return
        try:
            with _put_aside(path):
                driver._create_configdrive(
                    context, instance, libvirt_driver.InjectionInfo(
                        network_info=network_info, files=None,
                        admin_pass=None))
        except Exception as error:
            # Nova starts the guest with what is there.
            LOG.warning('The config drive is nothing but zeros (%(bug)s) and '
                        'could not be built again: %(error)s', {
                            'bug': self.bug, 'error': error},
                        instance=instance)
            return
        LOG.info('The config drive was nothing but zeros (%(bug)s) and has '
                 'been built again; files and password of the first boot are '
                 'not in it', {'bug': self.bug}, instance=instance)


def _path(instance: Any) -> str:
    directory: str = libvirt_utils.get_instance_path(instance)
    return os.path.join(directory, FILE)


def _is_empty(path: str, instance: Any) -> bool:
    try:
        return local_disks.is_zeros(path)
    except OSError as error:
        LOG.info('Nobody can say whether the config drive %(path)s has '
                 'anything: %(error)s', {'path': path, 'error': error},
                 instance=instance)
        return False


@contextlib.contextmanager
def _put_aside(path: str) -> Iterator[None]:
    """Move a file out of the way; it comes back if no other is made."""
    os.rename(path, path + _ASIDE)
    try:
        yield
    finally:
        _bring_back(path)


def _bring_back(path: str) -> None:
    """Undo :func:`_put_aside`, also if nova-compute has died meanwhile."""
    if os.path.exists(path + _ASIDE):
        if os.path.exists(path):
            os.unlink(path + _ASIDE)
        else:
            os.rename(path + _ASIDE, path)


def _keep(instance: Any, target: str, copy: str) -> None:
    shutil.move(copy, target)
    LOG.info('The config drive of the source is kept where Nova would have '
             'made an empty file (%s)', ConfigDrive.bug, instance=instance)
