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

"""The guest: a kernel, an initramfs and the disk image that boots them.

The kernel comes from the distribution's package, which is unpacked and not
installed: the lab must not change the kernel that the machine boots.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import pathlib
import re
import shutil
import struct

from lab import process
from lab import workdir

INIT = workdir.DATA / 'guest-init'

# Drivers for the guest's NIC, disks and CD-ROM drive, and filesystems with the
# modules that the kernel requests when it mounts them. Modules that are built
# into the kernel are left out.
MODULES = ('virtio_pci', 'virtio_blk', 'virtio_net', 'ata_piix', 'sr_mod',
           'crc32c_generic', 'crc32c_intel', 'efivarfs', 'ext4', 'isofs',
           'nls_ascii', 'nls_cp437', 'nls_iso8859_1', 'nls_utf8', 'vfat',
           'xfs')

_KERNEL = {'debian': 'linux-image-cloud-amd64',
           'ubuntu': 'linux-image-virtual'}

# The guest computes all checksums and segments itself: no device between it
# and the controller does.
COMMAND_LINE = ('console=ttyS0 quiet panic=5 '
                'virtio_net.csum=0 virtio_net.gso=0')

_MEBI = 1 << 20
_SECTOR = 512
_SIZE = 40 * _MEBI
_PARTITION = _MEBI


class GuestImage:
    """The guest's `disk` (qcow2), and the `kernel` and `initramfs` on it."""

    def __init__(self, cache: pathlib.Path) -> None:
        self._directory = cache / 'guest'
        self.disk = self._directory / 'disk.qcow2'
        self.kernel = self._directory / 'vmlinuz'
        self.initramfs = self._directory / 'initramfs'

    def make(self, log: pathlib.Path) -> None:
        """Make the files, unless they exist and their sources are unchanged.

        :param log: gets the output of all commands
        """
        stamp = self._directory / 'made-of'
        wanted = hashlib.sha256(INIT.read_bytes() + pathlib.Path(
            __file__).read_bytes()).hexdigest()
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(self._directory, ignore_errors=True)
        self._directory.mkdir(parents=True)
        tree = _unpack_kernel(self._directory / 'kernel', log)
        _make_initramfs(tree, self._directory / 'root', self.initramfs, log)
        shutil.copy(next(tree.glob('boot/vmlinuz-*')), self.kernel)
        _make_disk(self.kernel, self.initramfs, self.disk, log)
        stamp.write_text(wanted)


def _unpack_kernel(tree: pathlib.Path, log: pathlib.Path) -> pathlib.Path:
    """Download the distribution's kernel and unpack it into *tree*."""
    tree.mkdir()
    process.run(['apt-get', 'download', *_kernel_packages()], log=log,
                cwd=tree, timeout=300)
    for package in tree.glob('*.deb'):
        process.run(['dpkg-deb', '--extract', package, tree], log=log)
    if (tree / 'usr/lib/modules').exists() and not (tree / 'lib').exists():
        (tree / 'lib').symlink_to('usr/lib')
    process.run(['depmod', '--basedir', tree, _modules(tree).name], log=log)
    return tree


def _kernel_packages() -> list[str]:
    """Return the distribution's packages with a kernel and its modules."""
    found = [_KERNEL[_distribution()]]
    for package in found:
        depends = process.run(['apt-cache', 'depends', '--important', package])
        found += [name for name in re.findall(
            r'Depends: (linux-(?:image|modules)-\S+)', depends)
            if name not in found]
    return found


def _distribution() -> str:
    """Return 'ubuntu' for Ubuntu and its derivatives, else 'debian'."""
    release = pathlib.Path('/etc/os-release').read_text()
    likes = ' '.join(re.findall(r'^ID(?:_LIKE)?="?([^"\n]+)', release, re.M))
    return 'ubuntu' if 'ubuntu' in likes else 'debian'


