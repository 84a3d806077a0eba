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
"""An ephemeral disk that arrives has the bytes of the one that left.

With qcow2 an ephemeral disk is an overlay on a backing file that Nova makes
with mkfs on each host. A migration moves the overlay only; on the destination
it lies on a backing file that Nova has made there, whose label, file system,
UUID and metadata are others (LP 2061701 is about the label). A running guest
reads a mixture of both: XFS shuts down at once, ext4 of more than some GiB
loses its journal, and a disk that was never written to has another UUID. So
does a cold migration or resize, and a hard reboot after the image cache has
removed the backing file. No release up to 34 keeps the bytes.

With the fix a new disk has no backing file, see
:mod:`nova_migfix.storage.image_backend`. An old disk keeps its backing file,
see :mod:`nova_migfix.storage.image_cache`, until the guest moves, and is
complete afterwards:

- live migration: the destination fetches the source's backing file and makes a
  complete disk of it, on which libvirt then writes what the guest has
  written;
- to a destination that does not say that it fetches backing files, or cannot
  fetch one, the source completes the running guest's disk first, by a block
  pull whose time grows with the size of the disk;
- cold migration and resize: the source completes the disk before it stops the
  guest, or the destination does if the source has not.

A backing file can have been lost before the plugin came. While the guest runs,
QEMU has it open still, and nobody else: whatever moves or stops the guest
completes the disk first.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Mapping
import functools
import itertools
import operator
import os
import time
from typing import Any

from nova.compute import task_states
from nova import exception
from nova.i18n import _
from nova.virt import driver as virt_driver
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import units

from nova_migfix.fixes import base
from nova_migfix import peer
from nova_migfix.storage import completion
from nova_migfix.storage import disks as local_disks
from nova_migfix.storage import file_system
from nova_migfix.storage import image_backend
from nova_migfix.storage import image_cache
from nova_migfix.transport import fetch

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

# what a destination tells: a key of dest_capabilities
FETCHES_BASES = 'pulls_ephemeral_bases'

# a key in the description of a disk: where its backing file is
BACKING_PATH = 'backing_path'

# What is raised when a disk or a record cannot be read.
_UNREADABLE = (OSError, ValueError, exception.NovaException)

_LOST = _('its backing file is missing')
_NOT_FETCHING = _('the destination has not said that it fetches backing files')
_NOT_FETCHED = _('the destination could not fetch the backing file')


class Ephemeral(base.Fix):
    name = 'ephemeral'
    bug = 'ephemeral disks get another backing file (LP 2061701)'
    mended_by = 'nova.virt.libvirt.ephemeral'

    def __init__(self) -> None:
        # Instances whose destination fetches backing files: the precheck says
        # so, and the migration needs it when it begins. An entry that is lost
        # costs time only.
        self._fetched_by_destination: set[str] = set()

    def extend_driver(self, driver: Any) -> None:
        image_backend.extend(driver.image_backend.BACKEND)
        driver.image_cache_manager = image_cache.ImageCacheManager()
        driver._create_ephemeral = file_system.whole(
            file_system.sparse(driver._create_ephemeral))
        driver._create_swap = file_system.whole(driver._create_swap)

    # -- live migration -----------------------------------------------------

    def dest_capabilities(self) -> Mapping[str, str]:
        return {FETCHES_BASES: 'yes'}

    def check_can_live_migrate_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        said = peer.get(
            migrate_data, peer.DEST_CAPABILITIES) or {}
        self._fetched_by_destination.discard(instance.uuid)
        if FETCHES_BASES in said:
            self._fetched_by_destination.add(instance.uuid)

    def prepare_disks(
        self, instance: Any, host: Any, has_failed: bool = False,
    ) -> bool:
        overlays = _overlays_of(instance)
        if has_failed:
            return _complete_after_failure(instance, host, overlays)
        if instance.uuid in self._fetched_by_destination:
            self._fetched_by_destination.discard(instance.uuid)
            _pull(instance, host, filter(_needs_completing, overlays), _LOST)
        else:
            _pull(instance, host, (disk for disk in overlays
                                   if not disk.is_swap), _NOT_FETCHING)
        return False

    def describe_disks(self, disks: list[dict[str, Any]]) -> None:
        for disk in disks:
            if _is_made_here(disk) and os.path.exists(disk['path']):
                header = local_disks.qcow2_header(disk['path'])
                backing = header.backing if header else ''
                # '' where the disk has been completed since
                disk['backing_file'] = os.path.basename(backing)
                disk[BACKING_PATH] = backing

    def files_to_fetch(
        self, instance: Any, instance_dir: str, disks: list[dict[str, Any]],
    ) -> Iterable[fetch.FileRequest]:
        overlays = sorted(filter(_is_made_here, disks), key=_backing_path)
        for path, above in itertools.groupby(overlays, _backing_path):
            sizes = {os.path.basename(disk['path']): disk['virt_disk_size']
                     for disk in above}
            yield fetch.FileRequest(path, tuple(sizes), functools.partial(
                _make_complete, instance, instance_dir, sizes))

    # -- cold migration and resize ------------------------------------------

    def migrate_disk_and_power_off(
        self, driver: Any, instance: Any, dest: str, block_device_info: Any,
    ) -> None:
        instance_dir = libvirt_utils.get_instance_path(instance)
        overlays = list(local_disks.ephemeral_overlays(instance_dir))
        if not overlays:
            return
        if driver._is_path_shared_with(dest, instance_dir):
            overlays = list(filter(_needs_completing, overlays))
        held = _held(instance, driver._host, overlays)
        _pull(instance, driver._host, held, _('it is migrated cold'))
        _complete_stopped(driver, instance, block_device_info, [
            disk for disk in overlays if disk not in held])

    def finish_migration(
        self, instance: Any, instance_dir: str, source: str,
    ) -> None:
        overlays = list(local_disks.ephemeral_overlays(instance_dir))
        _name_no_base_of_this_host(instance_dir, overlays)
        try:
            _pull_bases(instance, instance_dir, overlays, source)
        except exception.MigrationError:
            if any(map(local_disks.is_written, overlays)):
                raise
            LOG.warning('The guest has written to none of its ephemeral '
                        'disks; they get new file systems', exc_info=True,
                        instance=instance)

    # -- either host --------------------------------------------------------

    def power_off(self, instance: Any, host: Any) -> None:
        # In a rebuild Nova throws the disks away next.
        if instance.task_state != task_states.REBUILDING:
            _pull(instance, host, _held(
                instance, host, _lacking_bases(instance)), _LOST)

    def hard_reboot(
        self, driver: Any, context: Any, instance: Any, network_info: Any,
        block_device_info: Any,
    ) -> None:
        # Nova would ask for another label, and for the default format.
        formats = _guest_formats(block_device_info)
        for disk in _lacking_bases(instance):
            _make_again(driver, instance, disk, formats)


def _lacking_bases(instance: Any) -> list[local_disks.Overlay]:
    """Return the ephemeral disks without bases, as far as can be found."""
    try:
        return [disk for disk in _overlays_of(instance)
                if local_disks.lacks_backing_file(disk) and not disk.is_swap]
    except _UNREADABLE as error:
        LOG.warning('Nobody can say whether ephemeral disks have their '
                    'backing files: %s', error, instance=instance)
        return []


# -- live migration, source -------------------------------------------------

def _complete_after_failure(
    instance: Any, host: Any, overlays: list[local_disks.Overlay],
) -> bool:
    if overlays:
        LOG.warning('The destination could not prepare for the guest. '
                    'Where it cannot fetch backing files by ssh, disks '
                    'are completed here first, which takes longer.',
                    instance=instance)
    _pull(instance, host, overlays, _NOT_FETCHED)
    return bool(overlays)



def _overlays_of(instance: Any) -> list[local_disks.Overlay]:
    return list(local_disks.overlays(
        libvirt_utils.get_instance_path(instance)))


def _needs_completing(disk: local_disks.Overlay) -> bool:
    """Say whether a disk has lost its base, or has been half completed."""
    return local_disks.lacks_backing_file(disk) or local_disks.is_on_copy(disk)


def _held(
    instance: Any, host: Any, disks: list[local_disks.Overlay],
) -> list[local_disks.Overlay]:
    """Return those that the guest's QEMU has open, with the backing files."""
    if not disks:
        return []
    try:
        guest = host.get_guest(instance)
    except exception.InstanceNotFound:
        return []
    if not guest.is_active():
        return []
    # A rescued guest may run without.
    return [disk for disk in disks
            if guest.get_disk(disk.path) or guest.get_disk(disk.copy)]


