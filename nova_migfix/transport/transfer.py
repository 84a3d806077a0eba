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

The files are huge and almost empty. ``tar --sparse`` pulls them, because only
its cost depends on the amount of data: ``scp`` sends every zero, and
``rsync --sparse`` reads every hole.
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

# ssh has to notice a network failure within 15 seconds.
_SSH = ('ssh', '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=15',
        '-o', 'ServerAliveInterval=5', '-o', 'ServerAliveCountMax=3')
_ARCHIVE = 'files.tar'
# Characters that are not allowed in paths, and should not reach logs: control
# characters, and the lone surrogates that JSON permits.
_UNPRINTABLE = re.compile('[\x00-\x1f\x7f-\x9f\ud800-\udfff]')
_POLL = 0.05        # seconds
# Seconds that the source may take to end after the destination has ended.
_GRACE = 10
# Bytes of error messages after which a session is ended.
_MAX_ERRORS = 1 << 20
# Bytes of error messages that are read.
_MAX_STDERR = 1 << 16

# The source writes an archive for each file. tar's exit code 1 need not be a
# failure: a file "changed as we read it" when Nova updates the modification
# time of a backing file, which it does at each use, or when the guest writes
# to a config drive; libvirt copies those writes. But 1 also means that a file
# shrank and tar padded it with zeros. tar reports that; a file whose size
# differs afterwards is refused, too.
_SEND = ' '.join("""
export LC_ALL=C; exec 3>&1;
for path; do
    before=$(stat --dereference --format=%s -- "$path") || exit;
    errors=$(tar --create --sparse --dereference --no-recursion --no-unquote
        --format=gnu --file -
        --directory "${path%/*}/" -- "${path##*/}" 2>&1 >&3 3>&-);
    code=$?;
    [ -z "$errors" ] || { printf %s "$errors"; echo; } >&2;
    case $code,$errors in
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
    """Nova's class, which here copies from the source's migration address.

    Up to Nova 30.0, ``pre_live_migration`` copies an ISO config drive with a
    ``host:path`` of its own.
    """

    def copy_file(self, src: str, dst: str, *args: Any,
                  **kwargs: Any) -> None:
        host, separator, path = src.partition(':/')
        if separator:
            peer = netutils.escape_ipv6(migration.source(host))
            src = f'{peer}{separator}{path}'
        super().copy_file(src, dst, *args, **kwargs)


def fetch(host: str, paths: Collection[str], directory: str) -> None:
    """Fetch files in one session, and keep their holes.

    ``[libvirt] remote_filesystem_transport`` selects ssh or rsync.

    :param host: a host name or an IP literal
    :param paths: absolute paths of the files on that host, whose base names
        must be unique
    :param directory: gets the files, under their base names
    :raises ValueError: host or paths are invalid, or the peer sent something
        else than a regular file
    :raises OSError: the peer did not send one of the files
    :raises ProcessExecutionError: the files could not be fetched
    """
    checked = [_check_path(path) for path in sorted(paths)]
    names = sorted(map(os.path.basename, checked))
    if len(set(names)) < len(names):
        raise ValueError(
            f'several files have the same name: {", ".join(names)}')
    {'ssh': _fetch_by_ssh, 'rsync': _fetch_by_rsync}[
        CONF.libvirt.remote_filesystem_transport](
            address.check(host), checked, directory)
    for name in names:
        path = os.path.join(directory, name)
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f'{name} did not arrive as a regular file')
        # The peer must not make the file executable or writable by others.
        os.chmod(path, mode & 0o644 | 0o600)


def _check_path(path: str) -> str:
    """Return the normal form of *path*, which comes from a peer.

    Blanks and shell characters are allowed, because shells get it quoted.

    :raises ValueError: it is relative, does not end in a file name, or has
        ``..``, control characters, or a part that looks like an option
    """
    parts = path.split('/')
    if (parts[0] or parts[-1] in ('', '.') or '..' in parts
            or any(part.startswith('-') for part in parts)
            or _UNPRINTABLE.search(path)):
        raise ValueError(f'not a path of a disk: {path!r:.300}')
    # normpath keeps two leading slashes, as POSIX permits.
    return f'/{os.path.normpath(path).lstrip("/")}'


def _send_command(paths: list[str]) -> str:
    """Return the command line for a shell on the source, see _SEND."""
    return shlex.join(['sh', '-c', _SEND, 'sh', *paths])


def _untar_command(archive: str, directory: str) -> list[str]:
    """Return the command that unpacks the archives of the source.

    The archives are concatenated. The peer cannot set the mode of *directory*.
    """
    return ['tar', '--extract', '--sparse', '--ignore-zeros',
            '--no-same-owner', '--no-overwrite-dir', '--directory', directory,
            '--file', archive]


def _fetch_by_ssh(host: str, paths: list[str], directory: str) -> None:
    # If writing fails, only tar reports why, not ssh.
    _run([*_SSH, host, _send_command(paths)],
         _untar_command('-', directory))


def _fetch_by_rsync(host: str, paths: list[str], directory: str) -> None:
    """Make an archive on the source, and let rsync send it.

    The documentation of ``--rsync-path`` allows a command line for the remote
    shell. rsync gets no ``--timeout``, because it has to wait until the
    archive is made; ssh notices a network failure. Releases of rsync quote a
    remote path differently, so the archive has a plain name in a directory
    that the command line changes to.
    """
    remote = scratch.archive()
    remote_command = shlex.join(['sh', '-c', (
        f'{shlex.join(["cd", "--", os.path.dirname(paths[0])])} || exit; '
        f'trap {shlex.quote(shlex.join(["rm", "-f", remote]))} '
        'EXIT HUP INT TERM; umask 077; '
        f'{_send_command(paths)} >{remote} && rsync "$@"'), 'rsync'])
    archive = os.path.join(directory, _ARCHIVE)
    _run(['rsync', '--rsh', shlex.join(_SSH), '--rsync-path', remote_command,
          f'{netutils.escape_ipv6(host)}:{remote}', archive])
    _run(_untar_command(archive, directory))
    os.unlink(archive)


def remove_empty_directory(host: str, path: str) -> None:
    """Remove a directory on another host, unless something now uses it.

    :raises ProcessExecutionError: the directory is not empty, or the host
        cannot be reached
    """
    execute(host, 'rmdir', '--', path)


def execute(host: str, *command: str, **kwargs: Any) -> str:
    """Run a command on another host, and return its standard output.

    :param kwargs: passed to processutils.execute
    :raises ProcessExecutionError: the command failed, or the host cannot be
        reached
    """
    output, _errors = processutils.execute(
        *_SSH, host, shlex.join(command), **kwargs)
    return str(output)


def _run(*commands: list[str]) -> None:
    """Run one command, or pipe the output of the first into the second.

    processutils has no pipes, and would keep all output in memory. Other
    threads run meanwhile, under eventlet too. The pipe is an os.pipe, because
    a pipe of eventlet's subprocess is non-blocking, which tar does not expect.

    :raises ProcessExecutionError: a command failed, did not end after the
        second had ended, or wrote too many error messages
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
                    stderr=_tail(errors) or problem)


