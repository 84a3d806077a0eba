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
"""Keep the contents of the config drive in a live migration.

libvirt does not copy read-only disks, so an ISO config drive has to be on the
destination before the guest. Up to 30.0 Nova copied it there. Since 30.1 Nova
makes an empty file of the same size instead, and the guest then reads zeros. A
hard reboot does not help, as Nova builds a config drive only if there is no
file.

With the fix the destination fetches the config drive from the source first,
ISO or vfat. If an earlier migration has already filled a config drive with
zeros, the fix logs a warning before the next migration and rebuilds the config
drive in a hard reboot: from the present metadata, without the files and the
password of the first boot, which Nova does not keep.
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
from nova_migfix.storage import image_file
from nova_migfix.transport import fetch

LOG = logging.getLogger(__name__)

FILE = 'disk.config'

# suffix of a config drive of zeros while Nova builds a new one
_ASIDE = '.zeros'


class ConfigDrive(base.Fix):
    name = 'config_drive'
    bug = 'an ISO config drive arrives as zeros'
    fixed_upstream_marker = (
        'nova.virt.libvirt.driver.LibvirtDriver.'
        '_rebuild_empty_configdrive')
    # Nova 29 copies the ISO itself; with the patches, from the right address.
    fixed_upstream_marker_29 = (
        'nova.virt.libvirt.driver.LibvirtDriver._get_source_host')

    def check_can_live_migrate_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        path = _path(instance)
        if _is_empty(path, instance):
            LOG.warning('The config drive %(path)s contains only zeros '
                        '(%(bug)s); hard reboot the instance to rebuild it',
                        {'path': path, 'bug': self.bug}, instance=instance)

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
        _restore(path)
        if not (_is_empty(path, instance)
                and configdrive.required_by(instance)):
            return
        try:
            with _moved_aside(path):
                driver._create_configdrive(
                    context, instance, libvirt_driver.InjectionInfo(
                        network_info=network_info, files=None,
                        admin_pass=None))
        except Exception as error:
            # Nova starts the guest with the existing file.
            LOG.warning('The config drive contains only zeros (%(bug)s) and '
                        'could not be rebuilt: %(error)s', {
                            'bug': self.bug, 'error': error},
                        instance=instance)
            return
        LOG.info('The config drive contained only zeros (%(bug)s) and has '
                 'been rebuilt, without the files and the password of the '
                 'first boot', {'bug': self.bug}, instance=instance)


def _path(instance: Any) -> str:
    directory: str = libvirt_utils.get_instance_path(instance)
    return os.path.join(directory, FILE)


def _is_empty(path: str, instance: Any) -> bool:
    try:
        return image_file.is_zeros(path)
    except OSError as error:
        LOG.info('Cannot determine whether the config drive %(path)s '
                 'contains only zeros: %(error)s',
                 {'path': path, 'error': error}, instance=instance)
        return False


@contextlib.contextmanager
def _moved_aside(path: str) -> Iterator[None]:
    """Rename a file; restore it unless the context makes a new one."""
    os.rename(path, path + _ASIDE)
    try:
        yield
    finally:
        _restore(path)


def _restore(path: str) -> None:
    """Undo :func:`_moved_aside`, also after nova-compute was killed."""
    if os.path.exists(path + _ASIDE):
        if os.path.exists(path):
            os.unlink(path + _ASIDE)
        else:
            os.rename(path + _ASIDE, path)


def _keep(instance: Any, target: str, copy: str) -> None:
    shutil.move(copy, target)
    LOG.info('The config drive of the source is kept where Nova would have '
             'made an empty file (%s)', ConfigDrive.bug, instance=instance)
