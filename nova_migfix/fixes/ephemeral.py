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
with mkfs on each host. A migration moves the overlay only; the destination
lays it upon a backing file of its own making, whose label, file system, UUID
and metadata are others (LP 2061701 is about the label). A running guest reads
a mixture of both: XFS shuts down at once, ext4 of more than some GiB loses its
journal, and a disk that was never written to has another UUID. So does a
cold migration or resize, and a hard reboot after the image cache has removed
the backing file. No release up to 34 keeps the bytes.

With the fix a disk that is moved needs no backing file afterwards:

- live migration: the destination pulls the source's backing file and makes a
  complete disk of it, on which libvirt then writes what the guest has
  written. A backing file of the same name that it has itself is not looked
  at;
- to a destination that has not said that it does this, the source makes the
  running guest's disk complete beforehand, by a block pull whose time grows
  with the size of the disk;
- cold migration and resize: the source makes the disk complete when the guest
  is off, or the destination does if the source has not.

A backing file that is lost, because it is missing or another of its name has
taken its place, is not made anew under a disk that has data: a hard reboot, a
start and a resume are refused. While the guest runs, QEMU still has the right
one open; a migration, a stop and whatever else ends that makes the disk
complete from it before. One without a file system, left by a mkfs that
failed, or with another than was asked for, is not given to a new disk. File
systems are made in a scratch directory and renamed.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import errno
import functools
import itertools
import operator
import os
import shutil
import time
from typing import Any
from typing import NamedTuple

from nova.compute import task_states
from nova import exception
from nova.i18n import _
from nova.privsep import fs
from nova.virt import driver as virt_driver
from nova.virt.libvirt import driver as libvirt_driver
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import excutils
from oslo_utils import units

from nova_migfix import arrival
from nova_migfix import disks as local_disks
from nova_migfix.fixes import base
from nova_migfix import migrate_data as migfix_data
from nova_migfix import scratch

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

# what a destination tells: a key of dest_capabilities
PULLS_BASES = 'pulls_ephemeral_bases'

# File systems that blkid calls as mkfs does.
_KINDS = ('btrfs', 'ext2', 'ext3', 'ext4', 'ntfs', 'vfat', 'xfs')

# a key in the description of a disk: where its backing file is
BACKING_PATH = 'backing_path'

# Bytes, whatever the file system's are; see stat(2).
_STAT_BLOCK = 512

# What is raised when a disk or a record cannot be looked into.
_UNREADABLE = (OSError, ValueError, exception.NovaException,
               processutils.ProcessExecutionError)

# Seconds between two looks at a block pull.
_POLL = 0.2


class _Reason(NamedTuple):
    """Why a running guest's disk is made complete on the source."""

    why: str
    remedy: str


_NOT_PULLED = _Reason(
    _('the destination has not said that it pulls the backing file'),
    _('Install nova_migfix on the destination, or make space here.'))
_LOST = _Reason(
    _('the backing file here is lost'),
    _('If the guest runs, make space here; else get that very file back from '
      'a backup or from the host where the disk was made.'))


