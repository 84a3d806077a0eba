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
"""Questions to libvirt, and the needs of guests in its XML."""

import errno
from unittest import mock

import ddt
import testtools

from nova_migfix.status import facts
from nova_migfix.status import matching
from nova_migfix.status import queries
from nova_migfix.tests.unit.status import base

MACHINE = facts.Machine(base.EMULATOR, 'x86_64', 'pc-i440fx-7.2', 'kvm')

DOMAIN = f'''<domain type="kvm">
  <os><type arch="x86_64" machine="pc-q35-8.2">hvm</type></os>
  <cpu mode="custom" match="exact" check="full">
    <model fallback="forbid">Broadwell</model><vendor>Intel</vendor>
    <topology sockets="1" dies="1" cores="1" threads="1"/>
    <feature policy="require" name="vmx"/>
    <feature policy="require" name="invtsc"/>
    <feature policy="disable" name="hle"/></cpu>
  <devices><emulator>{base.EMULATOR}</emulator>
    <disk><source protocol="rbd"/>
      <auth username="x"><secret type="ceph" uuid="local"/></auth></disk>
    <disk><encryption><secret type="passphrase" uuid="volume"/></encryption>
      <auth><secret type="iscsi" usage="iqn"/></auth></disk>
    <interface type="ethernet"><mac address="fa:16:3e:00:00:01"/>
      <model type="virtio"/><driver queues="4"/></interface>
  </devices></domain>'''

CPU = '''<cpu mode="custom" match="exact"><model>Broadwell</model>\
<feature policy="require" name="vmx"/></cpu>'''


