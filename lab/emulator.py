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


"""The wrapper around QEMU, and others around a QEMU that lacks something."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
import shutil

from lab import process
from lab import qemu_tcg

QEMU = '/usr/bin/qemu-system-x86_64'

# QEMU's user runs it, and can read neither the checkout nor an interpreter
# below root's home.
_QEMU_WRAPPER = '''#!/usr/bin/python3
import sys
sys.path.insert(0, {directory!r})
import qemu_tcg
qemu_tcg.main({qemu!r}, {claim!r}, [*sys.argv[1:], *{options!r}])
'''


class Qemu:
    """A copy of the machine's QEMU, and wrappers of it, in the cache.

    :ivar wrapper: the path of the wrapper, which is mounted over QEMU
    :ivar claim: the library for a QEMU whose capabilities libvirt probes
    """

    def __init__(self, cache: pathlib.Path) -> None:
        self.wrapper = cache / 'qemu-wrapper'
        self.claim = cache / 'kvm_claim.so'
        self._sysroot = cache / 'qemu'
        self._binary = self._sysroot / 'bin' / pathlib.Path(QEMU).name

    def make(self) -> None:
        """Copy QEMU and make the wrapper.

        QEMU finds its firmware relative to its own path, hence the links.
        """
        self._binary.parent.mkdir(parents=True, exist_ok=True)
        process.run(['cp', '--update', QEMU, self._binary])
        for place in ('share', 'lib'):
            link = self._sysroot / place
            if not link.is_symlink():
                link.symlink_to(f'/usr/{place}')
        shutil.copy(qemu_tcg.__file__, self._sysroot)
        self._write(self.wrapper, self._binary)

    def _write(self, wrapper: pathlib.Path, binary: pathlib.Path,
               options: Sequence[str] = ()) -> None:
        """:param options: additional ones of *binary*"""
        wrapper.write_text(_QEMU_WRAPPER.format(
            qemu=str(binary), claim=str(self.claim),
            directory=str(self._sysroot), options=[*options]))
        wrapper.chmod(0o755)

    def without_feature(self, name: str) -> pathlib.Path:
        """Return a wrapper of a QEMU whose CPUs lack a feature.

        :param name: of QEMU's property
        """
        wrapper = self.wrapper.with_name('qemu-without-feature')
        self._write(wrapper, self._binary,
                    ('-global', f'x86_64-cpu.{name}=off'))
        return wrapper

    def without_machine(self, name: str) -> pathlib.Path:
        """Return a wrapper of a QEMU that lacks a machine type.

        It is a copy in which the type has another name of the same length.

        :raises LabError: QEMU does not contain the name exactly once
        """
        code = self._binary.read_bytes()
        known = _machine_in_code(name)
        if code.count(known) != 1:
            raise process.LabError(f'{QEMU} does not contain the machine type '
                                   f'{name} exactly once')
        other = self._binary.with_name(f'{self._binary.name}-other')
        # A program that may still run cannot be overwritten.
        other.unlink(missing_ok=True)
        other.write_bytes(code.replace(known, _machine_in_code(
            f'{name[:-1]}x')))
        other.chmod(0o755)
        wrapper = self.wrapper.with_name('qemu-without-machine')
        self._write(wrapper, other)
        return wrapper


def _machine_in_code(name: str) -> bytes:
    """Return QEMU's name of a machine type's class."""
    return f'\0{name}-machine\0'.encode()