def _pull(instance: Any, host: Any, disks: Iterable[local_disks.Overlay],
          why: str) -> None:
    """Complete disks of a running guest.

    :raises MigrationError: one could not be completed; the guest runs on
    """
    for disk in disks:
        LOG.info('%(disk)s is completed by QEMU: %(why)s',
                 {'disk': disk.name, 'why': why}, instance=instance)
        begin = time.monotonic()
        try:
            completion.complete(host.get_guest(instance), disk)
        except Exception as error:
            raise _incomplete(instance, disk, why, error) from error
        LOG.info('%(disk)s: made complete by QEMU in %(time).1f s',
                 {'disk': disk.name, 'time': time.monotonic() - begin},
                 instance=instance)


def _incomplete(instance: Any, disk: local_disks.Overlay, why: str,
                error: Exception) -> exception.MigrationError:
    return exception.MigrationError(reason=_(
        'The disk %(disk)s of instance %(uuid)s cannot be made complete, '
        'which is needed as %(why)s: %(error)s. The guest is left as it is. '
        'Make space here; if the backing file %(base)s is lost and the guest '
        'is off, get that very file back from a backup.') % {
            'disk': disk.name, 'uuid': instance.uuid, 'why': why,
            'base': disk.backing, 'error': fetch.reason(error)})


