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
"""Read and convert one image file: a disk, or the backing file of one."""

from __future__ import annotations

from collections.abc import Iterator
import errno
import os
import struct
from typing import Any
from typing import BinaryIO
from typing import NamedTuple

from nova.virt.disk import api as disk_api
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_serialization import jsonutils

from nova_migfix.storage import scratch

LOG = logging.getLogger(__name__)

# Bytes per read.
_BLOCK = 1 << 20

# QEMU's limits, in bytes, of a backing file's name and of an L1 table.
_MAX_NAME = 1023
_MAX_L1 = 32 << 20

# The header of a qcow2 image up to l1_table_offset, and the incompatible
# features of version 3, whose third bit means an external data file:
# docs/interop/qcow2.rst of QEMU.
_HEADER = struct.Struct('>4sIQIIQIIQ')
_FEATURES = struct.Struct('>72xQ')
_MAGIC = b'QFI\xfb'
_DATA_FILE = 1 << 2


class Qcow2(NamedTuple):
    """The header of a qcow2 image.

    The plugin parses it itself, because qemu-img takes a tenth of a second.
    """

    #: path of the backing file as in the image, '' without backing file
    backing: str
    #: virtual size in bytes
    size: int
    #: whether the guest has written to it, or may have
    is_written: bool
    #: whether the data is in an external file
    has_data_file: bool


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
        # An image without L2 tables has no clusters.
        is_written = any(_read(file, l1_offset, min(l1_entries * 8, _MAX_L1)))
    return Qcow2(os.fsdecode(name), size, is_written,
                 version >= 3 and bool(features & _DATA_FILE))


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    """Return up to *size* bytes at an offset that a header names.

    :returns: ``b''`` at offset 0, which means that the image has no such data,
        and past the end of the file, where a damaged header may point
    """
    if not 0 < offset < os.fstat(file.fileno()).st_size:
        return b''
    file.seek(offset)
    return file.read(size)


def flatten(path: str, form: str, target: str, size: int = 0,
            backing: str | None = None, **execution: Any) -> None:
    """Make a qcow2 without backing file that has the bytes of a disk.

    The cost depends on the amount of data, while ``qemu-img rebase`` reads
    every hole. A new disk is flushed before it replaces the original.

    :param path: the disk
    :param form: its format, 'raw' or 'qcow2'
    :param target: path of the new disk, which appears there when it is
        complete; either *path*, or no file may exist there
    :param size: minimum virtual size of the new disk, in bytes
    :param backing: a raw file to read as the backing file, instead of the one
        that the disk names
    :param execution: passed to processutils.execute, such as ``on_execute``
    :raises ValueError: the disk has an external data file
    :raises OSError, ProcessExecutionError: the new disk could not be made
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
            # An attempt that is late must not replace the disk of its retry.
            os.link(made, target)


def copy(path: str, form: str, target: str, *options: str,
         backing: str | None = None, **execution: Any) -> None:
    """Make a qcow2 without backing file, like :func:`flatten`.

    Write directly to *target*.

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
    """Return whether a QEMU process has a qcow2 disk open for writing.

    Without ``--force-share``, qemu-img refuses an image that another process
    has locked for writing.
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

    :raises ValueError: the disk has an external data file
    """
    _refuse_data_file(path)
    processutils.execute('qemu-img', 'rebase', '-u', '-f', 'qcow2',
                         '-F', 'raw', '-b', backing, path)


def absorb_backing_file(path: str, **execution: Any) -> None:
    """Copy the data of its backing file into a qcow2 disk, in place.

    This reads every hole, but needs the least space. The disk names its
    backing file until all data is copied.

    :param execution: passed to processutils.execute
    :raises ProcessExecutionError: the disk still needs its backing file
    """
    processutils.execute('qemu-img', 'rebase', '-f', 'qcow2', '-b', '', path,
                         **execution)


def _refuse_data_file(path: str) -> None:
    """Refuse a disk with an external data file.

    A peer may have sent it, and qemu-img would open any file that it names.
    """
    header = qcow2_header(path)
    if header and header.has_data_file:
        raise ValueError(f'{path} names an external data file')


def flat_size(path: str) -> int:
    """Return how many bytes :func:`flatten` writes for a qcow2 disk.

    The disk may be in use by a guest.
    """
    found, _errors = processutils.execute(
        'qemu-img', 'measure', '--force-share', '--output', 'json', '-O',
        'qcow2', f'json:{jsonutils.dumps(_node(path, "qcow2"))}')
    size: int = jsonutils.loads(found)['required']
    return size


def virtual_size(path: str) -> int:
    """Return the virtual size of a qcow2 disk in bytes."""
    size: int = disk_api.get_disk_size(str(path))
    return size


def _node(path: str, form: str) -> dict[str, Any]:
    """Return QEMU's description of a file, which prevents format probing."""
    return {'driver': form, 'file': {'driver': 'file', 'filename': path}}


def is_zeros(path: str) -> bool:
    """Return whether a file has nothing but zeros, without reading holes.

    :returns: False also if the file does not exist
    """
    if not os.path.isfile(path):
        return False
    with open(path, 'rb') as file:
        return not any(any(block) for block in _data(file.fileno()))


def _data(descriptor: int) -> Iterator[bytes]:
    """Yield the data between the holes of a file, in blocks."""
    end = 0
    while True:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return      # no data up to the end of the file
            raise
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        for offset in range(begin, end, _BLOCK):
            yield os.pread(descriptor, min(_BLOCK, end - offset), offset)


def filesystem(path: str) -> dict[str, str] | None:
    """Return blkid's properties of a raw image: TYPE, UUID, LABEL and more.

    :returns: an empty dictionary if the image has no file system, None if
        blkid cannot be run or cannot read the file
    """
    if not os.access(path, os.R_OK):
        return None     # blkid exits as it does for an empty file
    try:
        found, _errors = processutils.execute(
            'blkid', '--probe', '--output', 'export', path,
            check_exit_code=[0, 2])
    except (OSError, processutils.ProcessExecutionError) as error:
        LOG.info('Could not determine the file system of %(path)s: %(error)s',
                 {'path': path, 'error': error})
        return None
    return dict(line.split('=', 1) for line in found.splitlines())
