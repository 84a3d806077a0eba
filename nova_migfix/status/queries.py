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
"""Questions to the libvirt of a host, which change nothing there."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
import copy
import errno
import functools
from typing import Any
from typing import TypeVar

from lxml import etree

from nova_migfix.abi import domain as domain_xml
from nova_migfix.abi import vnic as vnic_abi
from nova_migfix.status.facts import Capabilities
from nova_migfix.status.facts import Cpu
from nova_migfix.status.facts import Emulator
from nova_migfix.status.facts import Machine
from nova_migfix.status.facts import Needs
from nova_migfix.status.facts import possible_offloads
from nova_migfix.status.matching import Answer
from nova_migfix.status.matching import NOT_COMPARED

# Flags, as the Python binding may be older than libvirt.
_EXPAND_FEATURES = 1 << 0       # VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
_FAIL_INCOMPATIBLE = 1 << 0     # VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
# Types of secrets that Nova creates with the guest, on the destination, too:
# VIR_SECRET_USAGE_TYPE_VOLUME, _ISCSI and _VTPM.
_CREATED_BY_NOVA = frozenset((1, 3, 5))
# Policies of features that a CPU does not have.
_WITHOUT = frozenset(('disable', 'forbid'))
_PASSTHROUGH = frozenset(('host-passthrough', 'maximum'))

_VIRTIO_TAPS = './devices/interface[{}][model/@type="virtio"]'.format(
    ' or '.join(f'@type="{kind}"' for kind in sorted(vnic_abi.TAP_KINDS)))

T = TypeVar('T')


class Queries:
    """Questions through one connection.

    :param libvirt: the Python module
    :param connection: libvirt answers some questions only if it is not
        read-only: those about domain capabilities and CPUs
    :param note: is called with each thing that is not known, and the reason
    """

    def __init__(self, libvirt: Any, connection: Any,
                 note: Callable[[str], object]) -> None:
        self._libvirt = libvirt
        self._connection = connection
        self._note = note
        self._cpus: dict[tuple[Machine, str], Cpu | None] = {}
        self._answers: dict[tuple[Machine, str], Answer] = {}

    def _ask(self, thing: str, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except (self._libvirt.libvirtError, ValueError) as error:
            self._note(f'Not known: {thing}: {error}')
            return None

    # -- the host -------------------------------------------------------------

    def capabilities(self, virt_types: Iterable[str]) -> Capabilities:
        """Return the capabilities that libvirt knows.

        :param virt_types: for which to get the CPU, such as 'kvm'
        """
        cpus = {virt_type: self._ask(
            f'CPU of the host for {virt_type}',
            functools.partial(self._cpu, virt_type))
            for virt_type in sorted(virt_types)}
        return Capabilities(
            hypervisor=self._ask('version of QEMU',
                                 self._connection.getVersion),
            libvirt=self._ask('version of libvirt',
                              self._connection.getLibVersion),
            emulators=self._ask('emulators', self._emulators),
            cpus={key: cpu for key, cpu in cpus.items() if cpu} or None,
            secrets=self._ask('secrets', self._secrets))

    @functools.cached_property
    def _xml(self) -> str:
        """The capabilities of libvirt, which are long."""
        return str(self._connection.getCapabilities())

    def _emulators(self) -> tuple[Emulator, ...]:
        document = domain_xml.parse(self._xml)
        return tuple(
            Emulator(path, arch.get('name', ''),
                     frozenset(map(str, arch.xpath('domain/@type'))),
                     frozenset(map(str, arch.xpath('.//machine/text()'))))
            for arch in document.iterfind('./guest/arch')
            for path in sorted(set(map(str, arch.xpath(
                './/emulator/text()')))))

    def _secrets(self) -> frozenset[str]:
        return frozenset(
            secret.UUIDString()
            for secret in self._connection.listAllSecrets()
            if secret.usageType() not in _CREATED_BY_NOVA)

    def _cpu(self, virt_type: str) -> Cpu | None:
        """Return the CPU of the host, as guests with host-model get it."""
        document = domain_xml.parse(self._connection.getDomainCapabilities(
            None, None, None, virt_type, 0))
        model = document.find(
            './cpu/mode[@name="host-model"][@supported="yes"]')
        if model is None:
            return None
        return self._expanded(Machine(*(
            document.findtext(f'./{name}') or ''
            for name in ('path', 'arch', 'machine', 'domain'))),
            _comparable(model))

    def _expanded(self, machine: Machine, cpu: etree._Element) -> Cpu | None:
        """Return a CPU with all features; None for other architectures."""
        key = machine, _text(cpu)
        if key not in self._cpus:
            self._cpus[key] = self._ask(
                f'features of CPU {cpu.findtext("model")}',
                lambda: self._expand(machine, cpu))
        return self._cpus[key]

    def _expand(self, machine: Machine, cpu: etree._Element) -> Cpu:
        document = domain_xml.parse(self._connection.baselineHypervisorCPU(
            *machine, [_text(cpu)], _EXPAND_FEATURES))
        return Cpu(
            machine.arch, cpu.findtext('model') or '',
            cpu.findtext('vendor') or '', frozenset(
                feature.get('name', '')
                # libvirt omits some that QEMU does not report
                for feature in (*document.iterfind('feature'),
                                *cpu.iterfind('feature[@policy="require"]'))
                if feature.get('policy') not in _WITHOUT))

    def receive(self) -> int:
        """Return the length of a long answer, in bytes; 0: it is an error.

        :raises libvirtError: the connection breaks
        """
        return len(self._while_alive(lambda: self._xml) or '')

    def send(self, size: int) -> None:
        """Send a question of *size* bytes, and wait for any answer.

        :raises libvirtError: the connection breaks
        """
        document = self._ask('capabilities of libvirt',
                             lambda: domain_xml.parse(self._xml))
        cpu = None if document is None else document.find('./host/cpu')
        if cpu is None:
            cpu = etree.Element('cpu')
        cpu.append(etree.Comment(' ' * size))
        question = _text(cpu)
        self._while_alive(lambda: self._connection.compareCPU(question, 0))

    def _while_alive(self, question: Callable[[], T]) -> T | None:
        """Return None if the answer is an error of a living connection."""
        try:
            return question()
        except self._libvirt.libvirtError:
            if not self._connection.isAlive():
                raise
            return None

    # -- its guests -----------------------------------------------------------

    def guest(self, xml: str, host: Capabilities) -> tuple[Needs, str]:
        """Return the needs of a guest of this host, and its CPU as XML.

        :param xml: of the running guest: its CPU has the features that QEMU
            has enabled, and the destination has to enable the same ones
        :param host: capabilities of the host
        :returns: needs without the values that depend on the host, and with
            the offloads that the machine type may have
        """
        document = domain_xml.parse(xml)
        kind = document.find('./os/type')
        machine = Machine(
            document.findtext('./devices/emulator') or '',
            '' if kind is None else kind.get('arch', ''),
            '' if kind is None else kind.get('machine', ''),
            document.get('type', ''))
        found = document.find('./cpu')
        cpu = _comparable(etree.Element('cpu') if found is None else found)
        mode = '' if found is None else found.get('mode', '')
        is_passthrough = mode in _PASSTHROUGH
        own = (host.cpus or {}).get(machine.virt_type)
        without = frozenset(
            feature.get('name', '') for feature in cpu.iterfind('feature')
            if is_passthrough and feature.get('policy') in _WITHOUT)
        return Needs(
            machine,
            own and own.less(without) if is_passthrough
            else self._guest_cpu(machine, mode, cpu), is_passthrough,
            without=without,
            secrets=_secrets_of(document, host),
            offloads=possible_offloads(machine.machine) if document.xpath(
                _VIRTIO_TAPS) else frozenset(),
            queues=max((
                queues for _mac, queues in vnic_abi.tap_queues(document)),
                default=1)), _text(cpu)

    def _guest_cpu(self, machine: Machine, mode: str,
                   cpu: etree._Element) -> Cpu | None:
        if cpu.find('model') is not None:
            return self._expanded(machine, cpu)
        # libvirt names the model that host-model stands for on x86 and s390x
        return None if mode == 'host-model' else Cpu(
            machine.arch, '', '', frozenset())

    # -- guests of any host ---------------------------------------------------

    def answer(self, needs: Needs, cpu: str) -> Answer:
        """Ask whether this host supports a guest of it or of another host.

        :param cpu: XML; '' if libvirt cannot compare it
        """
        key = needs.machine, cpu
        if key not in self._answers:
            machine = self._refusal(
                needs.machine.machine, self._is_of_machine,
                lambda: self._connection.getDomainCapabilities(
                    *needs.machine, 0))
            self._answers[key] = Answer(
                machine, None if machine or needs.is_passthrough or not cpu
                else '' if needs.cpu and not needs.cpu.model
                else self._refusal(
                    'comparison of CPUs', self._is_of_cpu,
                    lambda: self._connection.compareHypervisorCPU(
                        *needs.machine, cpu, _FAIL_INCOMPATIBLE)))
        return self._answers[key]

    def _refusal(self, thing: str, is_refusal: Callable[[Any], bool],
                 question: Callable[[], object]) -> str | None:
        """Return '', the reason of a refusal, or None: libvirt cannot say."""
        try:
            question()
        except self._libvirt.libvirtError as error:
            if is_refusal(error):
                return str(error)
            self._note(f'Not known: {thing}: {error}')
            return None
        return ''

    def _is_of_machine(self, error: Any) -> bool:
        if error.get_error_code() == self._libvirt.VIR_ERR_SYSTEM_ERROR:
            # There is no such emulator. Others: the connection breaks, or the
            # host lacks memory or processes.
            return bool(error.get_int1() == errno.ENOENT)
        return error.get_error_code() in (
            self._libvirt.VIR_ERR_INVALID_ARG,
            self._libvirt.VIR_ERR_CONFIG_UNSUPPORTED)

    def _is_of_cpu(self, error: Any) -> bool:
        # An unknown feature is no reason: migrations omit disabled features
        # that a later libvirt has added to a model, as vmx-...
        return (error.get_error_code()
                == self._libvirt.VIR_ERR_CPU_INCOMPATIBLE
                or 'Unknown CPU model' in str(error))


def _secrets_of(document: etree._Element,
                host: Capabilities) -> frozenset[str]:
    """Return the secrets of the disks that Nova does not create itself."""
    # those of Ceph, if libvirt of the host does not list its secrets
    of_ceph = document.xpath('./devices/disk//secret[@type="ceph"]/@uuid')
    return frozenset(map(str, of_ceph)) | (host.secrets or frozenset(
        )).intersection(document.xpath('./devices/disk//secret/@uuid'))


def _comparable(cpu: etree._Element) -> etree._Element:
    """Return a CPU with the elements that libvirt compares."""
    found = etree.Element('cpu', mode='custom', match='exact')
    for child in cpu.iterchildren('model', 'vendor', 'feature'):
        if child.get('name') not in NOT_COMPARED:
            found.append(copy.deepcopy(child))
    return found


def _text(element: etree._Element) -> str:
    return etree.tostring(element, encoding='unicode', with_tail=False)