def _wait(processes: list[Any], errors: IO[bytes]) -> str | None:
    """Wait until all processes have ended.

    :returns: the reason to kill those that still run, None if none does
    """
    receiver = processes[-1]
    deadline = None
    while any(process.poll() is None for process in processes):
        if os.fstat(errors.fileno()).st_size > _MAX_ERRORS:
            return f'more than {_MAX_ERRORS} bytes of error messages'
        if receiver.poll() is not None:
            # An ssh that writes nothing does not notice the closed pipe.
            deadline = deadline or time.monotonic() + _GRACE
            if time.monotonic() > deadline:
                return (f'the source had not ended {_GRACE} s after the '
                        'destination')
        time.sleep(_POLL)
    return None


def _tail(errors: IO[bytes]) -> str:
    """Return the last error messages of the commands."""
    size = os.fstat(errors.fileno()).st_size
    errors.seek(max(0, size - _MAX_STDERR))
    return errors.read(_MAX_STDERR).decode(errors='replace')


@contextlib.contextmanager
def _process(command: list[str], errors: Any,
             **streams: Any) -> Iterator[Any]:
    """Run a process, and kill it at the end of the context."""
    process = subprocess.Popen(  # noqa: S603 - no shell, paths checked
        command, stderr=errors, **streams)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
