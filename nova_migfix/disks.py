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
from collections.abc import Mapping
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
_SWAP = re.compile(r'disk\.swap')

#: what the names of base files begin with that Nova makes on each host
MADE_HERE = ('ephemeral', 'swap')


# Bytes that are looked at at once.
_BLOCK = 1 << 20

# Nova's, and ours: which file systems the backing files have. Both are in the
# instance's directory.
_INFO = 'disk.info'
_BASES = 'migfix-bases.json'

# What stands there of a backing file that was not to be found.
_MISSING = 'missing'


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
    """Return the ephemeral disks in an instance's directory that need a base.

    :param without: names of disks that are not wanted
    """
    return _overlays(instance_dir, _EPHEMERAL, 'ephemeral', without)


def swap_overlays(instance_dir: str) -> Iterator[Overlay]:
    """Return the swap disk in an instance's directory if it needs a base."""
    return _overlays(instance_dir, _SWAP, 'swap')


def _overlays(
    instance_dir: str, names: re.Pattern[str], base: str,
    without: Collection[str] = (),
) -> Iterator[Overlay]:
    """Yield the qcow2 disks whose backing file has a name that begins so.

    Only what ``disk.info`` calls qcow2 is looked into: a raw disk is the
    guest's to write, and could pretend to have a backing file.
    """
    for path, form in sorted(_formats(instance_dir).items()):
        name = os.path.basename(path)
        path = os.path.join(instance_dir, name)
        if (form == 'qcow2' and names.fullmatch(name)
                and name not in without and os.path.exists(path)
                and names_backing_file(path)):
            backing = libvirt_utils.get_disk_backing_file(
                path, basename=False)
            if backing and os.path.basename(backing).startswith(base):
                yield Overlay(name, path, backing)


def names_backing_file(path: str) -> bool:
    """Say whether a qcow2 does, by what its header begins with.

    qemu-img takes a tenth of a second for that, and most disks have been
    moved and name none. See docs/interop/qcow2 of QEMU.
    """
    with open(path, 'rb') as file:
        return any(file.read(16)[8:])


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
    found = jsonutils.loads(text) if text else {}
    if not isinstance(found, dict):
        raise ValueError(f'{name} in {instance_dir} has no record of disks')
    return found


def _known_bases(instance_dir: str) -> dict[str, str]:
    """Return what has been written down; what cannot be read is unknown."""
    try:
        return _record(instance_dir, _BASES)
    except (OSError, ValueError) as error:
        LOG.warning('%(name)s in %(directory)s cannot be read: %(error)s', {
            'name': _BASES, 'directory': instance_dir, 'error': error})
        return {}


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


def flat_size(path: str) -> int:
    """Return how many bytes :func:`flatten` will write of a qcow2 disk."""
    found, _errors = processutils.execute(
        'qemu-img', 'measure', '--output', 'json', '-O', 'qcow2',
        f'json:{jsonutils.dumps(_node(path, "qcow2"))}')
    size: int = jsonutils.loads(found)['required']
    return size


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
    if not os.access(path, os.R_OK):
        return None     # of which blkid says the same as of an empty one
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
    under its name, for the next guest. One that is missing already is written
    down as such: what will be there next is another.
    """
    _remember(instance_dir, {
        overlay.name: _identity(overlay) for overlay in overlays})


def distrust_bases(instance_dir: str, overlays: Iterable[Overlay]) -> None:
    """Write down that what is here under those names is another host's."""
    _remember(instance_dir, {overlay.name: _MISSING for overlay in overlays})


def _remember(instance_dir: str, identities: Mapping[str, str]) -> None:
    known = _known_bases(instance_dir)
    found = {name: identity for name, identity
             in {**known, **identities}.items() if identity}
    if found == known:
        return
    target = os.path.join(instance_dir, _BASES)
    try:
        with scratch.directory(target) as directory:
            made = os.path.join(directory, _BASES)
            with open(made, 'w') as record:
                record.write(jsonutils.dumps(found))
            scratch.write_through(made)
            os.rename(made, target)
    except OSError as error:
        # a guest on a full file system is to be started all the same
        LOG.warning('What disks lie upon could not be written to %(path)s: '
                    '%(error)s', {'path': target, 'error': error})


def _identity(overlay: Overlay) -> str:
    """Return what tells a backing file from others, '' if nothing does."""
    if not _is_missing(overlay.backing):
        return (filesystem(overlay.backing) or {}).get('UUID', '')
    LOG.warning('The backing file %(base)s of %(disk)s is missing. While the '
                'guest runs, QEMU has it open still: migrate or stop the '
                'guest, which makes the disk complete.',
                {'base': overlay.backing, 'disk': overlay.path})
    return _MISSING


def _is_missing(base: str) -> bool:
    """Say whether a file is known not to be there.

    Where there is nothing beside it, what has it may not be mounted.
    """
    try:
        os.stat(base)
    except FileNotFoundError:
        directory = os.path.dirname(base)
        return os.path.isdir(directory) and bool(os.listdir(directory))
    except OSError as error:
        LOG.info('Whether %(path)s is there could not be found out: '
                 '%(error)s', {'path': base, 'error': error})
    return False


def remember_unknown_bases(instance_dir: str) -> None:
    """Write it down where that was not done when the disk was made."""
    remember_bases(instance_dir, list(ephemeral_overlays(
        instance_dir, without=_known_bases(instance_dir))))


def lost(
    overlay: Overlay,
    filesystem_of: Callable[[str], Mapping[str, str] | None] | None = None,
) -> str:
    """Say what has become of the file that a disk was laid upon.

    :param filesystem_of: is asked instead of :func:`filesystem` for the
        backing file, by those who look at many disks
    :returns: '' if it is there, as far as is known
    """
    if not os.path.exists(overlay.backing):
        return 'is missing'
    known = _known_bases(os.path.dirname(overlay.path)).get(overlay.name)
    if known == _MISSING:
        return ('was missing before, and what has its name now may be '
                f'another (if it is the right one, remove {overlay.name} '
                f'from {_BASES} beside the disk)')
    ask = filesystem_of or filesystem
    found = ask(overlay.backing) if known else None
    if found is not None and found.get('UUID') != known:
        return 'is another one than the disk was laid upon'
    return ''


def is_written(overlay: Overlay) -> bool:
    """Say whether the guest has written to a disk, without its base."""
    blind = jsonutils.dumps({**_node(overlay.path, 'qcow2'), 'backing': None})
    extents, _errors = processutils.execute(
        'qemu-img', 'map', '--force-share', '--output', 'json',
        f'json:{blind}')
    return any(extent['data'] or extent.get('present')
               for extent in jsonutils.loads(extents))