class Ephemeral(base.Fix):
    name = 'ephemeral'
    bug = 'ephemeral disks are laid upon another backing file (LP 2061701)'
    mended_by = 'nova.virt.libvirt.ephemeral'

    def __init__(self) -> None:
        # Instances whose destination pulls: told in the precheck, needed
        # when the migration begins. An entry that is lost costs time only.
        self._pulled_by_destination: set[str] = set()

    def starting(self) -> None:
        """From now on a base that is replaced is told from the right one."""
        for instance_dir in local_disks.instance_dirs():
            try:
                local_disks.remember_unknown_bases(instance_dir)
            except _UNREADABLE as error:
                LOG.warning('What the ephemeral disks in %(directory)s lie '
                            'upon could not be written down: %(error)s',
                            {'directory': instance_dir, 'error': error})

    # -- live migration -----------------------------------------------------

    def capabilities(self) -> Mapping[str, str]:
        return {PULLS_BASES: 'yes'}

    def check_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        told = migfix_data.get(
            migrate_data, migfix_data.DEST_CAPABILITIES) or {}
        self._pulled_by_destination.discard(instance.uuid)
        if PULLS_BASES in told:
            self._pulled_by_destination.add(instance.uuid)

    def before_description(self, instance: Any, host: Any) -> None:
        pulled = instance.uuid in self._pulled_by_destination
        self._pulled_by_destination.discard(instance.uuid)
        if pulled:
            _save(instance, host, [
                *_lost_of(instance),
                *filter(local_disks.lost, local_disks.swap_overlays(
                    libvirt_utils.get_instance_path(instance)))])
        else:
            _save(instance, host, _overlays_of(instance), _NOT_PULLED)

    def describe_disks(self, disks: list[dict[str, Any]]) -> None:
        for disk in disks:
            if _is_made_here(disk) and os.path.exists(disk['path']):
                disk[BACKING_PATH] = libvirt_utils.get_disk_backing_file(
                    disk['path'], basename=False)

    def files_to_pull(
        self, instance: Any, instance_dir: str, disks: list[dict[str, Any]],
    ) -> Iterable[arrival.Wanted]:
        overlays = sorted(filter(_is_made_here, disks), key=_backing_path)
        for path, above in itertools.groupby(overlays, _backing_path):
            sizes = {os.path.basename(disk['path']): disk['virt_disk_size']
                     for disk in above}
            yield arrival.Wanted(path, tuple(sizes), functools.partial(
                _make_complete, instance, instance_dir, sizes))

    # -- cold migration and resize ------------------------------------------

    def before_power_off(self, instance: Any, host: Any) -> None:
        _save(instance, host, _lost_of(instance))

    def leaving(self, instance: Any, instance_dir: str) -> None:
        for disk in local_disks.ephemeral_overlays(instance_dir):
            begin = time.monotonic()
            try:
                _require_space(disk, local_disks.flat_size(disk.path))
                local_disks.flatten(disk.path, 'qcow2', disk.path)
            except (OSError, processutils.ProcessExecutionError) as error:
                raise exception.MigrationError(reason=_(
                    'The disk %(disk)s of instance %(uuid)s cannot be made '
                    'complete: %(error)s. The guest stays where it is. Make '
                    'space here.') % {
                        'disk': disk.name, 'uuid': instance.uuid,
                        'error': arrival.reason(error)}) from error
            LOG.info('%(name)s: made complete without its backing file '
                     '%(base)s in %(time).2f s', {
                         'name': disk.name, 'base': disk.backing,
                         'time': time.monotonic() - begin}, instance=instance)

    def complete_disks(
        self, instance: Any, instance_dir: str, source: str,
    ) -> None:
        overlays = list(local_disks.ephemeral_overlays(instance_dir))
        # for a hard reboot, if what follows fails
        local_disks.distrust_bases(instance_dir, overlays)
        by_base = operator.attrgetter('backing')
        arrival.pull(instance, instance_dir, [
            arrival.Wanted(path, tuple(disk.name for disk in above),
                           functools.partial(_complete, instance, above))
            for path, above in (
                (path, list(group)) for path, group in itertools.groupby(
                    sorted(overlays, key=by_base), by_base))], source,
            arrival.IS_OFF % instance.uuid)

    # -- disks are made, or needed again ------------------------------------

    @contextlib.contextmanager
    def making(self, target: str) -> Iterator[str]:
        if CONF.libvirt.virt_type == 'parallels':
            # a ploop image is a directory
            yield target
            return
        with scratch.directory(target) as directory:
            made = os.path.join(directory, os.path.basename(target))
            yield made
            os.rename(made, target)

    @contextlib.contextmanager
    def creating_disks(
        self, instance: Any, instance_dir: str, block_device_info: Any,
    ) -> Iterator[None]:
        formats = _guest_formats(block_device_info)
        before = list(local_disks.ephemeral_overlays(instance_dir))
        for disk in _lost_without_data(instance, before):
            _make_anew(instance, disk, formats.get(disk.number))
        names = {disk.name for disk in before}
        yield
        made = [disk for disk
                in local_disks.ephemeral_overlays(instance_dir)
                if disk.name not in names]
        for disk in made:
            _check_new(instance, disk, formats.get(disk.number))
        local_disks.remember_bases(instance_dir, made)
        # of what was copied on this host, without the record
        local_disks.remember_unknown_bases(instance_dir)

    def stopping(self, instance: Any, host: Any) -> None:
        # In a rebuild Nova throws the disks away next.
        if instance.task_state != task_states.REBUILDING:
            _save(instance, host, _held(
                instance, host, _known_lost(instance)))

    def powering_on(self, instance: Any, xml: str | None) -> None:
        for disk in _known_lost(instance):
            if xml is None or disk.path in xml:
                # also one without data, which the guest may have read
                raise _lost_for_good(instance, disk, _(
                    'is needed as the guest knows it'))

    def restarting(
        self, driver: Any, context: Any, instance: Any, network_info: Any,
        block_device_info: Any,
    ) -> None:
        lost = _lost_without_data(instance, _overlays_of(instance))
        # the guest may write to them until it is stopped
        held = _held(instance, driver._host, lost)
        _save(instance, driver._host, held)
        formats = _guest_formats(block_device_info)
        for disk in lost:
            if disk not in held:
                _make_anew(instance, disk, formats.get(disk.number))
        local_disks.remember_unknown_bases(
            libvirt_utils.get_instance_path(instance))


