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
"""The local disks of an instance, as they lie in its directory.

With qcow2 Nova makes an ephemeral disk as an overlay: what the guest has
written, upon a backing file in ``_base`` with a new file system, which all
disks of that size on the host share. The backing file is found by its name
only, and no two of that name on two hosts have the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
import errno
import glob
import os
import re
from typing import Any
from typing import NamedTuple

from nova.virt.disk import api as disk_api
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_serialization import jsonutils

from nova_migfix import scratch

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

# The first is how an ephemeral disk was called that came from the flavor.
_EPHEMERAL = re.compile(r'disk\.(?:local|eph([0-9]{1,3}))')

#: what the names of base files begin with that Nova makes on each host
MADE_HERE = ('ephemeral', 'swap')


# Bytes that are looked at at once.
_BLOCK = 1 << 20

# Nova's, and ours: which file systems the backing files have. Both are in the
# instance's directory.
_INFO = 'disk.info'
_BASES = 'migfix-bases.json'


class Overlay(NamedTuple):
    """An ephemeral disk that is not complete without its backing file."""

    name: str           # 'disk.eph0'
    path: str
    backing: str        # path

    @property
    def number(self) -> int:
        """Which of the instance's ephemeral disks it is, from 0 on."""
        match = _EPHEMERAL.fullmatch(self.name)
        return int(match[1] or 0) if match else 0


def ephemeral_overlays(
    instance_dir: str, without: Collection[str] = (),
) -> Iterator[Overlay]:
    """Yield the ephemeral disks in an instance's directory that need a base.

    Only what ``disk.info`` calls qcow2 is looked into: a raw disk is the
    guest's to write, and could pretend to have a backing file.

    :param without: names of disks that are not wanted
    """
    for path, form in sorted(_formats(instance_dir).items()):
        name = os.path.basename(path)
        path = os.path.join(instance_dir, name)
        if (form == 'qcow2' and _EPHEMERAL.fullmatch(name)
                and name not in without and os.path.exists(path)):
            backing = libvirt_utils.get_disk_backing_file(
                path, basename=False)
            if backing and os.path.basename(backing).startswith('ephemeral'):
                yield Overlay(name, path, backing)


def instance_dirs() -> list[str]:
    """Return the directories of all instances that lie on this host."""
    return [os.path.dirname(path) for path in sorted(glob.glob(os.path.join(
        glob.escape(CONF.instances_path), '*', _INFO)))]


def is_made_here(backing: str | None) -> bool:
    """Say whether Nova makes a backing file on each host."""
    return os.path.basename(backing or '').startswith(MADE_HERE)


def _formats(instance_dir: str) -> dict[str, str]:
    """Return Nova's record of the format of each of an instance's files."""
    formats: dict[str, str] = _record(instance_dir, _INFO)
    return formats


def _record(instance_dir: str, name: str) -> dict[str, Any]:
    try:
        with open(os.path.join(instance_dir, name)) as record:
            text = record.read()
    except FileNotFoundError:
        return {}
    found: dict[str, Any] = jsonutils.loads(text) if text else {}
    return found


def flatten(path: str, form: str, target: str, size: int = 0,
            backing: str | None = None) -> None:
    """Make a qcow2 without backing file that has the bytes of a disk.

    The cost follows the data; ``qemu-img rebase`` reads every hole. One that
    takes the place of the only disk there is, is written through first.

    :param path: the disk
    :param form: its format, 'raw' or 'qcow2'
    :param target: where the new disk is put when it is complete; may be
        *path*
    :param size: the least size of the new disk, in bytes
    :param backing: a raw file that is taken for the backing file, instead of
        the one that the disk names
    :raises ProcessExecutionError: it could not be made
    """
    with scratch.directory(target) as directory:
        made = os.path.join(directory, os.path.basename(target))
        source = _node(path, form)
        if backing:
            source['backing'] = _node(backing, 'raw')
        processutils.execute('qemu-img', 'convert', '-O', 'qcow2',
                             f'json:{jsonutils.dumps(source)}', made)
        if size > virtual_size(made):
            processutils.execute('qemu-img', 'resize', '-f', 'qcow2', made,
                                 str(size))
        if target == path:
            scratch.write_through(made)
        os.rename(made, target)


