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

"""Run programs and wait for them, always with a time limit."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
import concurrent.futures
import contextlib
import os
import pathlib
import signal
import subprocess
import time
from typing import Any
from typing import IO
from typing import TypeVar
from typing import Union

TAIL = 15

T = TypeVar('T')
StrPath = Union[str, os.PathLike[str]]


class LabError(Exception):
    """The lab cannot go on; the text names the failed step."""


def tail(log: StrPath | None, lines: int = TAIL) -> str:
    """Return the end of *log* as text, with its name; '' without a log."""
    if not log:
        return ''
    try:
        text = pathlib.Path(log).read_text(errors='replace')
    except OSError as error:
        return f'\n(no log: {error})'
    return f'\nEnd of {log}:\n' + '\n'.join(text.splitlines()[-lines:])


def run(argv: Iterable[object], *, timeout: float = 120,
        log: StrPath | None = None, errors: IO[str] | None = None,
        success: Collection[int] = (0,), **kwargs: Any) -> str:
    """Run *argv* to its end and return its output.

    :param timeout: seconds after which the program is killed
    :param log: append the output to this file instead
    :param errors: the file for standard error; None: it is output, too
    :param success: the exit statuses with which it has not failed
    :raises LabError: the program fails; the text has the end of its output
    """
    words = [str(word) for word in argv]
    with contextlib.ExitStack() as stack:
        out: IO[str] | int = subprocess.PIPE
        if log:
            out = stack.enter_context(open(log, 'a'))
        try:
            done = subprocess.run(
                words, stdout=out, stderr=errors or subprocess.STDOUT,
                text=True,
                errors='replace', timeout=timeout,
                stdin=None if 'input' in kwargs else subprocess.DEVNULL,
                start_new_session=True, **kwargs)
        except subprocess.TimeoutExpired as error:
            raise LabError(f'{" ".join(words)}: not done after {timeout} s'
                           f'{tail(log)}') from error
    if done.returncode not in success:
        output = '\n'.join((done.stdout or '').splitlines()[-TAIL:])
        raise LabError(f'{" ".join(words)}: exit status {done.returncode}\n'
                       f'{output}{tail(log)}')
    return done.stdout or ''


def wait_for(what: str, condition: Callable[[], T], *, timeout: float = 120,
             log: StrPath | Callable[[], StrPath] | None = None,
             poll: float = 0.25) -> T:
    """Call *condition* until its result is true, and return the result.

    :param what: the awaited event, for the error
    :param timeout: seconds
    :param log: the log whose end goes into the error; a path or a function
        that returns one
    :param poll: seconds between two calls
    :raises LabError: the result is not true within *timeout* seconds
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            log = log() if callable(log) else log
            raise LabError(f'{what}: not within {timeout} s{tail(log)}')
        time.sleep(poll)


def in_parallel(*calls: Callable[[], object]) -> None:
    """Call functions without arguments at the same time.

    The first error is raised at once. Calls that still run then end together
    with the host on which they run programs.
    """
    pool = concurrent.futures.ThreadPoolExecutor(len(calls))
    futures = [pool.submit(call) for call in calls]
    try:
        for future in concurrent.futures.as_completed(futures):
            future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def descendants(pid: int) -> list[int]:
    """Return the ids of all descendants of *pid*, the deepest first."""
    try:
        children = pathlib.Path(
            f'/proc/{pid}/task/{pid}/children').read_text().split()
    except OSError:
        return []
    below = [int(child) for child in children]
    return [deep for child in below for deep in descendants(child)] + below


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process; ignore that it has already ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Daemon:
    """A program that runs until `stop` is called."""

    GRACE = 10      # seconds

    def __init__(self, name: str, argv: Iterable[object], log: StrPath,
                 **kwargs: Any) -> None:
        """Start *argv* and append its output to *log*."""
        self.name = name
        self.log = pathlib.Path(log)
        self._argv = [str(word) for word in argv]
        self._kwargs = kwargs
        self.start()

    def start(self) -> None:
        """Start the program, at first and again after `stop`."""
        with open(self.log, 'ab') as out:
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
                **self._kwargs)

    @property
    def pids(self) -> list[int]:
        """The ids of the daemon's processes, the deepest first."""
        return descendants(self._process.pid)

    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for(self, what: str, condition: Callable[[], T],
                 **kwargs: Any) -> T:
        """Wait like the function; raise LabError once the daemon has ended."""
        def alive() -> T:
            if not self.running():
                raise LabError(f'{self.name} ended instead of: {what}'
                               f'{tail(self.log)}')
            return condition()
        kwargs.setdefault('log', self.log)
        return wait_for(what, alive, **kwargs)

    def send(self, number: int) -> None:
        """Send a signal to all processes of the daemon."""
        for pid in self.pids:
            kill(pid, number)

    def stop(self, first: int = signal.SIGTERM) -> None:
        """Send a signal, and SIGKILL after GRACE seconds.

        :raises LabError: the daemon still runs
        """
        for number in (first, signal.SIGKILL):
            self.send(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.GRACE)
                return
        raise LabError(f'{self.name} could not be ended')
