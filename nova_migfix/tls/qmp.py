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

"""QEMU's monitor protocol, as far as it is needed here."""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import subprocess
import time
from typing import Any

# Seconds, for any answer, and between two looks at a QEMU that starts.
_TIMEOUT = 30
_POLL = 0.02


class QemuError(Exception):
    """QEMU cannot be asked; the text says why."""


class Monitor:
    """A connection to the monitor of a QEMU that is being started.

    :param path: of its UNIX socket
    :param process: the QEMU, with a pipe for what it says
    :raises QemuError: it did not start
    """

    def __init__(self, path: pathlib.Path,
                 process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_TIMEOUT)
        self._connect(path)
        self._file = self._socket.makefile('rw')
        self._receive()
        self.ask('qmp_capabilities')

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

    def _failed(self, error: Exception) -> QemuError:
        self._process.kill()
        self._process.wait()
        said = self._process.stderr.read() if self._process.stderr else b''
        lines = said.decode(errors='replace').strip().splitlines()
        return QemuError(
            f'QEMU has ended: {lines[-1] if lines else error}')

    def _receive(self) -> Any:
        try:
            return json.loads(self._file.readline())
        except (OSError, ValueError) as error:
            raise self._failed(error) from error

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run a command; returns what it returns.

        :raises QemuError: it failed, or QEMU is gone
        """
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
        # What could not be sent any more is tried once again here.
        with contextlib.suppress(OSError):
            self._file.close()
        self._socket.close()