# -- live migration, source -------------------------------------------------

def _overlays_of(instance: Any) -> list[local_disks.Overlay]:
    return list(local_disks.ephemeral_overlays(
        libvirt_utils.get_instance_path(instance)))


def _held(
    instance: Any, host: Any, disks: list[local_disks.Overlay],
) -> list[local_disks.Overlay]:
    """Return those that the guest's QEMU has open, with what they lie upon."""
    if not disks:
        return []
    try:
        guest = host.get_guest(instance)
    except exception.InstanceNotFound:
        return []
    if not guest.is_active():
        return []
    # a rescued one may have been started without
    return [disk for disk in disks if guest.get_disk(disk.path)]


def _lost_of(instance: Any) -> list[local_disks.Overlay]:
    return list(filter(local_disks.lost, _overlays_of(instance)))


def _known_lost(instance: Any) -> list[local_disks.Overlay]:
    """Return those that are lost, none if the disks cannot be looked into."""
    try:
        return _lost_of(instance)
    except _UNREADABLE as error:
        LOG.warning('What the ephemeral disks lie upon could not be found '
                    'out: %s', error, instance=instance)
        return []


def _save(instance: Any, host: Any, disks: Iterable[local_disks.Overlay],
          reason: _Reason = _LOST) -> None:
    """Have what the backing files had from the guest's QEMU.

    :raises MigrationError: it could not be done, or the guest is off
    """
    for disk in disks:
        _pull_block(instance, host.get_guest(instance), disk, reason)


def _pull_block(instance: Any, guest: Any, disk: local_disks.Overlay,
                reason: _Reason) -> None:
    """Make a running guest's disk complete, bounded by the disk's size.

    :raises MigrationError: it could not be done; the guest runs on
    """
    LOG.info('%(disk)s: %(why)s; it is made complete here first',
             {'disk': disk.name, 'why': reason.why}, instance=instance)
    begin = time.monotonic()
    try:
        device = guest.get_block_device(disk.path)
        _begin_pull(device, disk)
        try:
            while not device.is_job_complete():
                time.sleep(_POLL)
        except Exception:
            with excutils.save_and_reraise_exception():
                device.abort_job()
        # A job that is gone may have failed.
        if local_disks.names_backing_file(disk.path):
            raise exception.MigrationError(reason=_(
                'the block pull ended before it was complete, see the log of '
                'libvirt'))
    except Exception as error:
        raise exception.MigrationError(reason=_(
            'The disk %(disk)s of instance %(uuid)s cannot be made complete, '
            'which is needed as %(why)s: %(error)s. The guest has not been '
            'moved. %(remedy)s') % {
                'disk': disk.name, 'uuid': instance.uuid,
                'why': reason.why, 'error': error,
                'remedy': reason.remedy}) from error
    LOG.info('%(disk)s: made complete by a block pull in %(time).1f s',
             {'disk': disk.name, 'time': time.monotonic() - begin},
             instance=instance)


def _begin_pull(device: Any, disk: local_disks.Overlay) -> None:
    """Begin a block pull, unless that of a killed nova-compute goes on."""
    if device.get_job_info() is None:
        with contextlib.suppress(FileNotFoundError):
            _require_space(
                disk, os.stat(disk.backing).st_blocks * _STAT_BLOCK)
        device.rebase(None)


