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
"""Find the local disks in the directories of instances, and their bases.

With the qcow2 backend, Nova makes an ephemeral disk as an overlay, which has
the guest's writes. Its backing file in ``_base`` has a new file system, which
all disks of that size on the host share. Only its name identifies a backing
file, but files with the same name on two hosts have different bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import glob
import os
import re
import time
from typing import NamedTuple

from oslo_config import cfg
from oslo_log import log as logging
from oslo_serialization import jsonutils

from nova_migfix.storage import image_file

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

# Nova uses the name disk.local for an ephemeral disk that only the flavor asks
# for.
_EPHEMERAL = re.compile(r'disk\.(?:local|eph([0-9]{1,3}))')
_SWAP = re.compile(r'disk\.swap')

# Prefixes of the names of base files that Nova makes on each host.
_BASE_PREFIXES = ('ephemeral', 'swap')

# Nova's record of the formats of an instance's disks, in its directory.
_INFO = 'disk.info'


class Overlay(NamedTuple):
    """An ephemeral or swap disk that needs its backing file."""

    name: str           # 'disk.eph0'
    path: str
    backing: str        # path

    @property
    def is_swap(self) -> bool:
        return bool(_SWAP.fullmatch(self.name))

    @property
    def copy(self) -> str:
        """The path of the disk's private backing file, see block_job."""
        return os.path.join(os.path.dirname(self.path),
                            f'{_BASE_PREFIXES[0]}.{self.name}')

    @property
    def number(self) -> int:
        """The index of the disk among the instance's ephemeral disks."""
        match = _EPHEMERAL.fullmatch(self.name)
        return int(match[1] or 0) if match else 0


def overlays(instance_dir: str) -> Iterator[Overlay]:
    """Yield the ephemeral and swap disks of an instance with a base file.

    Read only disks that are qcow2 according to ``disk.info``: on a raw disk,
    the guest could write a header that names a backing file.

    :raises OSError, ValueError: disks or ``disk.info`` cannot be read
    """
    for recorded, form in sorted(_formats(instance_dir).items()):
        name = os.path.basename(recorded)
        path = os.path.join(instance_dir, name)
        if (form == 'qcow2' and os.path.exists(path)
                and is_ephemeral_or_swap(name)):
            header = image_file.qcow2_header(path)
            if header and has_local_base_name(header.backing):
                yield Overlay(name, path, os.path.join(
                    instance_dir, header.backing))


def all_overlays(
    note: Callable[[str], object],
) -> Iterator[tuple[str, Overlay]]:
    """Yield :func:`overlays` of all instances below ``instances_path``.

    :param note: called with the text of each problem
    :returns: the name of the instance's directory, and the disk
    """
    for directory in sorted(glob.glob(
            os.path.join(glob.escape(CONF.instances_path), '*', ''))):
        path = os.path.dirname(directory)
        name = os.path.basename(path)
        try:
            for disk in overlays(path):
                yield name, disk
        except (OSError, ValueError) as error:
            note(f'The disks of {name} cannot be read: {error}')


def copies() -> Iterator[tuple[str, Overlay]]:
    """Yield the disks for which a private backing file exists.

    Their completion was interrupted, or is in progress.

    :returns: the name of the instance's directory, and the disk
    """
    for copy in sorted(glob.glob(os.path.join(
            glob.escape(CONF.instances_path), '*',
            f'{_BASE_PREFIXES[0]}.disk*'))):
        directory, copy_name = os.path.split(copy)
        name = copy_name.partition('.')[2]
        if is_ephemeral_or_swap(name):
            yield os.path.basename(directory), Overlay(
                name, os.path.join(directory, name), copy)


def ephemeral_overlays(instance_dir: str) -> Iterator[Overlay]:
    """Yield the ephemeral disks among :func:`overlays`."""
    return (overlay for overlay in overlays(instance_dir)
            if not overlay.is_swap)


def is_ephemeral_or_swap(name: str) -> bool:
    """Return whether a file has the name of an ephemeral or swap disk."""
    return bool(_EPHEMERAL.fullmatch(name) or _SWAP.fullmatch(name))


def has_local_base_name(backing: str | None) -> bool:
    """Return whether a backing file has a name that Nova uses on each host.

    Nova makes those files, for ephemeral and swap disks, on each host itself.
    """
    return os.path.basename(backing or '').startswith(_BASE_PREFIXES)


def is_missing(path: str) -> bool:
    """Return whether a file is known not to exist.

    :returns: False if that cannot be determined, for example because of
        permissions or of an NFS server that does not answer
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        LOG.warning('Could not determine whether %(path)s exists: %(error)s',
                    {'path': path, 'error': error})
    return False


def lacks_backing_file(overlay: Overlay) -> bool:
    """Return whether the backing file of a disk is known to be missing."""
    return is_missing(overlay.backing)


def is_on_copy(overlay: Overlay) -> bool:
    """Return whether the disk's backing file is its copy, see block_job.

    The copy then has the data of the guest.
    """
    header = image_file.qcow2_header(overlay.path)
    return header is not None and header.backing == overlay.copy


def is_written(overlay: Overlay) -> bool:
    """Return whether the guest has written to a disk, or may have."""
    header = image_file.qcow2_header(overlay.path)
    return (header is None or header.is_written
            or header.backing == overlay.copy)


def bases_in_use() -> set[str]:
    """Return the names of the base files that disks on this host use.

    That includes all disks below ``instances_path``, also of instances that
    are stopped, resized, or on other hosts that share the directory.

    :raises OSError: a disk cannot be read
    """
    names: set[str] = set()
    for directory in os.scandir(CONF.instances_path):
        if directory.is_dir():
            names.update(_base_names(directory.path))
            time.sleep(0)       # let other greenthreads run
    return names


def _base_names(instance_dir: str) -> Iterator[str]:
    for disk in os.scandir(instance_dir):
        if disk.name.startswith('disk') and disk.is_file():
            # Nova may delete the instance meanwhile.
            with contextlib.suppress(FileNotFoundError):
                header = image_file.qcow2_header(disk.path)
                if header and header.backing:
                    yield os.path.basename(header.backing)


def _formats(instance_dir: str) -> dict[str, str]:
    """Return the format of each disk of an instance, from Nova's record.

    :raises ValueError: the record is damaged
    """
    try:
        with open(os.path.join(instance_dir, _INFO)) as record:
            text = record.read()
    except FileNotFoundError:
        return {}
    found = jsonutils.loads(text) if text else {}
    if not isinstance(found, dict):
        raise ValueError(f'{_INFO} in {instance_dir} has no record of disks')
    return found
