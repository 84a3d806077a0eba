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
"""What a guest needs of its host, and what a host offers to guests.

:class:`Needs` describes a running guest, :class:`Capabilities` a host. Hosts
print both as JSON. None is a value that is not known. This module needs
neither Nova nor libvirt.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import re
from typing import Any
from typing import NamedTuple


class Machine(NamedTuple):
    """The arguments of virConnectGetDomainCapabilities."""

    emulator: str
    arch: str
    machine: str
    virt_type: str


class Cpu(NamedTuple):
    """A CPU with all its features, also those of its model.

    :ivar vendor: '' for a guest that any vendor suits
    """

    arch: str
    model: str
    vendor: str
    features: frozenset[str]

    def less(self, features: frozenset[str]) -> Cpu:
        """Return this CPU without some features."""
        return self._replace(features=self.features - features)


class Needs(NamedTuple):
    """What a running guest needs of its destination.

    :ivar is_passthrough: the guest has the CPU of its host
    :ivar without: features that it does not have nevertheless
    :ivar secrets: UUIDs of libvirt's secrets that Nova does not create
    :ivar queues: of the tap interface with the most queues
    :ivar offloads: those that vNICs may use; keys of abi.tap.OFFLOADS
    :ivar post_copy: Nova permits post-copy
    :ivar hypervisor: version of QEMU on the source, as libvirt's number
    :ivar skips_version: nova.conf of the source lets destinations have an
        older one
    :ivar libvirt: version of libvirt on the source
    """

    machine: Machine
    cpu: Cpu | None = None
    is_passthrough: bool = False
    secrets: frozenset[str] = frozenset()
    queues: int = 1
    offloads: frozenset[str] | None = frozenset()
    post_copy: bool = False
    hypervisor: int | None = None
    skips_version: bool = False
    libvirt: int | None = None
    without: frozenset[str] = frozenset()


class Emulator(NamedTuple):
    path: str
    arch: str
    virt_types: frozenset[str]
    machines: frozenset[str]


class Capabilities(NamedTuple):
    """What a host offers to guests; fields as of Needs.

    :ivar cpus: by virt_type
    :ivar queues: maximum of a tap device
    :ivar offloads: of tap devices
    :ivar post_copy: whether QEMU may handle page faults of the kernel
    """

    hypervisor: int | None = None
    libvirt: int | None = None
    emulators: tuple[Emulator, ...] | None = None
    cpus: Mapping[str, Cpu] | None = None
    secrets: frozenset[str] | None = None
    queues: int | None = None
    offloads: frozenset[str] | None = None
    post_copy: bool | None = None

    def or_else(self, other: Capabilities) -> Capabilities:
        """Take values that are not known from *other*."""
        return Capabilities._make(
            theirs if mine is None else mine
            for mine, theirs in zip(self, other, strict=True))


# -- offloads ----------------------------------------------------------------

# Versions of machine types: Red Hat's, QEMU's.
_RED_HAT = re.compile(r'rhel(\d+)\.(\d+)')
_QEMU = re.compile(r'-(\d+)\.(\d+)$')

# Offloads of vNICs (keys of abi.tap.OFFLOADS) since QEMU 8.2 and 10.2, and the
# first machine types that may have them. Early releases of 8.2 have USO also
# for 8.1: see hw_compat_8_1 in hw/core/machine.c.
_OFFLOADS = {'USO': {_RED_HAT: (9, 4), _QEMU: (8, 1)},
             'UDP tunnel': {_RED_HAT: (10, 2), _QEMU: (10, 1)}}


def possible_offloads(machine: str) -> frozenset[str]:
    """Return the offloads that vNICs of a machine type may have.

    :returns: all of an unknown machine type
    """
    found = set(_OFFLOADS)
    for name, firsts in _OFFLOADS.items():
        for pattern, first in firsts.items():
            if match := pattern.search(machine):
                if (int(match[1]), int(match[2])) < first:
                    found.discard(name)
                break
    return frozenset(found)


def shown(version: int | None) -> str:
    """Return a version number of libvirt, as 7002000, as '7.2.0'."""
    if version is None:
        return 'not known'
    return (f'{version // 1000000}.{version // 1000 % 1000}'
            f'.{version % 1000}')


# -- JSON ---------------------------------------------------------------------

def as_json(value: Any) -> Any:
    """Return Needs or Capabilities as values for JSON, the same each time."""
    if hasattr(value, '_asdict'):
        return {key: as_json(one) for key, one in value._asdict().items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {key: as_json(value[key]) for key in sorted(value)}
    if isinstance(value, tuple):
        return list(map(as_json, value))
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{value!r:.80} is not a text')
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError(f'{value!r:.80} is not a number')
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f'{value!r:.80} is neither true nor false')
    return value


def _texts(value: Any) -> frozenset[str]:
    return frozenset(map(_text, value))


def _or_none(load: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else load(value)


def _of(kind: Callable[..., Any],
        **fields: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that makes a tuple of a JSON object.

    Another release of the plugin may print other fields.
    """
    def load_all(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f'{value!r:.80} is not an object')
        return kind(**{name: load(value[name])
                       for name, load in fields.items() if name in value})
    return load_all


_cpu = _of(Cpu, arch=_text, model=_text, vendor=_text, features=_texts)

#: Return the Needs that as_json() has returned as the argument. Raise
#: ValueError, TypeError or AttributeError if that is something else.
load_needs: Callable[[Any], Needs] = _of(
    Needs,
    machine=_of(Machine, emulator=_text, arch=_text, machine=_text,
                virt_type=_text),
    cpu=_or_none(_cpu), is_passthrough=_flag, secrets=_texts, queues=_number,
    offloads=_or_none(_texts), post_copy=_flag, hypervisor=_or_none(_number),
    skips_version=_flag, libvirt=_or_none(_number), without=_texts)

#: The same of Capabilities.
load_capabilities: Callable[[Any], Capabilities] = _of(
    Capabilities,
    hypervisor=_or_none(_number), libvirt=_or_none(_number),
    emulators=_or_none(lambda value: tuple(map(_of(
        Emulator, path=_text, arch=_text, virt_types=_texts,
        machines=_texts), value))),
    cpus=_or_none(lambda value: {
        _text(key): _cpu(one) for key, one in value.items()}),
    secrets=_or_none(_texts), queues=_or_none(_number),
    offloads=_or_none(_texts), post_copy=_or_none(_flag))