def _require_space(disk: local_disks.Overlay, needed: int) -> None:
    """Refuse what would fill the file system, as far as that is known.

    Guests are paused with the next thing they write there, also this one if a
    pull of its fails.

    :param needed: bytes that will be written beside the disk
    :raises OSError: there is not enough space
    """
    free = shutil.disk_usage(os.path.dirname(disk.path)).free
    if needed > free:
        raise OSError(errno.ENOSPC, _(
            'up to %(needed)d MiB will be written, and %(free)d MiB are '
            'free') % {'needed': needed // units.Mi, 'free': free // units.Mi})


# -- live migration, destination --------------------------------------------

def _is_made_here(disk: dict[str, Any]) -> bool:
    return local_disks.is_made_here(disk['backing_file'])


def _backing_path(disk: dict[str, Any]) -> str:
    """Say where the source has a disk's backing file.

    One without the plugin does not tell; that is where Nova places it.
    """
    return disk.get(BACKING_PATH) or os.path.join(
        os.path.dirname(os.path.dirname(disk['path'])),
        CONF.image_cache.subdirectory_name,
        os.path.basename(disk['backing_file']))


def _make_complete(instance: Any, instance_dir: str, sizes: Mapping[str, int],
                   copy: str) -> None:
    for name, size in sizes.items():
        local_disks.flatten(
            copy, 'raw', os.path.join(instance_dir, name), size)
        LOG.info('%(name)s: laid upon the bytes of the source\'s %(base)s '
                 'where Nova would have made a file system (%(bug)s)', {
                     'name': name, 'base': os.path.basename(copy),
                     'bug': Ephemeral.bug}, instance=instance)


# -- cold migration, destination --------------------------------------------

def _complete(instance: Any, disks: Iterable[local_disks.Overlay],
              copy: str) -> None:
    for disk in disks:
        local_disks.flatten(disk.path, 'qcow2', disk.path, backing=copy)
        LOG.info('%(name)s: made complete with the bytes of the source\'s '
                 '%(base)s (%(bug)s)', {
                     'name': disk.name, 'base': disk.backing,
                     'bug': Ephemeral.bug}, instance=instance)


# -- disks are made, or needed again -----------------------------------------

def _guest_formats(block_device_info: Any) -> dict[int, str | None]:
    """Return the file system that was asked for, by the disk's number."""
    return dict(enumerate(
        disk.get('guest_format') for disk in
        virt_driver.block_device_info_get_ephemerals(block_device_info)))


def _lost_without_data(
    instance: Any, overlays: Iterable[local_disks.Overlay],
) -> list[local_disks.Overlay]:
    """Return the disks that need another base, and would lose nothing by it.

    :raises InvalidDiskInfo: one would; nothing has been done to any
    """
    lost = list(filter(local_disks.lost, overlays))
    for disk in filter(local_disks.is_written, lost):
        raise _lost_for_good(instance, disk, _('has data'))
    return lost


def _lost_for_good(
    instance: Any, disk: local_disks.Overlay, why: str,
) -> exception.InvalidDiskInfo:
    return exception.InvalidDiskInfo(reason=_(
        '%(name)s of instance %(uuid)s %(why)s, but its backing file '
        '%(base)s %(loss)s; to go on without it would destroy what the '
        'guest reads. If the guest still runs, stop or migrate it, which '
        'makes the disk complete, or do so with "virsh blockpull"; else '
        'get that very file back from a backup or from the host where '
        'the disk was made.') % {
            'name': disk.name, 'uuid': instance.uuid, 'why': why,
            'base': disk.backing, 'loss': local_disks.lost(disk)})


def _make_anew(instance: Any, disk: local_disks.Overlay,
               guest_format: str | None) -> None:
    """Make a disk that was never written to, complete from the beginning."""
    size = local_disks.virtual_size(disk.path)
    with scratch.directory(disk.path) as directory:
        image = os.path.join(directory, 'image')
        libvirt_driver.LibvirtDriver._create_ephemeral(
            image, size // units.Gi, f'ephemeral{disk.number}',
            instance.os_type, specified_fs=guest_format)
        local_disks.flatten(image, 'raw', disk.path, size)
    LOG.info('%(name)s: made anew, as its backing file %(base)s is lost and '
             'the guest had never written to it',
             {'name': disk.name, 'base': disk.backing}, instance=instance)


def _check_new(instance: Any, disk: local_disks.Overlay,
               guest_format: str | None) -> None:
    """Refuse a disk that does not have what was asked for.

    :raises InvalidDiskInfo: the disk is gone again
    """
    wanted = _wanted(instance.os_type, guest_format)
    found = local_disks.filesystem(disk.backing)
    if local_disks.is_zeros(disk.backing):
        has = _('nothing')
    elif wanted is None or found is None or found.get('TYPE') == wanted:
        return
    else:
        has = found.get('TYPE', _('no file system'))
    os.unlink(disk.path)
    raise exception.InvalidDiskInfo(reason=_(
        '%(name)s of instance %(uuid)s should have %(wanted)s, but its '
        'backing file %(base)s has %(has)s: it was left by a mkfs that '
        'failed, or made for a disk of this size with another file system, '
        'which Nova does not tell apart. Remove that file on this host unless '
        'another disk is laid upon it, and try again, or boot on another '
        'host.') % {
            'name': disk.name, 'uuid': instance.uuid, 'base': disk.backing,
            'has': has, 'wanted': wanted or _('a file system')})


def _wanted(os_type: str | None, guest_format: str | None) -> str | None:
    """Return what Nova makes, None where ``virt_mkfs`` decides that.

    Nova does not say so itself, but derives a name from it.
    """
    name = functools.partial(fs.get_file_extension_for_os_type, os_type)
    asked = name(CONF.default_ephemeral_format, guest_format)
    same = [kind for kind in _KINDS if name(None, kind) == asked]
    return same[0] if len(same) == 1 else None
