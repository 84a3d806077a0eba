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

"""A client of QEMU's monitor protocol (QMP) for the probe and tests."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import select
import socket
import subprocess
import threading
import time
from typing import Any

# Seconds to wait for the result of a command, and between two attempts to
# connect.
_TIMEOUT = 30
_POLL = 0.02

# Limits of an answer (characters) and of QEMU's standard error (bytes): QEMU
# runs as a user who is not trusted.
_LONGEST = 1 << 20
_MAX_ERRORS = 1 << 16
# Limit of a message, characters.
_MAX_MESSAGE = 500


class QemuError(Exception):
    """QEMU does not answer; the text gives the reason."""


class Monitor:
    """A connection to the monitor of a QEMU that is starting.

    :param path: of its UNIX socket
    :param process: the QEMU, with a pipe for its standard error
    :raises QemuError: QEMU did not start
    """

    def __init__(self, path: pathlib.Path,
                 process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._socket = socket.socket(socket.AF_UNIX)
        self._file = self._socket.makefile('rw')
        try:
            self._connect(path)
            with self._limited():
                self._receive()
            self.ask('qmp_capabilities')
        except QemuError:
            self.close()
            raise

    def _connect(self, path: pathlib.Path) -> None:
        deadline = time.monotonic() + _TIMEOUT
        while True:
            try:
                return self._socket.connect(str(path))
            except OSError as error:
                if (self._process.poll() is not None
                        or time.monotonic() > deadline):
                    raise self._failed(error) from error
                time.sleep(_POLL)

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """Close the connection if QEMU's answer is not here in time.

        A limit for each read would not end an answer that comes bit by bit.
        """
        def shut_down() -> None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        timer = threading.Timer(_TIMEOUT, shut_down)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _failed(self, error: Exception) -> QemuError:
        self._process.kill()
        self._process.wait()
        lines = self._errors().decode(errors='replace').strip().splitlines()
        message = lines[-1] if lines else str(error)
        return QemuError(f'QEMU has ended: {message[:_MAX_MESSAGE]}')

    def _errors(self) -> bytes:
        """Return QEMU's standard error.

        Does not wait for its end: a child of QEMU may keep the pipe open.
        """
        stream = self._process.stderr
        if stream and select.select([stream], [], [], 0)[0]:
            return os.read(stream.fileno(), _MAX_ERRORS)
        return b''

    def _receive(self) -> Any:
        try:
            return json.loads(self._file.readline(_LONGEST))
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run a command; return its result.

        :raises QemuError: the command failed, or QEMU has ended
        """
        with self._limited():
            try:
                self._file.write(json.dumps(
                    {'execute': command, 'arguments': arguments}) + '\n')
                self._file.flush()
            except OSError as error:
                raise self._failed(error) from error
            while True:
                answer = self._receive()
                if 'error' in answer:
                    raise QemuError(f'{command}: {answer["error"]["desc"]}')
                if 'return' in answer:
                    return answer['return']

    def close(self) -> None:
        # close() tries again to send data that are still buffered.
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()