# -- live migration, destination --------------------------------------------

def _is_made_here(disk: dict[str, Any]) -> bool:
    return local_disks.has_local_base_name(disk['backing_file'])


def _backing_path(disk: dict[str, Any]) -> str:
    """Return where the source has a disk's backing file.

    A source without the plugin does not say so; there Nova places it beside
    the instances' directories.

    :raises MigrationError: the source names another file than that
    """
    name = os.path.basename(disk['backing_file'])
    path: str = disk.get(BACKING_PATH) or os.path.join(
        os.path.dirname(os.path.dirname(disk['path'])),
        CONF.image_cache.subdirectory_name, name)
    if os.path.basename(path) != name:
        raise exception.MigrationError(reason=_(
            'The source says that the backing file of %(disk)s is %(path)r, '
            'and that it is %(name)r') % {
                'disk': disk['path'], 'path': path, 'name': name})
    return path


def _make_complete(instance: Any, instance_dir: str, sizes: Mapping[str, int],
                   copy: str) -> None:
    for name, size in sizes.items():
        _require_at_most(copy, size)
        local_disks.flatten(
            copy, 'raw', os.path.join(instance_dir, name), size)
        LOG.info('%(name)s has the bytes of the source\'s %(base)s '
                 'where Nova would have made a file system (%(bug)s)', {
                     'name': name, 'base': os.path.basename(copy),
                     'bug': Ephemeral.bug}, instance=instance)


def _require_at_most(copy: str, size: int) -> None:
    """Refuse a backing file that no disk of this size can have.

    :param size: of the disk, in bytes
    :raises ValueError: the file is larger
    """
    found = os.path.getsize(copy)
    if found > size:
        raise ValueError(f'{os.path.basename(copy)} has {found} bytes, more '
                         f'than the disk, which has {size}')


# -- cold migration ---------------------------------------------------------

