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
"""Make files in scratch directories before they get their final names.

After a crash, no partial file may have the name that Nova looks for: the next
guest would use a base file without a file system. Every file that takes time
is therefore made in a scratch directory beside its target and then renamed.

Nova's image cache parses the names of all files in ``_base``. To be ignored
there, the names of scratch directories contain no underscore and are shorter
than the 40 characters of a Glance image's base file, whatever the host name
is.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import ctypes
import fcntl
import glob
import hashlib
import os
import tempfile
import time
import uuid

from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_log import log as logging

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

_ARCHIVE = 'migfix-archive-'
# Age in seconds after which an archive is no longer in use.
_MAX_ARCHIVE_AGE = 24 * 3600


# Distinguishes the directories of this process from those of others. The lock
# does not: over NFS, a process can lock a file again that it has locked.
_RUN_ID = uuid.uuid4().hex[:8]

# A file in each directory, locked by the process that made the directory.
_LOCK = '.lock'


_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 1 << 1


def _prefix() -> str:
    """Return the name prefix of this host's directories on shared storage."""
    return f'migfix-{hashlib.sha256(CONF.host.encode()).hexdigest()[:12]}-'


@contextlib.contextmanager
def directory(beside: str) -> Iterator[str]:
    """Make a directory beside a file, and remove it after use.

    :param beside: path of the file that the caller makes
    :returns: path of the directory, which is on the same file system
    """
    with contextlib.ExitStack() as stack:
        while True:
            path = tempfile.mkdtemp(
                prefix=f'{_prefix()}{_RUN_ID}-', dir=os.path.dirname(beside))
            stack.callback(remove, path)
            if stack.enter_context(_lock_in(path)):
                break       # otherwise another process has just swept it
        yield path


def exchange(one: str, other: str) -> None:
    """Exchange the names of two files atomically, with renameat2(2).

    :raises OSError: a file is missing, or the file system does not support
        that, such as NFS
    """
    if _LIBC.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD,
                       os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), one)


def replace(made: str, path: str) -> None:
    """Replace a file by one from a scratch directory.

    The old file moves to the scratch directory and is removed with that,
    because nova-compute itself would take long to delete it.
    """
    try:
        exchange(made, path)
    except OSError:
        os.rename(made, path)


def remove(path: str) -> None:
    """Remove a file or directory, in another process.

    A file system takes 100 ms or more to free a new ext4 of 20 GB, which would
    block a nova-compute under eventlet.

    :raises OSError: it could not be removed completely
    """
    try:
        processutils.execute('rm', '-rf', '--', path)
    except processutils.ProcessExecutionError as error:
        raise OSError(
            f'{path} could not be removed: {error.stderr}') from error


@contextlib.contextmanager
def locked(path: str) -> Iterator[bool]:
    """Try to lock a file, and create it if it does not exist.

    The kernel releases the lock when the process ends in any way. The lock is
    valid in all containers that mount the file system.

    :returns: whether this call locked the file; False also if another process
        has just removed it
    :raises OSError: the file system has no locks, or the directory of the file
        does not exist
    """
    with open(path, 'w') as file:   # NFS locks only files open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield os.fstat(file.fileno()).st_nlink > 0


@contextlib.contextmanager
def _lock_in(directory: str) -> Iterator[bool]:
    """Lock a new directory of this process.

    :returns: False if another process has swept the directory
    """
    path = os.path.join(directory, _LOCK)
    with contextlib.ExitStack() as stack:
        try:
            is_locked = stack.enter_context(locked(path))
        except FileNotFoundError:
            is_locked = False
        yield is_locked


def write_through(path: str) -> None:
    """Flush a file to the disk, in another process.

    A file that is renamed before that may be empty after a power failure. With
    many dirty pages fsync(2) takes minutes, and would block a nova-compute
    under eventlet, which then could not even report that it is alive.

    :raises OSError: the file could not be flushed
    """
    try:
        processutils.execute('sync', '--', path)
    except processutils.ProcessExecutionError as error:
        raise OSError(
            f'{path} could not be flushed to disk: {error.stderr}') from error


def archive() -> str:
    """Return a new name for an archive that a peer fetches, see sweep()."""
    return f'{_ARCHIVE}{uuid.uuid4()}.tar'


def sweep() -> None:
    """Remove the files that killed processes of this host have left.

    A peer may be fetching an archive, so remove only archives that are more
    than a day old.
    """
    for path in _find(f'{_prefix()}*'):
        if not os.path.basename(path).startswith(f'{_prefix()}{_RUN_ID}-'):
            _remove(_remove_unless_locked, path)
    oldest = time.time() - _MAX_ARCHIVE_AGE
    for path in _find(f'{_ARCHIVE}*.tar'):
        # The peer may remove it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if os.path.getmtime(path) < oldest:
                _remove(os.unlink, path)


def _remove_unless_locked(directory: str) -> bool:
    """Remove a directory unless a process uses it.

    :returns: False if a process uses it, possibly in another container
    """
    with locked(os.path.join(directory, _LOCK)) as is_unused:
        if is_unused:
            remove(directory)
        return is_unused


def _remove(remove: Callable[[str], bool | None], path: str) -> None:
    try:
        is_used = remove(path) is False
    except FileNotFoundError:
        return      # Its process has just removed it.
    except OSError as error:
        LOG.warning('%(path)s, which was left by a process that did not '
                    'end properly, cannot be removed: %(error)s',
                    {'path': path, 'error': error})
        return
    if not is_used:
        LOG.info('Removed %s, which was left by a process that did not '
                 'end properly', path)


def _find(pattern: str) -> Iterator[str]:
    """Yield matching paths in the instances path and its subdirectories."""
    root = glob.escape(CONF.instances_path)
    for directory in (root, *map(glob.escape, glob.iglob(f'{root}/*/'))):
        yield from glob.iglob(os.path.join(directory, pattern))
        time.sleep(0)       # let other greenthreads run
