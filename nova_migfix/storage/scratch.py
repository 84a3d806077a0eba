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
"""Directories in which files are made before they get their names.

A file that a crash leaves half made must not be found under the name that
Nova looks for: a base file without a file system is taken for a finished one
by the next guest. So whatever takes time is made in a directory of its own
beside its place and then renamed.

The names mean nothing to Nova's image cache, which parses those of all that
lies in ``_base``: they have no underscore of their own and fewer than the 40
characters of a Glance image's, whatever the host is called.
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
# Seconds after which an archive was left.
_FORGOTTEN = 24 * 3600


# Tells the directories of this process from those of others. Over NFS a
# process gets a lock that it has.
_RUN = uuid.uuid4().hex[:8]

# A file in each directory, which its process has locked.
_LOCK = '.lock'


_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 1 << 1


def _prefix() -> str:
    """Return what this host's directories begin with; storage is shared."""
    return f'migfix-{hashlib.sha256(CONF.host.encode()).hexdigest()[:12]}-'


@contextlib.contextmanager
def directory(beside: str) -> Iterator[str]:
    """Make a directory on the file system of *beside*, and remove it again.

    :param beside: path of the file that is to be made
    :returns: path of the directory
    """
    with contextlib.ExitStack() as stack:
        while True:
            path = tempfile.mkdtemp(
                prefix=f'{_prefix()}{_RUN}-', dir=os.path.dirname(beside))
            stack.callback(remove, path)
            if stack.enter_context(_lock_in(path)):
                break       # else another process sweeps it away just now
        yield path


def exchange(one: str, other: str) -> None:
    """Have two files change names, with nothing in between: renameat2(2).

    :raises OSError: one is not there, or the file system cannot, as NFS
    """
    if _LIBC.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD,
                       os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), one)


def replace(made: str, path: str) -> None:
    """Have a file of a scratch directory take the place of another.

    That goes with the directory: within nova-compute it would take long.
    """
    try:
        exchange(made, path)
    except OSError:
        os.rename(made, path)


def remove(path: str) -> None:
    """Remove whatever has a name, in another process.

    A file system takes up to 100 ms and more to free a new ext4 of 20 GB, in
    which a nova-compute under eventlet would do nothing else.

    :raises OSError: something of it is left
    """
    try:
        processutils.execute('rm', '-rf', '--', path)
    except processutils.ProcessExecutionError as error:
        raise OSError(f'{path} is left: {error.stderr}') from error


@contextlib.contextmanager
def locked(path: str) -> Iterator[bool]:
    """Lock a file, which is made if it is not there, unless it is locked.

    The lock ends with the process, however that ends, and holds for all
    containers that have the file system.

    :returns: whether it is locked by this; not if it is removed just now
    :raises OSError: the file system has no locks, or the directory of the file
        is gone
    """
    with open(path, 'w') as file:   # NFS wants it to be open for writing
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield os.fstat(file.fileno()).st_nlink > 0


@contextlib.contextmanager
def _lock_in(directory: str) -> Iterator[bool]:
    """Lock a new directory of this process.

    :returns: False if it has been swept away
    """
    path = os.path.join(directory, _LOCK)
    with contextlib.ExitStack() as stack:
        try:
            is_locked = stack.enter_context(locked(path))
        except FileNotFoundError:
            is_locked = False
        yield is_locked


def write_through(path: str) -> None:
    """Wait until a file is on the disk.

    What is renamed before that may be empty after a loss of power. Another
    process waits: with many dirty pages fsync(2) takes minutes, in which a
    nova-compute under eventlet would do nothing else, not even report that it
    is alive.

    :raises OSError: it could not be written
    """
    try:
        processutils.execute('sync', '--', path)
    except processutils.ProcessExecutionError as error:
        raise OSError(
            f'{path} could not be written through: {error.stderr}') from error


def archive() -> str:
    """Return a new name for an archive that a peer fetches, see sweep."""
    return f'{_ARCHIVE}{uuid.uuid4()}.tar'


def sweep() -> None:
    """Remove what a process of this host that was killed has left.

    Archives may belong to a peer that fetches one just now, so only those go
    that nobody can want any more.
    """
    for path in _find(f'{_prefix()}*'):
        if not os.path.basename(path).startswith(f'{_prefix()}{_RUN}-'):
            _remove(_remove_unless_locked, path)
    old = time.time() - _FORGOTTEN
    for path in _find(f'{_ARCHIVE}*.tar'):
        # the peer may remove it just now
        with contextlib.suppress(FileNotFoundError):
            if os.path.getmtime(path) < old:
                _remove(os.unlink, path)


def _remove_unless_locked(directory: str) -> bool:
    """Remove a directory that no process uses.

    :returns: False if one uses it, maybe in another container
    """
    with locked(os.path.join(directory, _LOCK)) as is_left:
        if is_left:
            remove(directory)
        return is_left


def _remove(remove: Callable[[str], bool | None], path: str) -> None:
    try:
        is_used = remove(path) is False
    except FileNotFoundError:
        return      # its process has ended just now
    except OSError as error:
        LOG.warning('%(path)s, which was left by a process that did not '
                    'end properly, cannot be removed: %(error)s',
                    {'path': path, 'error': error})
        return
    if not is_used:
        LOG.info('Removed %s, which was left by a process that did not '
                 'end properly', path)


def _find(pattern: str) -> Iterator[str]:
    """Yield the paths of all that is called so where instances are."""
    root = glob.escape(CONF.instances_path)
    for directory in (root, *map(glob.escape, glob.iglob(f'{root}/*/'))):
        yield from glob.iglob(os.path.join(directory, pattern))
        time.sleep(0)       # other greenthreads go on
