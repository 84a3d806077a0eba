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

With qcow2 Nova makes an ephemeral disk as an overlay: it has what the guest
has written, and its backing file in ``_base`` has a new file system, which all
disks of that size on the host share. Only the name identifies a backing file,
and no two files of that name on two hosts have the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import errno
import glob
import os
import re
import struct
import time
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

from nova.virt.disk import api as disk_api
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_serialization import jsonutils

from nova_migfix.storage import scratch

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

# The first is the name of an ephemeral disk that comes from the flavor.
_EPHEMERAL = re.compile(r'disk\.(?:local|eph([0-9]{1,3}))')
_SWAP = re.compile(r'disk\.swap')

#: how the names of base files begin that Nova makes on each host
_BASE_PREFIXES = ('ephemeral', 'swap')

# Bytes that are read at once.
_BLOCK = 1 << 20

# Nova's record of the formats of an instance's disks, in its directory.
_INFO = 'disk.info'

# A name of a backing file, and an L1 table, have no more bytes. QEMU's limits.
_MAX_NAME = 1023
_MAX_L1 = 32 << 20

# The header of a qcow2 up to l1_table_offset, then the incompatible features
# of version 3, of which the third bit says that the data is in another file:
# docs/interop/qcow2.rst of QEMU.
_HEADER = struct.Struct('>4sIQIIQIIQ')
_FEATURES = struct.Struct('>72xQ')
_MAGIC = b'QFI\xfb'
_DATA_FILE = 1 << 2


class Qcow2(NamedTuple):
    """The header of a qcow2 image.

    qemu-img takes a tenth of a second to read it.
    """

    #: path of the backing file as the image names it, '' without one
    backing: str
    #: bytes that a guest sees
    size: int
    #: the guest has written to it, or may have
    is_written: bool
    #: an external file has the data
    has_data_file: bool


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
        """The path of a backing file of its own, see block_job."""
        return os.path.join(os.path.dirname(self.path),
                            f'{_BASE_PREFIXES[0]}.{self.name}')

    @property
    def number(self) -> int:
        """The index of the disk among the instance's ephemeral disks."""
        match = _EPHEMERAL.fullmatch(self.name)
        return int(match[1] or 0) if match else 0


def qcow2_header(path: str) -> Qcow2 | None:
    """Read the header of a disk.

    :returns: None if it is not a qcow2 image
    :raises OSError: the file cannot be read
    """
    with open(path, 'rb') as file:
        start = file.read(_FEATURES.size).ljust(_FEATURES.size, b'\0')
        (magic, version, name_offset, name_size, _bits, size, _encryption,
         l1_entries, l1_offset) = _HEADER.unpack_from(start)
        if magic != _MAGIC:
            return None
        features, = _FEATURES.unpack(start)
        name = _read(file, name_offset, min(name_size, _MAX_NAME))
        # Without an L2 table there is no cluster.
        is_written = any(_read(file, l1_offset, min(l1_entries * 8, _MAX_L1)))
    return Qcow2(os.fsdecode(name), size, is_written,
                 version >= 3 and bool(features & _DATA_FILE))


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    """Read at an offset; a damaged header may have any, and 0 means none."""
    if not 0 < offset < os.fstat(file.fileno()).st_size:
        return b''
    file.seek(offset)
    return file.read(size)


def overlays(instance_dir: str) -> Iterator[Overlay]:
    """Yield the ephemeral and swap disks of an instance that need a base.

    Only what ``disk.info`` calls qcow2 is read: a raw disk is the guest's to
    write, and could pretend to have a backing file.

    :raises OSError, ValueError: disks or ``disk.info`` cannot be read
    """
    for recorded, form in sorted(_formats(instance_dir).items()):
        name = os.path.basename(recorded)
        path = os.path.join(instance_dir, name)
        if (form == 'qcow2' and os.path.exists(path)
                and (_EPHEMERAL.fullmatch(name) or _SWAP.fullmatch(name))):
            header = qcow2_header(path)
            if header and has_local_base_name(header.backing):
                yield Overlay(name, path, os.path.join(
                    instance_dir, header.backing))


