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
"""Keep the contents of ephemeral disks in a migration.

With qcow2 an ephemeral disk is an overlay on a backing file that Nova makes
with mkfs on each host. A migration moves the overlay only. On the destination
its backing file is one that Nova has made there, with another label, file
system UUID and metadata (LP 2061701 is about the label). A running guest reads
a mixture of both: XFS shuts down at once, ext4 of more than some GiB loses its
journal, and a disk without any writes has another UUID. The same happens in a
cold migration or resize, and in a hard reboot after the image cache has
removed the backing file. No release up to 34 keeps the bytes.

With the fix a new disk has no backing file, see
:mod:`nova_migfix.storage.image_backend`. An existing overlay keeps its backing
file, see :mod:`nova_migfix.storage.image_cache`, until the guest migrates. The
migration completes the disk, so that it needs no backing file:

- live migration: the destination fetches the source's backing file and makes a
  complete disk from it. libvirt then copies the guest's writes to that disk;
- live migration to a destination that does not announce that it fetches
  backing files, or cannot fetch one: the source first completes the running
  guest's disk by a block pull, whose time grows with the size of the disk;
- cold migration and resize: the source completes the disk before it stops the
  guest. If the source has not done so, the destination does.

A backing file may have been lost before the plugin was installed. While the
guest runs, only its QEMU still has the file open: so each operation that moves
or stops the guest completes the disk first.
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

from lxml import etree
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
from nova_migfix.storage import image_file
from nova_migfix.transport import fetch

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

# a key of dest_capabilities
FETCHES_BASES = 'pulls_ephemeral_bases'

# a key in the disk info: the path of the backing file
BACKING_PATH = 'backing_path'

# exceptions for a disk or a record that cannot be read
_UNREADABLE = (OSError, ValueError, exception.NovaException)

# reasons for completing a disk
_LOST = _('its backing file is missing')
_NOT_FETCHING = _(
    'the destination has not announced that it fetches backing files')
_NOT_FETCHED = _('the destination could not fetch the backing file')
_COLD_MIGRATION = _('a cold migration or resize moves it')


class Ephemeral(base.Fix):
    name = 'ephemeral'
    bug = 'ephemeral disks get another backing file (LP 2061701)'
    fixed_upstream_marker = 'nova.virt.libvirt.ephemeral'

    def __init__(self) -> None:
        # UUIDs of the instances whose destination fetches backing files, from
        # the precheck until the migration begins. A lost entry costs time
        # only.
        self._fetched_by_destination: set[str] = set()
        # UUIDs of the instances whose last migration is a block migration.
        self._copied_by_libvirt: set[str] = set()

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
        capabilities = peer.get(migrate_data, peer.DEST_CAPABILITIES) or {}
        self._fetched_by_destination.discard(instance.uuid)
        self._copied_by_libvirt.discard(instance.uuid)
        if FETCHES_BASES in capabilities:
            self._fetched_by_destination.add(instance.uuid)

    def prepare_disks(
        self, instance: Any, host: Any, has_failed: bool = False,
    ) -> bool:
        self._copied_by_libvirt.add(instance.uuid)
        overlays = _overlays_of(instance)
        for disk in overlays:
            try:
                completion.require_not_in_progress(disk)
            except completion.InProgressError as error:
                raise _in_progress(instance, disk) from error
        if has_failed:
            return _complete_after_failure(instance, host, overlays)
        if instance.uuid in self._fetched_by_destination:
            self._fetched_by_destination.discard(instance.uuid)
            _pull(instance, host, filter(_needs_completing, overlays), _LOST)
        else:
            _pull(instance, host, (
                disk for disk in overlays if not disk.is_swap
                or local_disks.is_on_copy(disk)), _NOT_FETCHING)
        return False

    def set_source_fields(
        self, migrate_data: Any, disks: list[dict[str, Any]],
    ) -> None:
        # A cold migration has completed them.
        for disk in disks if migrate_data else ():
            if _is_made_here(disk) and os.path.exists(disk['path']):
                header = image_file.qcow2_header(disk['path'])
                backing = header.backing if header else ''
                # '' if the disk has been completed since
                disk['backing_file'] = os.path.basename(backing)
                disk[BACKING_PATH] = backing

    def files_to_fetch(
        self, instance: Any, instance_dir: str, disks: list[dict[str, Any]],
    ) -> Iterable[fetch.FileRequest]:
        overlays = sorted(filter(_is_made_here, disks), key=_backing_path)
        for path, group in itertools.groupby(overlays, _backing_path):
            sizes = {os.path.basename(disk['path']): disk['virt_disk_size']
                     for disk in group}
            yield fetch.FileRequest(path, tuple(sizes), functools.partial(
                _make_complete, instance, instance_dir, sizes))

    def images_created(
        self, driver: Any, instance: Any, instance_dir: str,
        disks: list[dict[str, Any]],
    ) -> None:
        for disk in disks:
            name = os.path.basename(disk['path'])
            # Nova reserves space for overlays only.
            if (local_disks.is_ephemeral_or_swap(name)
                    and disk['type'] == 'qcow2' and not disk['backing_file']):
                image_backend.reserve(driver.image_backend.by_name(
                    instance, os.path.join(instance_dir, name)),
                    disk['virt_disk_size'])

    def update_destination_xml(
        self, driver: Any, instance: Any, migrate_data: Any,
        destination: etree._Element, running: etree._Element,
    ) -> None:
        if instance.uuid in self._copied_by_libvirt:
            # The destination has the backing files of prepare_disks.
            disk = next(filter(
                local_disks.is_on_copy, _overlays_of(instance)), None)
            if disk:
                raise _in_progress(instance, disk)

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
        in_use = _in_use(instance, driver._host, overlays)
        _pull(instance, driver._host, in_use, _COLD_MIGRATION)
        _complete_stopped(driver, instance, block_device_info, [
            disk for disk in overlays if disk not in in_use])

    def finish_migration(
        self, instance: Any, instance_dir: str, source: str,
    ) -> None:
        overlays = list(local_disks.ephemeral_overlays(instance_dir))
        _detach_from_local_backing_files(instance_dir, overlays)
        try:
            _fetch_backing_files(instance, instance_dir, overlays, source)
        except exception.MigrationError:
            if any(map(local_disks.is_written, overlays)):
                raise
            LOG.warning('The guest has written to none of its ephemeral '
                        'disks; they get new file systems', exc_info=True,
                        instance=instance)

    # -- either host --------------------------------------------------------

    def power_off(self, instance: Any, host: Any) -> None:
        # In a rebuild Nova deletes the disks next.
        if instance.task_state != task_states.REBUILDING:
            _pull(instance, host, _in_use(
                instance, host, _without_backing_files(instance)), _LOST)

    def hard_reboot(
        self, driver: Any, context: Any, instance: Any, network_info: Any,
        block_device_info: Any,
    ) -> None:
        self.power_off(instance, driver._host)
        # Nova would use another label and the default file system.
        formats = _guest_formats(block_device_info)
        for disk in _without_backing_files(instance):
            _make_file_system(driver, instance, disk, formats)


def _without_backing_files(instance: Any) -> list[local_disks.Overlay]:
    """Return the ephemeral disks, not swap, whose backing file is missing.

    Return none if a disk or a record cannot be read.
    """
    try:
        return [disk for disk in _overlays_of(instance)
                if local_disks.lacks_backing_file(disk) and not disk.is_swap]
    except _UNREADABLE as error:
        LOG.warning('Cannot determine whether ephemeral disks have their '
                    'backing files: %s', error, instance=instance)
        return []


# -- live migration, source -------------------------------------------------

def _complete_after_failure(
    instance: Any, host: Any, overlays: list[local_disks.Overlay],
) -> bool:
    """Complete disks for a second attempt; return whether there are any."""
    if overlays:
        LOG.warning('The destination could not prepare for the guest. '
                    'In case it cannot fetch backing files by ssh, this host '
                    'completes the disks first, which takes longer.',
                    instance=instance)
    _pull(instance, host, overlays, _NOT_FETCHED)
    return bool(overlays)


def _overlays_of(instance: Any) -> list[local_disks.Overlay]:
    return list(local_disks.overlays(
        libvirt_utils.get_instance_path(instance)))


def _needs_completing(disk: local_disks.Overlay) -> bool:
    """Return whether a disk lacks its backing file or is half completed."""
    return local_disks.lacks_backing_file(disk) or local_disks.is_on_copy(disk)


def _in_use(
    instance: Any, host: Any, disks: list[local_disks.Overlay],
) -> list[local_disks.Overlay]:
    """Return the disks that QEMU has open, with their backing files."""
    if not disks:
        return []
    try:
        guest = host.get_guest(instance)
    except exception.InstanceNotFound:
        return []
    if not guest.is_active():
        return []
    # A rescued guest may run without these disks.
    return [disk for disk in disks
            if guest.get_disk(disk.path) or guest.get_disk(disk.copy)]


def _pull(instance: Any, host: Any, disks: Iterable[local_disks.Overlay],
          why: str) -> None:
    """Complete disks of a running guest.

    :param why: the reason, for log and error messages
    :raises MigrationError: a disk could not be completed; the guest still runs
    """
    for disk in disks:
        LOG.info('QEMU completes %(disk)s: %(why)s',
                 {'disk': disk.name, 'why': why}, instance=instance)
        begin = time.monotonic()
        try:
            completion.complete(host.get_guest(instance), disk)
        except completion.InProgressError as error:
            raise _in_progress(instance, disk) from error
        except Exception as error:
            raise _incomplete(instance, disk, why, error) from error
        LOG.info('%(disk)s: made complete by QEMU in %(time).1f s',
                 {'disk': disk.name, 'time': time.monotonic() - begin},
                 instance=instance)


def _incomplete(instance: Any, disk: local_disks.Overlay, why: str,
                error: Exception) -> exception.MigrationError:
    return exception.MigrationError(reason=_(
        'The disk %(disk)s of instance %(uuid)s cannot be made complete, '
        'which is needed because %(why)s: %(error)s. The guest is unchanged. '
        'Make space here; if the backing file %(base)s is lost and the guest '
        'is off, restore that very file from a backup.') % {
            'disk': disk.name, 'uuid': instance.uuid, 'why': why,
            'base': disk.backing, 'error': fetch.reason(error)})


def _in_progress(
    instance: Any, disk: local_disks.Overlay,
) -> exception.MigrationError:
    """Return an error that fits into the 255 characters of an event."""
    return exception.MigrationError(reason=_(
        'The disk %(disk)s of instance %(uuid)s is being completed by another '
        'process, such as "nova-migfix-status heal". Wait until it ends, or '
        'interrupt it, and try again. The guest is unchanged.') % {
            'disk': disk.name, 'uuid': instance.uuid})


# -- live migration, destination --------------------------------------------

def _is_made_here(disk: dict[str, Any]) -> bool:
    return local_disks.has_local_base_name(disk['backing_file'])


def _backing_path(disk: dict[str, Any]) -> str:
    """Return the path of a disk's backing file on the source.

    A source without the plugin does not send the path. Then the file is where
    Nova puts it, beside the instances' directories.

    :param disk: disk info from the source
    :raises MigrationError: the path does not end in the backing file's name
    """
    name = os.path.basename(disk['backing_file'])
    path: str = disk.get(BACKING_PATH) or os.path.join(
        os.path.dirname(os.path.dirname(disk['path'])),
        CONF.image_cache.subdirectory_name, name)
    if os.path.basename(path) != name:
        raise exception.MigrationError(reason=_(
            'The source names two different backing files for %(disk)s: '
            '%(path)r and %(name)r') % {
                'disk': disk['path'], 'path': path, 'name': name})
    return path


def _make_complete(instance: Any, instance_dir: str, sizes: Mapping[str, int],
                   copy: str) -> None:
    """Make complete disks from a copy of the source's backing file.

    :param sizes: virtual sizes in bytes, by the names of the disks
    :raises ValueError: the backing file is larger than a disk
    """
    for name, size in sizes.items():
        _require_at_most(copy, size)
        image_file.flatten(
            copy, 'raw', os.path.join(instance_dir, name), size)
        LOG.info('%(name)s has the bytes of the source\'s %(base)s '
                 'where Nova would have made a file system (%(bug)s)', {
                     'name': name, 'base': os.path.basename(copy),
                     'bug': Ephemeral.bug}, instance=instance)


def _require_at_most(copy: str, size: int) -> None:
    """Refuse a backing file that is larger than the disk.

    :param size: size of the disk, in bytes
    :raises ValueError: the file is larger
    """
    backing_size = os.path.getsize(copy)
    if backing_size > size:
        raise ValueError(f'{os.path.basename(copy)} has {backing_size} bytes, '
                         f'more than the disk, which has {size}')


# -- cold migration ---------------------------------------------------------

def _complete_stopped(
    driver: Any, instance: Any, block_device_info: Any,
    disks: Iterable[local_disks.Overlay],
) -> None:
    """Source: complete disks of a guest that is off.

    :raises MigrationError: a disk could not be completed and is unchanged
    """
    # Nova ends these processes when it deletes the instance.
    jobs = {'on_execute': lambda process: driver.job_tracker.add_job(
                instance, process.pid),
            'on_completion': lambda process: driver.job_tracker.remove_job(
                instance, process.pid)}
    formats = _guest_formats(block_device_info)
    for disk in disks:
        begin = time.monotonic()
        try:
            if local_disks.lacks_backing_file(disk):
                _make_file_system(driver, instance, disk, formats)
            else:
                _redefine_with_disk(driver, instance, disk)
                completion.convert(disk, **jobs)
        except (*_UNREADABLE, processutils.ProcessExecutionError) as error:
            raise _incomplete(
                instance, disk, _COLD_MIGRATION, error) from error
        LOG.info('%(name)s: made complete without its backing file '
                 '%(base)s in %(time).2f s', {
                     'name': disk.name, 'base': disk.backing,
                     'time': time.monotonic() - begin}, instance=instance)


def _redefine_with_disk(
    driver: Any, instance: Any, disk: local_disks.Overlay,
) -> None:
    """Make the definition of a stopped guest name the disk, not its copy.

    The definition names the copy if the guest stopped while QEMU was
    completing the disk, and Nova would move that file.
    """
    if local_disks.is_on_copy(disk):
        xml = driver._host.get_guest(instance).get_xml_desc(
            dump_inactive=True, dump_sensitive=True)
        driver._host.write_instance_config(
            xml.replace(disk.copy, disk.path))


def _make_file_system(
    driver: Any, instance: Any, disk: local_disks.Overlay,
    formats: Mapping[int, str | None],
) -> None:
    """Complete a disk whose backing file is lost with a new file system.

    :param formats: see _guest_formats
    :raises InvalidDiskInfo: the guest has written to the disk
    """
    image_backend.complete_without_base(disk, functools.partial(
        driver._create_ephemeral,
        ephemeral_size=image_file.virtual_size(disk.path) // units.Gi,
        fs_label=f'ephemeral{disk.number}', os_type=instance.os_type,
        specified_fs=formats.get(disk.number)))


def _guest_formats(block_device_info: Any) -> dict[int, str | None]:
    """Return the requested file systems, by the numbers of the disks."""
    return dict(enumerate(
        disk.get('guest_format') for disk in
        virt_driver.block_device_info_get_ephemerals(block_device_info)))


def _detach_from_local_backing_files(
    instance_dir: str, disks: Iterable[local_disks.Overlay],
) -> None:
    """Destination: make overlays not refer to backing files of this host.

    Neither Nova nor QEMU must take such a file for the source's, not even in a
    hard reboot after the source could not be reached. The overlays refer to
    missing files in the instance's directory instead.

    :raises MigrationError: a disk from the source is not a valid overlay
    """
    for disk in disks:
        try:
            image_file.name_backing_file(disk.path, os.path.join(
                instance_dir, os.path.basename(disk.backing)))
        except (ValueError, processutils.ProcessExecutionError) as error:
            raise exception.MigrationError(reason=_(
                'The disk %(disk)s that came from the source is not used: '
                '%(error)s') % {
                    'disk': disk.path, 'error': fetch.reason(error)}
                ) from error


def _fetch_backing_files(
    instance: Any, instance_dir: str, disks: Iterable[local_disks.Overlay],
    source: str,
) -> None:
    """Destination: complete disks with the backing files of the source."""
    backing = operator.attrgetter('backing')
    groups = ((path, list(group)) for path, group in itertools.groupby(
        sorted(disks, key=backing), backing))
    fetch.fetch(instance, instance_dir, [
        fetch.FileRequest(path, tuple(disk.name for disk in overlays),
                          functools.partial(_complete, instance, overlays))
        for path, overlays in groups], source, fetch.IS_OFF % instance.uuid)


def _complete(instance: Any, disks: Iterable[local_disks.Overlay],
              copy: str) -> None:
    """Destination: complete disks with a copy of their backing file.

    :raises ValueError: the backing file is larger than a disk
    """
    for disk in disks:
        _require_at_most(copy, image_file.virtual_size(disk.path))
        image_file.flatten(disk.path, 'qcow2', disk.path, backing=copy)
        LOG.info('%(name)s: made complete with the bytes of the source\'s '
                 '%(base)s (%(bug)s)', {
                     'name': disk.name, 'base': disk.backing,
                     'bug': Ephemeral.bug}, instance=instance)
