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

"""Migrate a UEFI guest cold, live and cold back.

Nova leaves the file with the UEFI variables behind: a cold migration gives the
guest new ones, and one back to a host that it left live gives it old ones.
"""

from __future__ import annotations

import pathlib
import re
import tempfile
from typing import Any

from lab import guest
from lab import image
from lab import process
from lab import scenario
from lab import topology

_STUB = pathlib.Path('/usr/lib/systemd/boot/efi/linuxx64.efi.stub')
_FIRMWARE = pathlib.Path('/usr/share/OVMF/OVMF_CODE_4M.fd')
_FILES = 'var/lib/libvirt/qemu/nvram'

# Older releases of libvirt reject the UEFI guests of Nova since this release.
_AUTOSELECTION = 33
_LIBVIRT = (9, 2)

_EFIVARS = '/sys/firmware/efi/efivars'
_GUID = '12345678-1234-1234-1234-123456789abc'
_MOUNT = (f'grep -q {_EFIVARS} /proc/mounts || '
          f'mount -t efivarfs efivarfs {_EFIVARS} || exit 1\n')
# Non-volatile, for the firmware and the running system.
_ATTRIBUTES = r'\007\000\000\000'


class Nvram(scenario.Scenario):
    name = 'nvram'
    title = ('A UEFI guest that has set variables: cold, live, and cold back; '
             'Nova from 2026.1 on needs libvirt 9.2.')
    expected = {
        scenario.NEITHER: scenario.Arrives(text='arrives, UEFI variables '
                                                'lost'),
        scenario.BOTH: scenario.Arrives(text='arrives, UEFI variables kept'),
    }

    def impossible(self, major: int) -> str:
        if major >= _AUTOSELECTION and _libvirt() < _LIBVIRT:
            return 'libvirt is too old for UEFI guests of this Nova'
        missing = [str(path) for path in (_STUB, _FIRMWARE)
                   if not path.exists()]
        return f'missing: {", ".join(missing)}' if missing else ''

    def run(self, run: scenario.Run) -> None:
        run.configure()
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        with tempfile.TemporaryDirectory() as directory:
            disk = run.cloud.upload(
                'uefi', _make_disk(run.cloud.image, pathlib.Path(directory)),
                hw_firmware_type='uefi')
        instance = run.useFixture(
            UefiGuest(run.cloud, disk, scenario.SOURCE))
        _set(instance, 'First')
        _cold_migrate(run, instance)
        run.check_kept('guest has its variable after the cold migration',
                       _has(instance, 'First'))
        run.migrate(instance, scenario.SOURCE,
                    expected=scenario.Arrives())
        run.check_kept('the source of the live migration has no variables',
                       not _files(run, scenario.DESTINATION))
        _set(instance, 'Second')
        _cold_migrate(run, instance)
        run.check_kept('guest has its variable after the way back',
                       _has(instance, 'Second'))
        run.check('the source of the cold migration has no variables',
                  not _files(run, scenario.SOURCE))


class UefiGuest(guest.Guest):
    """A guest with the memory that the firmware needs."""

    def _flavor(self, **changes: int) -> Any:
        return super()._flavor(**{'ram': 256, 'vcpus': 1, **changes})


def _libvirt() -> tuple[int, ...]:
    version = process.run(['libvirtd', '--version'])
    return tuple(map(int, re.findall(r'\d+', version)))


def _make_disk(files: image.GuestImage,
               directory: pathlib.Path) -> pathlib.Path:
    """Return the guest's disk, changed to one that a UEFI boots.

    One EFI program has the kernel, the initramfs and the command line.
    """
    disk, program, command_line, back = (
        directory / name for name in (
            'raw', 'BOOTX64.EFI', 'cmdline', 'disk.qcow2'))
    command_line.write_bytes(f'{image.COMMAND_LINE}\0'.encode())
    sections = ((command_line, '.cmdline', '0x30000'),
                (files.kernel, '.linux', '0x2000000'),
                (files.initramfs, '.initrd', '0x3000000'))
    process.run(['objcopy', *(
        argument for path, name, address in sections for argument in (
            '--add-section', f'{name}={path}',
            '--change-section-vma', f'{name}={address}')), _STUB, program])
    process.run(['qemu-img', 'convert', '-O', 'raw', files.disk, disk])
    partition = ['-i', f'{disk}@@1M']
    process.run(['mmd', *partition, '::EFI', '::EFI/BOOT'])
    process.run(['mcopy', *partition, program, '::EFI/BOOT/BOOTX64.EFI'])
    process.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', disk,
                 back])
    return back


def _cold_migrate(run: scenario.Run, instance: guest.Guest) -> None:
    source = instance.host
    run.progress(f'cold migration from {source}')
    instance.cold_migrate()
    run.check('instance is on the other host', instance.host != source)


def _set(instance: guest.Guest, name: str) -> None:
    """Set a variable, as a program in the guest does."""
    instance.run(f"{_MOUNT}printf '{_ATTRIBUTES}here' "
                 f'>{_EFIVARS}/{name}-{_GUID}')


def _has(instance: guest.Guest, name: str) -> bool:
    return instance.succeeds(
        f'{_MOUNT}grep -q here {_EFIVARS}/{name}-{_GUID}')


def _files(run: scenario.Run, host: str) -> list[pathlib.Path]:
    """Return the paths of the files with variables on a host."""
    return list((run.cloud.hosts[host].root / _FILES).glob('*_VARS*'))