@ddt.ddt
class QueriesTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.libvirt = base.FakeLibvirt()
        self.libvirt._is_read_only = False
        self.notes = []
        self.queries = queries.Queries(
            self.libvirt, self.libvirt, self.notes.append)

    def guest(self, xml=DOMAIN, host=None):
        return self.queries.guest(xml, host or facts.Capabilities())

    # -- the host

    def test_capabilities_of_a_host_are_read(self):
        self.libvirt.secrets = ['a', 'b', 'volume']
        self.assertEqual(facts.Capabilities(
            7002000, 9000000,
            (facts.Emulator(base.EMULATOR, 'x86_64', frozenset(['kvm']),
                            frozenset(['pc-i440fx-7.2'])),),
            {'kvm': facts.Cpu('x86_64', 'Broadwell', 'Intel', frozenset(
                ('avx2', 'sse2', 'vmx')))},
            frozenset(['a', 'b'])), self.queries.capabilities(['kvm']))
        self.assertEqual([], self.notes)

    def test_read_only_connection_leaves_the_cpu_unknown(self):
        self.libvirt._is_read_only = True
        found = self.queries.capabilities(['kvm'])
        self.assertIsNone(found.cpus)
        self.assertEqual(7002000, found.hypervisor)
        self.assertIn('CPU of the host for kvm', self.notes[0])

    def test_host_without_host_model_leaves_the_cpu_unknown(self):
        self.libvirt.domain_capabilities = '''<domainCapabilities><cpu>
            <mode name="host-model" supported="no"/></cpu>
            </domainCapabilities>'''
        self.assertIsNone(self.queries.capabilities(['kvm']).cpus)

    def test_all_emulators_of_an_architecture_are_found(self):
        self.libvirt.capabilities = '''<capabilities><guest>
          <arch name="x86_64"><emulator>/a</emulator><machine>pc</machine>
          <domain type="qemu"/><domain type="kvm"><emulator>/b</emulator>
          <machine>q35</machine></domain></arch></guest></capabilities>'''
        self.assertEqual(
            [('/a', {'kvm', 'qemu'}, {'pc', 'q35'}),
             ('/b', {'kvm', 'qemu'}, {'pc', 'q35'})],
            [(one.path, one.virt_types, one.machines)
             for one in self.queries.capabilities([]).emulators])

    # -- its guests

    def test_needs_are_those_of_the_running_guest(self):
        needs, cpu = self.guest()
        self.assertEqual(facts.Needs(
            MACHINE._replace(machine='pc-q35-8.2'),
            facts.Cpu('x86_64', 'Broadwell', 'Intel', frozenset(
                ('avx2', 'sse2', 'vmx'))), secrets=frozenset(['local']),
            queues=4, offloads=frozenset(['USO'])), needs)
        for absent in ('invtsc', 'topology'):
            self.assertNotIn(absent, cpu)

    def test_guest_without_a_cpu_needs_no_features(self):
        needs, _cpu = self.guest('<domain type="kvm"><os/></domain>')
        self.assertEqual(frozenset(), needs.cpu.features)

    def test_host_model_without_its_model_is_unknown(self):
        """As on POWER."""
        needs, _cpu = self.guest(
            '<domain type="kvm"><cpu mode="host-model"/></domain>')
        self.assertIsNone(needs.cpu)

    @ddt.data('host-passthrough', 'maximum')
    def test_passed_through_cpu_is_that_of_the_host(self, mode):
        host = self.queries.capabilities(['kvm'])
        needs, _cpu = self.guest(
            f'<domain type="kvm"><cpu mode="{mode}"/></domain>', host)
        self.assertTrue(needs.is_passthrough)
        self.assertEqual(host.cpus['kvm'], needs.cpu)

    def test_passed_through_cpu_lacks_disabled_features(self):
        """[libvirt] cpu_model_extra_flags = -avx2"""
        needs, _cpu = self.guest(
            '<domain type="kvm"><cpu mode="host-passthrough">'
            '<feature policy="disable" name="avx2"/></cpu></domain>',
            self.queries.capabilities(['kvm']))
        self.assertEqual({'avx2'}, needs.without)
        self.assertEqual({'sse2', 'vmx'}, needs.cpu.features)

    def test_vnic_that_is_not_virtio_has_no_offloads(self):
        needs, _cpu = self.guest(DOMAIN.replace('"virtio"', '"e1000e"'))
        self.assertEqual(frozenset(), needs.offloads)

    def test_secrets_that_nova_creates_are_not_needed(self):
        self.libvirt.secrets = ['local', 'volume', 'operator']
        host = self.queries.capabilities(['kvm'])
        needs, _cpu = self.guest(
            DOMAIN.replace('usage="iqn"', 'uuid="operator"'), host)
        self.assertEqual({'local', 'operator'}, needs.secrets)

    # -- guests of another host

    def answer(self, cpu=CPU, **machine):
        return self.queries.answer(
            facts.Needs(MACHINE._replace(**machine), facts.Cpu(
                'x86_64', 'Broadwell', '', frozenset())), cpu)

    def test_supported_guest_has_empty_answers(self):
        self.assertEqual(matching.Answer('', ''), self.answer())

    @ddt.data(('emulator', '/usr/bin/kvm', 'Cannot check QEMU binary'),
              ('machine', 'pc-i440fx-9.0', 'is not supported by emulator'))
    @ddt.unpack
    def test_refused_machine_has_the_reason_of_libvirt(
            self, name, value, said):
        found = self.answer(**{name: value})
        self.assertIn(said, found.machine)
        self.assertIsNone(found.cpu)

    def test_incompatible_cpu_has_the_reason_of_libvirt(self):
        self.libvirt.lacks = ['avx2']
        self.assertIn('required features: avx2', self.answer().cpu)

    @ddt.data(('Unknown CPU model x', 'Unknown CPU model x'),
              # The migration omits it.
              ('Unknown CPU feature vmx-ins-outs', None))
    @ddt.unpack
    def test_only_an_unknown_model_is_a_refusal(self, said, expected):
        with mock.patch.object(self.libvirt, 'compareHypervisorCPU',
                               side_effect=self.libvirt.libvirtError(said, 1)):
            self.assertEqual(expected, self.answer().cpu)

    @ddt.data((88, 0), (38, errno.EPIPE), (38, errno.EAGAIN))
    @ddt.unpack
    def test_error_that_is_no_refusal_is_unknown(self, code, number):
        """Access is denied; the connection breaks; no process can start."""
        error = self.libvirt.libvirtError('no', code, number)
        with mock.patch.object(self.libvirt, 'getDomainCapabilities',
                               side_effect=error), \
                mock.patch.object(self.libvirt, 'compareHypervisorCPU',
                                  side_effect=error):
            self.assertEqual(matching.Answer(None, None), self.answer())
        self.assertEqual(2, len(self.notes))

    def test_equal_guests_are_asked_for_once(self):
        with mock.patch.object(self.libvirt, 'compareHypervisorCPU') as asked:
            self.answer()
            self.answer()
        self.assertEqual(1, asked.call_count)

    def test_passed_through_cpu_is_not_compared_by_libvirt(self):
        needs = facts.Needs(MACHINE, is_passthrough=True)
        self.assertEqual(matching.Answer('', None),
                         self.queries.answer(needs, '<cpu/>'))

    # -- large packets

    def test_long_question_is_a_valid_cpu(self):
        with mock.patch.object(self.libvirt, 'compareCPU') as asked:
            self.queries.send(100000)
        xml, _flags = asked.call_args.args
        self.assertGreater(len(xml), 100000)
        self.assertIn('<arch>x86_64</arch>', xml)

    @ddt.data(('getCapabilities', lambda asked: asked.receive(), 0),
              ('compareCPU', lambda asked: asked.send(10), None))
    @ddt.unpack
    def test_error_is_an_answer_while_the_connection_lives(
            self, method, question, answer):
        error = self.libvirt.libvirtError('access denied')
        with mock.patch.object(self.libvirt, method, side_effect=error):
            self.assertEqual(answer, question(self.queries))
            self.libvirt.isAlive = lambda: False
            self.assertRaises(self.libvirt.libvirtError, question,
                              self.queries)

    @ddt.data('', '<capabilities/>', '<!DOCTYPE x><x/>')
    def test_question_does_not_depend_on_the_capabilities(self, capabilities):
        self.libvirt.capabilities = capabilities
        with mock.patch.object(self.libvirt, 'compareCPU') as asked:
            self.queries.send(10)
        self.assertEqual(1, asked.call_count)
