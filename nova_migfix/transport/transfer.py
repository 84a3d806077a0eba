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
"""Fetch files of a guest from the source.

Files that are huge and almost empty are pulled by ``tar --sparse``, the one
way whose cost follows the data: ``scp`` sends every zero, ``rsync --sparse``
reads every hole.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Iterator
import contextlib
import os
import re
import shlex
import stat
import subprocess
import tempfile
import time
from typing import Any
from typing import IO

from nova.virt.libvirt.volume import remotefs
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_utils import netutils

from nova_migfix import migration
from nova_migfix.storage import scratch
from nova_migfix.transport import address

CONF = cfg.CONF

# A network that is cut has to be noticed: within 15 seconds.
_SSH = ('ssh', '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=15',
        '-o', 'ServerAliveInterval=5', '-o', 'ServerAliveCountMax=3')
_ARCHIVE = 'files.tar'
# What no path has, and no log should: control characters, and halves of
# characters that JSON can have.
_UNPRINTABLE = re.compile('[\x00-\x1f\x7f-\x9f\ud800-\udfff]')
_POLL = 0.05        # seconds
# Seconds that the source may take to end when the destination has ended.
_GRACE = 10
# Bytes of complaints after which a session is ended, and that are read.
_MAX_ERRORS = 1 << 20
_MAX_SAID = 1 << 16

# The source writes an archive for each file. An exit code of 1 is no failure:
# a file "changed as we read it" when Nova touches a backing file, as it does
# whenever it uses one, or when the guest writes to a config drive, of which
# libvirt copies what is written. But it means also that a file shrank and was
# filled up with zeros: tar says so, and one that has another size afterwards
# is not taken either.
_SEND = ' '.join("""
export LC_ALL=C; exec 3>&1;
for path; do
    before=$(stat --dereference --format=%s -- "$path") || exit;
    said=$(tar --create --sparse --dereference --no-recursion --no-unquote
        --format=gnu --file -
        --directory "${path%/*}/" -- "${path##*/}" 2>&1 >&3 3>&-);
    code=$?;
    [ -z "$said" ] || { printf %s "$said"; echo; } >&2;
    case $code,$said in
        0,*) ;;
        1,*"File shrank by "*) exit 1 ;;
        1,*) ;;
        *) exit $code ;;
    esac;
    after=$(stat --dereference --format=%s -- "$path") || exit;
    [ $after -eq $before ] || {
        printf "%s: had %s bytes, has %s now" "$path" $before $after >&2;
        echo >&2; exit 1; };