def _modules(tree: pathlib.Path) -> pathlib.Path:
    return next((tree / 'lib/modules').iterdir())


def _module_name(path: str | pathlib.Path) -> str:
    return pathlib.Path(path).name.split('.ko')[0].replace('-', '_')


def _needed_modules(tree: pathlib.Path) -> set[pathlib.Path]:
    """Return the paths of MODULES and of their dependencies."""
    modules = _modules(tree)
    needs = {}
    for line in (modules / 'modules.dep').read_text().splitlines():
        path, _, dependencies = line.partition(':')
        needs[_module_name(path)] = [*dependencies.split(), path]
    return {modules / path for name in MODULES
            for path in needs.get(name, ())}


def _uncompressed(module: pathlib.Path) -> bytes:
    if module.suffix == '.xz':
        return lzma.decompress(module.read_bytes())
    if module.suffix == '.zst':
        plain = module.with_suffix('')
        process.run(['zstd', '--decompress', '--quiet', module])
        return plain.read_bytes()
    return module.read_bytes()


def _make_initramfs(tree: pathlib.Path, root: pathlib.Path,
                    initramfs: pathlib.Path, log: pathlib.Path) -> None:
    modules = root / 'lib/modules' / _modules(tree).name
    for directory in ('bin', 'sbin', 'proc', 'sys', 'dev', modules):
        (root / directory).mkdir(parents=True)
    shutil.copy('/bin/busybox', root / 'bin/busybox')
    shutil.copy(INIT, root / 'init')
    (root / 'init').chmod(0o755)
    for module in _needed_modules(tree):
        name = f'{_module_name(module)}.ko'
        (modules / name).write_bytes(_uncompressed(module))
    process.run(['depmod', '--basedir', root, modules.name], log=log)
    names = '\n'.join(str(path.relative_to(root)) for path in root.rglob('*'))
    archive = initramfs.with_suffix('.cpio')
    process.run(['cpio', '--quiet', '--create', '--format=newc',
                 f'--file={archive}'], input=names, cwd=root, log=log)
    initramfs.write_bytes(gzip.compress(archive.read_bytes(), mtime=0))


def _make_disk(vmlinuz: pathlib.Path, initramfs: pathlib.Path,
               disk: pathlib.Path, log: pathlib.Path) -> None:
    """Make a disk with a FAT partition from which SYSLINUX boots the guest.

    It has a partition table because Nova inspects the images it boots from.
    """
    raw = disk.with_suffix('.raw')
    with open(raw, 'wb') as out:
        out.truncate(_SIZE)
        boot_code = pathlib.Path('/usr/lib/syslinux/mbr/mbr.bin').read_bytes()
        out.write(boot_code[:440])
        out.seek(446)
        out.write(struct.pack('<B3sB3sII', 0x80, b'\x20\x21\x00', 0x0e,
                              b'\xfe\xff\xff', _PARTITION // _SECTOR,
                              (_SIZE - _PARTITION) // _SECTOR))
        out.seek(510)
        out.write(b'\x55\xaa')
    configuration = disk.with_name('syslinux.cfg')
    configuration.write_text(
        'DEFAULT guest\nPROMPT 0\nLABEL guest\n KERNEL vmlinuz\n'
        f' INITRD initrd\n APPEND {COMMAND_LINE}\n')
    process.run(['mkfs.vfat', '--offset', _PARTITION // _SECTOR, '-n', 'BOOT',
                 raw, (_SIZE - _PARTITION) // 1024], log=log)
    process.run(['syslinux', '--offset', _PARTITION, '--install', raw],
                log=log)
    for source, name in ((configuration, 'syslinux.cfg'),
                         (vmlinuz, 'vmlinuz'), (initramfs, 'initrd')):
        process.run(['mcopy', '-i', f'{raw}@@1M', source, f'::{name}'],
                    log=log)
    process.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', '-c', raw,
                 disk], log=log)