def _complete_stopped(
    driver: Any, instance: Any, block_device_info: Any,
    disks: Iterable[local_disks.Overlay],
) -> None:
    """Source: complete disks of a guest that is off.

    :raises MigrationError: one could not be completed; it is as it was
    """
    # A deletion of the instance ends these processes.
    jobs = {'on_execute': lambda process: driver.job_tracker.add_job(
                instance, process.pid),
            'on_completion': lambda process: driver.job_tracker.remove_job(
                instance, process.pid)}
    formats = _guest_formats(block_device_info)
    for disk in disks:
        begin = time.monotonic()
        try:
            if local_disks.lacks_backing_file(disk):
                _make_again(driver, instance, disk, formats)
            else:
                _have_named(driver, instance, disk)
                completion.convert(disk, **jobs)
        except (*_UNREADABLE, processutils.ProcessExecutionError) as error:
            raise _incomplete(instance, disk, _('it is migrated cold'),
                              error) from error
        LOG.info('%(name)s: made complete without its backing file '
                 '%(base)s in %(time).2f s', {
                     'name': disk.name, 'base': disk.backing,
                     'time': time.monotonic() - begin}, instance=instance)


def _have_named(driver: Any, instance: Any, disk: local_disks.Overlay) -> None:
    """Have the definition of a guest that is off name a disk, and no copy.

    It names the copy if the guest went off before it went on from there, and
    Nova would move that file.
    """
    if local_disks.is_on_copy(disk):
        xml = driver._host.get_guest(instance).get_xml_desc(
            dump_inactive=True, dump_sensitive=True)
        driver._host.write_instance_config(
            xml.replace(disk.copy, disk.path))


def _make_again(
    driver: Any, instance: Any, disk: local_disks.Overlay,
    formats: Mapping[int, str | None],
) -> None:
    """Complete a disk whose base is lost with a new file system.

    :raises InvalidDiskInfo: the guest has written to the disk
    """
    image_backend.complete_without_base(disk, functools.partial(
        driver._create_ephemeral,
        ephemeral_size=local_disks.virtual_size(disk.path) // units.Gi,
        fs_label=f'ephemeral{disk.number}', os_type=instance.os_type,
        specified_fs=formats.get(disk.number)))


def _guest_formats(block_device_info: Any) -> dict[int, str | None]:
    """Return the file system that was asked for, by the disk's number."""
    return dict(enumerate(
        disk.get('guest_format') for disk in
        virt_driver.block_device_info_get_ephemerals(block_device_info)))


def _name_no_base_of_this_host(
    instance_dir: str, disks: Iterable[local_disks.Overlay],
) -> None:
    """Destination: keep disks from the base files that this host has.

    Nothing must take one for the source's, not even a hard reboot after the
    source could not be reached.
    """
    for disk in disks:
        try:
            local_disks.name_backing_file(disk.path, os.path.join(
                instance_dir, os.path.basename(disk.backing)))
        except (ValueError, processutils.ProcessExecutionError) as error:
            raise exception.MigrationError(reason=_(
                'The disk %(disk)s that came from the source is not used: '
                '%(error)s') % {
                    'disk': disk.path, 'error': fetch.reason(error)}
                ) from error


def _pull_bases(
    instance: Any, instance_dir: str, disks: Iterable[local_disks.Overlay],
    source: str,
) -> None:
    """Destination: complete disks with the backing files of the source."""
    by_base = operator.attrgetter('backing')
    groups = ((path, list(group)) for path, group in itertools.groupby(
        sorted(disks, key=by_base), by_base))
    fetch.fetch(instance, instance_dir, [
        fetch.FileRequest(path, tuple(disk.name for disk in above),
                       functools.partial(_complete, instance, above))
        for path, above in groups], source, fetch.IS_OFF % instance.uuid)


def _complete(instance: Any, disks: Iterable[local_disks.Overlay],
              copy: str) -> None:
    """Destination: complete disks with the source's backing file."""
    for disk in disks:
        _require_at_most(copy, local_disks.virtual_size(disk.path))
        local_disks.flatten(disk.path, 'qcow2', disk.path, backing=copy)
        LOG.info('%(name)s: made complete with the bytes of the source\'s '
                 '%(base)s (%(bug)s)', {
                     'name': disk.name, 'base': disk.backing,
                     'bug': Ephemeral.bug}, instance=instance)