done
""".split())


class RemoteFilesystem(remotefs.RemoteFilesystem):
    """Nova's, for the one file that it names as ``host:path`` itself.

    Up to 30.0 ``pre_live_migration`` copies an ISO config drive that way.
    """

    def copy_file(self, src: str, dst: str, *args: Any,
                  **kwargs: Any) -> None:
        host, separator, path = src.partition(':/')
        if separator:
            peer = netutils.escape_ipv6(migration.source(host))
            src = f'{peer}{separator}{path}'
        super().copy_file(src, dst, *args, **kwargs)


def fetch(host: str, paths: Collection[str], directory: str) -> None:
    """Fetch files in one session; holes stay holes.

    By ``[libvirt] remote_filesystem_transport``.

    :param host: a host name or an IP literal
    :param paths: absolute paths of the files on that host, no two of which
        end alike
    :param directory: where they are put under their own names
    :raises ValueError: host or paths are not what they should be, or what
        came is no file
    :raises OSError: something that was asked for did not come
    :raises ProcessExecutionError: they could not be had
    """
    checked = [_checked(path) for path in sorted(paths)]
    names = sorted(map(os.path.basename, checked))
    if len(set(names)) < len(names):
        raise ValueError(f'two files of one name: {", ".join(names)}')
    {'ssh': _by_ssh, 'rsync': _by_rsync}[
        CONF.libvirt.remote_filesystem_transport](
            address.check(host), checked, directory)
    for name in names:
        path = os.path.join(directory, name)
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f'{name} came as something else than a file')
        # A peer makes no program of it, nor a file that others may write to.
        os.chmod(path, mode & 0o644 | 0o600)


def _checked(path: str) -> str:
    """Return the normal form of *path*, which a peer has named.

    Shells get it quoted, so blanks and the like are no matter.

    :raises ValueError: it is not absolute, names no file, leads upwards, has
        control characters, or a part that looks like an option
    """
    parts = path.split('/')
    if (parts[0] or parts[-1] in ('', '.') or '..' in parts
            or any(part.startswith('-') for part in parts)
            or _UNPRINTABLE.search(path)):
        raise ValueError(f'not a path of a disk: {path!r:.300}')
    # POSIX lets two slashes at the beginning stay.
    return f'/{os.path.normpath(path).lstrip("/")}'


def _send(paths: list[str]) -> str:
    """Return what a shell of the source runs, see _SEND."""
    return shlex.join(['sh', '-c', _SEND, 'sh', *paths])


def _untar(archive: str, directory: str) -> list[str]:
    """Return the command that unpacks what _send has written.

    One archive follows the other. A peer does not set the mode of *directory*.
    """
    return ['tar', '--extract', '--sparse', '--ignore-zeros',
            '--no-same-owner', '--no-overwrite-dir', '--directory', directory,
            '--file', archive]


def _by_ssh(host: str, paths: list[str], directory: str) -> None:
    # ssh does not say why it could not write; tar does.
    _run([*_SSH, host, _send(paths)], _untar('-', directory))


def _by_rsync(host: str, paths: list[str], directory: str) -> None:
    """Let the remote end make the archive before its rsync sends it.

    ``--rsync-path`` is documented to be a command line of the remote shell.
    rsync has no time limit: until the archive is made it would only wait. A
    network that is cut is noticed by ssh. Releases of rsync differ in how they
    quote a remote path; the archive's is a plain name in a directory that
    our command line has changed to.
    """
    remote = scratch.archive()
    there = shlex.join(['sh', '-c', (
        f'{shlex.join(["cd", "--", os.path.dirname(paths[0])])} || exit; '
        f'trap {shlex.quote(shlex.join(["rm", "-f", remote]))} '
        'EXIT HUP INT TERM; umask 077; '
        f'{_send(paths)} >{remote} && rsync "$@"'), 'rsync'])
    archive = os.path.join(directory, _ARCHIVE)
    _run(['rsync', '--rsh', shlex.join(_SSH), '--rsync-path', there,
          f'{netutils.escape_ipv6(host)}:{remote}', archive])
    _run(_untar(archive, directory))
    os.unlink(archive)


def remove_empty_directory(host: str, path: str) -> None:
    """Remove a directory on another host, unless it has become another's.

    :raises ProcessExecutionError: it is not empty, or cannot be had
    """
    execute(host, 'rmdir', '--', path)


def execute(host: str, *command: str, **kwargs: Any) -> str:
    """Run a command on another host; returns what it prints.

    :param kwargs: as processutils.execute has them
    :raises ProcessExecutionError: it failed, or cannot be had
    """
    said, _errors = processutils.execute(
        *_SSH, host, shlex.join(command), **kwargs)
    return str(said)


def _run(*commands: list[str]) -> None:
    """Run one command, or two, the second with the output of the first.

    processutils has no pipes, and would keep all of it in memory. Under
    eventlet, too, only this thread waits; a pipe of its subprocess would not
    block, which tar does not expect.

    :raises ProcessExecutionError: one failed, did not end after the other, or
        complained without an end
    """
    with tempfile.TemporaryFile() as errors, contextlib.ExitStack() as stack:
        ends: list[int] = []
        for _pipe in commands[1:]:
            reading, writing = os.pipe()
            ends += [writing, reading]
        try:
            streams = [subprocess.DEVNULL, *ends, subprocess.DEVNULL]
            processes = [
                stack.enter_context(_process(
                    command, errors, stdin=stdin, stdout=stdout))
                for command, stdin, stdout in zip(
                    commands, streams[::2], streams[1::2])]
        finally:
            for end in ends:
                os.close(end)
        problem = _wait(processes, errors)
        for process in processes:
            if problem or process.returncode:
                raise processutils.ProcessExecutionError(
                    exit_code=process.returncode, description=problem,
                    cmd=shlex.join(process.args),
                    stderr=_last(errors) or problem)


def _wait(processes: list[Any], errors: IO[bytes]) -> str | None:
    """Wait until all have ended.

    :returns: why they had to be ended, if so
    """
    receiver = processes[-1]
    deadline = None
    while any(process.poll() is None for process in processes):
        if os.fstat(errors.fileno()).st_size > _MAX_ERRORS:
            return 'it complains without an end'
        if receiver.poll() is not None:
            # An ssh that is silent does not notice that nobody reads.
            deadline = deadline or time.monotonic() + _GRACE
            if time.monotonic() > deadline:
                return (f'the source had not ended {_GRACE} s after the '
                        'destination')
        time.sleep(_POLL)
    return None


def _last(errors: IO[bytes]) -> str:
    """Return what the commands wrote last."""
    size = os.fstat(errors.fileno()).st_size
    errors.seek(max(0, size - _MAX_SAID))
    return errors.read(_MAX_SAID).decode(errors='replace')


@contextlib.contextmanager
def _process(command: list[str], errors: Any,
             **streams: Any) -> Iterator[Any]:
    """A process that does not outlive the context."""
    process = subprocess.Popen(  # noqa: S603 - no shell, paths checked
        command, stderr=errors, **streams)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