def virtual_size(path: str) -> int:
    """Return how many bytes a guest sees of a qcow2 disk."""
    size: int = disk_api.get_disk_size(str(path))
    return size


def _node(path: str, form: str) -> dict[str, Any]:
    """Describe a file to QEMU, which then does not probe for its format."""
    return {'driver': form, 'file': {'driver': 'file', 'filename': path}}


def is_zeros(path: str) -> bool:
    """Say whether a file has nothing but zeros; what is a hole is not read.

    :returns: False also where there is no file
    """
    if not os.path.isfile(path):
        return False
    with open(path, 'rb') as file:
        return not any(any(block) for block in _data(file.fileno()))


def _data(descriptor: int) -> Iterator[bytes]:
    """Yield what a file has between its holes, in blocks."""
    end = 0
    while True:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return      # nothing but a hole up to the end
            raise
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        for offset in range(begin, end, _BLOCK):
            yield os.pread(descriptor, min(_BLOCK, end - offset), offset)


def filesystem(path: str) -> dict[str, str] | None:
    """Return what blkid finds in a raw image: TYPE, UUID, LABEL and more.

    :returns: nothing of these where it finds no file system, None if it
        cannot be asked or cannot read the file
    """
    try:
        found, _errors = processutils.execute(
            'blkid', '--probe', '--output', 'export', path,
            check_exit_code=[0, 2])
    except (OSError, processutils.ProcessExecutionError) as error:
        LOG.info('Which file system %(path)s has could not be found out: '
                 '%(error)s', {'path': path, 'error': error})
        return None
    return dict(line.split('=', 1) for line in found.splitlines())


def remember_bases(instance_dir: str, overlays: Iterable[Overlay]) -> None:
    """Write down which file systems the backing files have.

    One that Nova's image cache has removed while it was in use is made anew,
    under its name, for the next guest.
    """
    known = _record(instance_dir, _BASES)
    found = {**known, **{
        overlay.name: _uuid(overlay.backing) for overlay in overlays}}
    found = {name: uuid for name, uuid in found.items() if uuid}
    if found == known:
        return
    target = os.path.join(instance_dir, _BASES)
    with scratch.directory(target) as directory:
        made = os.path.join(directory, _BASES)
        with open(made, 'w') as record:
            record.write(jsonutils.dumps(found))
        os.rename(made, target)


def remember_unknown_bases(instance_dir: str) -> None:
    """Write it down where that was not done when the disk was made."""
    remember_bases(instance_dir, list(ephemeral_overlays(
        instance_dir, without=_record(instance_dir, _BASES))))


def lost(overlay: Overlay,
         uuid_of: Callable[[str], str] | None = None) -> str:
    """Say what has become of the file that a disk was laid upon.

    :param uuid_of: is asked instead of blkid for what the file system of a
        backing file is called, by those who look at many disks
    :returns: '' if it is there, as far as is known
    """
    if not os.path.exists(overlay.backing):
        return 'is missing'
    known = _record(os.path.dirname(overlay.path), _BASES).get(overlay.name)
    if known and known != ((uuid_of or _uuid)(overlay.backing) or known):
        return 'is another one than the disk was laid upon'
    return ''


def _uuid(path: str) -> str:
    return (filesystem(path) or {}).get('UUID', '')


def is_written(overlay: Overlay) -> bool:
    """Say whether the guest has written to a disk, without its base."""
    blind = jsonutils.dumps({**_node(overlay.path, 'qcow2'), 'backing': None})
    extents, _errors = processutils.execute(
        'qemu-img', 'map', '--force-share', '--output', 'json',
        f'json:{blind}')
    return any(extent['data'] or extent.get('present')
               for extent in jsonutils.loads(extents))
