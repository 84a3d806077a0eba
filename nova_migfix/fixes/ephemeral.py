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

A backing file that is missing is not made anew under a disk that has data, and
one without a file system, left by a mkfs that failed, is not given to a new
disk. File systems are made in a scratch directory and renamed.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import functools
import itertools
import operator
import os
import time
from typing import Any

from nova import exception
from nova.i18n import _
from nova.virt import driver as virt_driver
from nova.virt.libvirt import utils as libvirt_utils
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

# Seconds between two looks at a block pull.
_POLL = 0.2


class Ephemeral(base.Fix):
    name = 'ephemeral'
    bug = 'ephemeral disks are laid upon another backing file (LP 2061701)'
    mended_by = 'nova.virt.libvirt.ephemeral'

    def __init__(self) -> None:
        # Instances whose destination pulls: told in the precheck, needed
        # when the migration begins. An entry that is lost costs time only.
        self._pulled_by_destination: set[str] = set()

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
        if instance.uuid in self._pulled_by_destination:
            self._pulled_by_destination.discard(instance.uuid)
            return
        for disk in _overlays_of(instance):
            _pull_block(instance, host.get_guest(instance), disk)

    def files_to_pull(
        self, instance: Any, instance_dir: str, disks: list[dict[str, Any]],
    ) -> Iterable[arrival.Wanted]:
        overlays = sorted(
            (disk for disk in disks if os.path.basename(
                disk['backing_file'] or '').startswith(local_disks.MADE_HERE)),
            key=_backing_path)
        for path, above in itertools.groupby(overlays, _backing_path):
            sizes = {os.path.basename(disk['path']): disk['virt_disk_size']
                     for disk in above}
            yield arrival.Wanted(path, tuple(sizes), functools.partial(
                _make_complete, instance, instance_dir, sizes))

    # -- cold migration and resize ------------------------------------------

    def leaving(self, instance: Any, instance_dir: str) -> None:
        for disk in local_disks.ephemeral_overlays(instance_dir):
            begin = time.monotonic()
            local_disks.flatten(disk.path, 'qcow2', disk.path)
            LOG.info('%(name)s: made complete without its backing file '
                     '%(base)s in %(time).2f s', {
                         'name': disk.name, 'base': disk.backing,
                         'time': time.monotonic() - begin}, instance=instance)

    def complete_disks(
        self, instance: Any, instance_dir: str, source: str,
    ) -> None:
        overlays = list(local_disks.ephemeral_overlays(instance_dir))
        by_base = operator.attrgetter('backing')
        arrival.pull(instance, instance_dir, [
            arrival.Wanted(path, tuple(disk.name for disk in above),
                           functools.partial(_complete, instance, above))
            for path, above in (
                (path, list(group)) for path, group in itertools.groupby(
                    sorted(overlays, key=by_base), by_base))], source)

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
        self, instance: Any, instance_dir: str,
    ) -> Iterator[None]:
        before = {disk.name for disk in
                  local_disks.ephemeral_overlays(instance_dir)}
        yield
        for disk in local_disks.ephemeral_overlays(instance_dir):
            if disk.name not in before and local_disks.is_hole(disk.backing):
                os.unlink(disk.path)
                raise exception.InvalidDiskInfo(reason=_(
                    '%(name)s of instance %(uuid)s would have no file '
                    'system: its backing file %(base)s is empty, left by a '
                    'mkfs that failed. Remove that file on this host unless '
                    'another disk is laid upon it, and try again.') % {
                        'name': disk.name, 'uuid': instance.uuid,
                        'base': disk.backing})

    def restarting(
        self, driver: Any, context: Any, instance: Any, network_info: Any,
        block_device_info: Any,
    ) -> None:
        formats = [
            disk['guest_format'] for disk in
            virt_driver.block_device_info_get_ephemerals(block_device_info)]
        for disk in _overlays_of(instance):
            if os.path.exists(disk.backing):
                continue
            if local_disks.is_written(disk):
                _refuse_to_start(instance, disk)
            _make_base(driver, instance, disk, dict(enumerate(formats)))


# -- live migration, source -------------------------------------------------

def _overlays_of(instance: Any) -> list[local_disks.Overlay]:
    return list(local_disks.ephemeral_overlays(
        libvirt_utils.get_instance_path(instance)))


def _pull_block(instance: Any, guest: Any, disk: local_disks.Overlay) -> None:
    """Make a running guest's disk complete, bounded by the disk's size.

    :raises MigrationError: it could not be done; the guest runs on
    """
    LOG.info('%s: the destination has not said that it pulls its backing '
             'file; it is made complete here first', disk.name,
             instance=instance)
    begin = time.monotonic()
    device = guest.get_block_device(disk.path)
    try:
        device.rebase(None)
        try:
            while not device.is_job_complete():
                time.sleep(_POLL)
        except Exception:
            with excutils.save_and_reraise_exception():
                device.abort_job()
        # A job that is gone may have failed.
        if disk in _overlays_of(instance):
            raise exception.MigrationError(reason=_(
                'the block pull ended before it was complete, see the log of '
                'libvirt'))
    except Exception as error:
        raise exception.MigrationError(reason=_(
            'The disk %(disk)s of instance %(uuid)s cannot be made complete '
            'for a destination without nova_migfix: %(error)s. The guest has '
            'not been moved. Install nova_migfix on the destination, or make '
            'space here.') % {'disk': disk.name, 'uuid': instance.uuid,
                              'error': error}) from error
    LOG.info('%(disk)s: made complete by a block pull in %(time).1f s',
             {'disk': disk.name, 'time': time.monotonic() - begin},
             instance=instance)


# -- live migration, destination --------------------------------------------

def _backing_path(disk: dict[str, Any]) -> str:
    """Say where the source has a disk's backing file, as Nova places it."""
    return os.path.join(
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


# -- hard reboot ------------------------------------------------------------

def _refuse_to_start(instance: Any, disk: local_disks.Overlay) -> None:
    raise exception.InvalidDiskInfo(reason=_(
        '%(name)s of instance %(uuid)s has data, but its backing file '
        '%(base)s is missing; a new one would destroy what the guest reads. '
        'If the guest still runs, make the disk complete with "virsh '
        'blockpull"; else get that very file back from a backup or from the '
        'host where the disk was made.') % {
            'name': disk.name, 'uuid': instance.uuid, 'base': disk.backing})


def _make_base(driver: Any, instance: Any, disk: local_disks.Overlay,
               formats: Mapping[int, str | None]) -> None:
    size = local_disks.virtual_size(disk.path)
    driver._create_ephemeral(
        target=disk.backing, ephemeral_size=size // units.Gi,
        fs_label=f'ephemeral{disk.number}',     # as Nova labels new ones
        os_type=instance.os_type, specified_fs=formats.get(disk.number))
    LOG.info('%(name)s: made its missing backing file %(base)s anew; the '
             'guest had never written to it',
             {'name': disk.name, 'base': disk.backing}, instance=instance)
