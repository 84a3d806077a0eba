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
"""Match guests with hosts: can a host run a guest that is migrated to it?

:func:`compare` returns the reasons why a host cannot run a guest, or why that
is not known. :data:`KINDS` has the reasons and their remedies. This module
needs neither Nova nor libvirt.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import enum
from typing import NamedTuple

from nova_migfix.status import facts
from nova_migfix.status.facts import Capabilities
from nova_migfix.status.facts import Needs


class Answer(NamedTuple):
    """The answer of a host's libvirt about one guest.

    Each is '' if the host supports it, libvirt's reason if not.
    """

    machine: str | None = None
    cpu: str | None = None


NO_ANSWER = Answer()


class Verdict(enum.Enum):
    """Whether a host can run a guest; the worst first."""

    NO = 'no'
    UNKNOWN = 'unknown'
    YES = 'yes'


class Reason(NamedTuple):
    """A reason against a host.

    :ivar kind: key of KINDS
    :ivar verdict: NO or UNKNOWN
    :ivar value: value of the guest
    :ivar answer: value of the host, and the consequence
    """

    kind: str
    verdict: Verdict
    value: str
    answer: str


class Kind(NamedTuple):
    """A kind of reason.

    :ivar device: the thing, for the user
    :ivar of_host: all guests of a source have the same reason
    """

    device: str
    reason: str
    remedy: str
    of_host: bool = False


KINDS: dict[str, Kind] = {
    'dest-emulator': Kind(
        'emulator', 'libvirt starts the guest with the same emulator',
        'Install this emulator on the destination, or choose another one.'),
    'dest-machine': Kind(
        'machine type', 'the machine type of a running guest cannot change',
        'Choose a destination whose QEMU has the machine type.'),
    'dest-cpu': Kind(
        'CPU', 'the CPU of a running guest cannot change',
        'Choose a destination with these features; or set [libvirt] '
        'cpu_models to a model that all hosts have, and hard-reboot the '
        'instance.'),
    'dest-secret': Kind(
        'secret', 'disks need the secret of libvirt that they name',
        'Define the secret on the destination: virsh secret-define, virsh '
        'secret-set-value.'),
    'dest-queues': Kind(
        'vNIC queues', 'the queues of a running vNIC cannot change',
        'Choose a destination with the kernel of the source or a later one.'),
    'dest-offload': Kind(
        'vNIC offloads', 'offloads that a running vNIC uses cannot change',
        'Choose a destination with the kernel of the source or a later one.'),
    'dest-version': Kind(
        'QEMU', 'Nova refuses a destination with an older QEMU '
        '(DestinationHypervisorTooOld)',
        'Upgrade the destination; or set [workarounds] '
        'skip_hypervisor_version_check_on_lm where nova-conductor runs.',
        of_host=True),
    'dest-post-copy': Kind(
        'post-copy', 'QEMU needs userfaultfd for post-copy',
        'Set vm.unprivileged_userfaultfd = 1 on the destination with sysctl; '
        'or unset [libvirt] live_migration_permit_post_copy on the source.',
        of_host=True),
}

#: features of CPUs that libvirt does not compare: they are not migratable
NOT_COMPARED = frozenset(('invtsc',))


def compare(needs: Needs, host: Capabilities,
            answer: Answer = NO_ANSWER) -> list[Reason]:
    """Return the reasons why a host cannot run a guest; none: it can.

    :param answer: of the host's libvirt, which overrules *host*
    """
    return [reason for rule in _RULES for reason in rule(needs, host, answer)]


def verdict(reasons: list[Reason]) -> Verdict:
    """Return the worst verdict; YES if there is no reason."""
    found = {reason.verdict for reason in reasons}
    return next(one for one in Verdict
                if one in found or one is Verdict.YES)


def _no(kind: str, value: str, answer: str) -> Reason:
    return Reason(kind, Verdict.NO, value, answer)


def _unknown(kind: str, value: str, answer: str = 'not known') -> Reason:
    return Reason(kind, Verdict.UNKNOWN, value, answer)


def _machine(needs: Needs, host: Capabilities,
             answer: Answer) -> Iterator[Reason]:
    emulator, arch, machine, virt_type = needs.machine
    if answer.machine is not None:
        if answer.machine:
            is_of_machine = machine in answer.machine
            yield _no('dest-machine' if is_of_machine else 'dest-emulator',
                      machine if is_of_machine else emulator, answer.machine)
        return
    if host.emulators is None:
        yield _unknown('dest-machine', machine)
        return
    known = [one for one in host.emulators if one.arch == arch]
    same = next((one for one in known if one.path == emulator), None)
    if not known:
        yield _no('dest-emulator', emulator, f'no emulator for {arch}')
    elif same is None:
        # libvirt lists one emulator; another may be there.
        paths = ', '.join(sorted(one.path for one in known))
        yield _unknown('dest-emulator', emulator, f'libvirt lists {paths}')
    elif virt_type not in same.virt_types:
        yield _no('dest-emulator', emulator, f'without {virt_type}')
    elif machine not in same.machines:
        yield _no('dest-machine', machine, f'not in {emulator}')


def _cpu(needs: Needs, host: Capabilities, answer: Answer) -> Iterator[Reason]:
    model = needs.cpu.model if needs.cpu else ''
    name = 'host-passthrough' if needs.is_passthrough else model or 'CPU'
    if answer.cpu is not None:
        if answer.cpu:
            yield _no('dest-cpu', name, answer.cpu)
        return
    cpu = (host.cpus or {}).get(needs.machine.virt_type)
    if needs.cpu is None or cpu is None or cpu.arch != needs.cpu.arch:
        yield _unknown('dest-cpu', name)
        return
    if needs.cpu.vendor and cpu.vendor and needs.cpu.vendor != cpu.vendor:
        yield _no('dest-cpu', f'{name}, {needs.cpu.vendor}', cpu.vendor)
        return
    missing = needs.cpu.features - cpu.features - NOT_COMPARED
    lacks = 'lacks ' + ', '.join(sorted(missing))
    if missing and needs.libvirt == host.libvirt is not None:
        yield _no('dest-cpu', name, lacks)
    elif missing:
        # Releases of libvirt differ in the features of a model.
        yield _unknown('dest-cpu', name,
                       f'{lacks}, if both have the same release of libvirt')
    elif needs.is_passthrough and needs.cpu != cpu.less(needs.without):
        yield _unknown('dest-cpu', name, 'the CPU of the host differs')


def _secrets(needs: Needs, host: Capabilities,
             answer: Answer) -> Iterator[Reason]:
    if needs.secrets and host.secrets is None:
        yield _unknown('dest-secret', ', '.join(sorted(needs.secrets)))
    elif missing := needs.secrets - (host.secrets or frozenset()):
        yield _no('dest-secret', ', '.join(sorted(missing)), 'missing')


def _queues(needs: Needs, host: Capabilities,
            answer: Answer) -> Iterator[Reason]:
    if needs.queues > 1 and host.queues is None:
        yield _unknown('dest-queues', str(needs.queues))
    elif host.queues is not None and needs.queues > max(1, host.queues):
        yield _no('dest-queues', str(needs.queues),
                  f'the kernel opens {host.queues}')


def _offload(needs: Needs, host: Capabilities,
             answer: Answer) -> Iterator[Reason]:
    """QEMU: virtio_set_features_nocheck in hw/virtio/virtio.c."""
    if needs.offloads is None:
        yield _unknown('dest-offload', 'not known')
    elif needs.offloads and host.offloads is None:
        yield _unknown('dest-offload', ', '.join(sorted(needs.offloads)))
    elif missing := needs.offloads - (host.offloads or frozenset()):
        yield _unknown('dest-offload', ', '.join(sorted(missing)),
                       'missing: QEMU refuses the guest if its driver uses it')


def _version(needs: Needs, host: Capabilities,
             answer: Answer) -> Iterator[Reason]:
    """Nova: _check_compatible_with_source_hypervisor in conductor."""
    if needs.hypervisor is None or host.hypervisor is None:
        if not needs.skips_version:
            yield _unknown('dest-version', facts.shown(needs.hypervisor),
                           facts.shown(host.hypervisor))
        return
    if needs.hypervisor <= host.hypervisor:
        return
    version = facts.shown(needs.hypervisor)
    older = f'older, {facts.shown(host.hypervisor)}'
    if needs.skips_version:
        yield _unknown('dest-version', version, (
            f'{older}: refused unless nova-conductor has '
            'skip_hypervisor_version_check_on_lm, as the source'))
    else:
        yield _no('dest-version', version, older)


def _post_copy(needs: Needs, host: Capabilities,
               answer: Answer) -> Iterator[Reason]:
    if needs.post_copy and not host.post_copy:
        make = _unknown if host.post_copy is None else _no
        yield make('dest-post-copy', 'permitted', 'not known' if (
            host.post_copy is None) else 'vm.unprivileged_userfaultfd is 0')


_RULES: tuple[
    Callable[[Needs, Capabilities, Answer], Iterator[Reason]], ...] = (
        _machine, _cpu, _secrets, _queues, _offload, _version, _post_copy)