def all_overlays(
    note: Callable[[str], object],
) -> Iterator[tuple[str, Overlay]]:
    """Yield :func:`overlays` of all instances below ``instances_path``.

    :param note: is called with each problem
    :returns: name of the instance's directory, and disk
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
    """Yield the disks that have, or had, a backing file of their own.

    :returns: name of the instance's directory, and disk
    """
    for copy in sorted(glob.glob(os.path.join(
            glob.escape(CONF.instances_path), '*',
            f'{_BASE_PREFIXES[0]}.disk*'))):
        directory, called = os.path.split(copy)
        name = called.partition('.')[2]
        if _EPHEMERAL.fullmatch(name) or _SWAP.fullmatch(name):
            yield os.path.basename(directory), Overlay(
                name, os.path.join(directory, name), copy)


def ephemeral_overlays(instance_dir: str) -> Iterator[Overlay]:
    """Yield those of :func:`overlays` that are ephemeral disks."""
    return (overlay for overlay in overlays(instance_dir)
            if not overlay.is_swap)


def has_local_base_name(backing: str | None) -> bool:
    """Say whether Nova makes a backing file on each host."""
    return os.path.basename(backing or '').startswith(_BASE_PREFIXES)


def is_missing(path: str) -> bool:
    """Say whether a file is known to be gone.

    A file that cannot be looked at, for lack of rights or of a server, is not.
    """
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        LOG.warning('Nobody can say whether %(path)s exists: %(error)s',
                    {'path': path, 'error': error})
    return False


def lacks_backing_file(overlay: Overlay) -> bool:
    """Say whether the backing file of a disk is known to be gone."""
    return is_missing(overlay.backing)


def is_on_copy(overlay: Overlay) -> bool:
    """Say whether a disk now lies on a file of its own, which has its data."""
    header = qcow2_header(overlay.path)
    return header is not None and header.backing == overlay.copy


def is_written(overlay: Overlay) -> bool:
    """Say whether the guest has written to a disk, or may have."""
    header = qcow2_header(overlay.path)
    return (header is None or header.is_written
            or header.backing == overlay.copy)


def bases_in_use() -> set[str]:
    """Return the names of the base files that disks on this host name.

    All disks below ``instances_path`` count, also those of instances that are
    stopped, resized, or on other hosts that share the directory.

    :raises OSError: a disk cannot be read
    """
    names: set[str] = set()
    for directory in os.scandir(CONF.instances_path):
        if directory.is_dir():
            names.update(_named_bases(directory.path))
            time.sleep(0)       # other greenthreads go on
    return names


def _named_bases(instance_dir: str) -> Iterator[str]:
    for disk in os.scandir(instance_dir):
        if disk.name.startswith('disk') and disk.is_file():
            # A guest may be deleted meanwhile.
            with contextlib.suppress(FileNotFoundError):
                header = qcow2_header(disk.path)
                if header and header.backing:
                    yield os.path.basename(header.backing)


def _formats(instance_dir: str) -> dict[str, str]:
    """Return Nova's record of the format of each of an instance's files.

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


def flatten(path: str, form: str, target: str, size: int = 0,
            backing: str | None = None, **execution: Any) -> None:
    """Make a qcow2 without backing file that has the bytes of a disk.

    The cost follows the data; ``qemu-img rebase`` reads every hole. A new disk
    that replaces the only one there is, is written through first.

    :param path: the disk
    :param form: its format, 'raw' or 'qcow2'
    :param target: where the new disk is put when it is complete; may be
        *path*, else no file may be there
    :param size: the least size of the new disk, in bytes
    :param backing: a raw file that is read as the backing file, instead of
        the one that the disk names
    :param execution: for processutils.execute, as ``on_execute``
    :raises ValueError: the disk has its data in another file
    :raises OSError, ProcessExecutionError: it could not be made
    """
    with scratch.directory(target) as directory:
        made = os.path.join(directory, os.path.basename(target))
        copy(path, form, made, backing=backing, **execution)
        if size > virtual_size(made):
            processutils.execute('qemu-img', 'resize', '-f', 'qcow2', made,
                                 str(size), **execution)
        if target == path:
            scratch.write_through(made)
            scratch.replace(made, target)
        else:
            # A late attempt must not replace the disk of the next one.
            os.link(made, target)


def copy(path: str, form: str, target: str, *options: str,
         backing: str | None = None, **execution: Any) -> None:
    """Make a qcow2 without backing file, as :func:`flatten`, in its place.

    :param options: for qemu-img convert
    """
    source = _node(path, form)
    if form == 'qcow2':
        _refuse_data_file(path)
        if backing:
            source['backing'] = _node(backing, 'raw')
    processutils.execute('qemu-img', 'convert', *options, '-O', 'qcow2',
                         f'json:{jsonutils.dumps(source)}', target,
                         **execution)


def is_open(path: str) -> bool:
    """Say whether a process of QEMU has a qcow2 disk open for writing.

    qemu-img shares no image that another process writes to, unless it is
    told to.
    """
    try:
        processutils.execute('qemu-img', 'info', '-f', 'qcow2', path)
    except processutils.ProcessExecutionError as error:
        if 'lock' in (error.stderr or ''):
            return True
        raise
    return False


def name_backing_file(path: str, backing: str) -> None:
    """Change the backing file that a qcow2 disk names, and nothing else.

    :raises ValueError: the disk has its data in another file
    """
    _refuse_data_file(path)
    processutils.execute('qemu-img', 'rebase', '-u', '-f', 'qcow2',
                         '-F', 'raw', '-b', backing, path)


def absorb_backing_file(path: str, **execution: Any) -> None:
    """Copy into a qcow2 disk what its backing file has, in place.

    This reads every hole, and needs the least space. The disk names its
    backing file until all is copied.

    :param execution: for processutils.execute
    :raises ProcessExecutionError: the disk still needs its backing file
    """
    processutils.execute('qemu-img', 'rebase', '-f', 'qcow2', '-b', '', path,
                         **execution)


def _refuse_data_file(path: str) -> None:
    """Keep qemu-img from following what a peer has sent to another file."""
    header = qcow2_header(path)
    if header and header.has_data_file:
        raise ValueError(f'{path} names an external data file')


def flat_size(path: str) -> int:
    """Return how many bytes :func:`flatten` will write of a qcow2 disk.

    A guest may run on it.
    """
    found, _errors = processutils.execute(
        'qemu-img', 'measure', '--force-share', '--output', 'json', '-O',
        'qcow2', f'json:{jsonutils.dumps(_node(path, "qcow2"))}')
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
