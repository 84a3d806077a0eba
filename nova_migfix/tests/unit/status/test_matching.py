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
"""Guests match hosts, or do not for a known reason."""

import json

import ddt
import hypothesis
from hypothesis import strategies
import testtools

from nova_migfix.abi import tap
from nova_migfix.status import facts
from nova_migfix.status import matching

QEMU = '/usr/bin/qemu-system-x86_64'
MACHINE = facts.Machine(QEMU, 'x86_64', 'pc-q35-8.2', 'kvm')
CPU = facts.Cpu('x86_64', 'Broadwell', 'Intel', frozenset(('avx2', 'sse2')))
NEEDS = facts.Needs(
    MACHINE, CPU, secrets=frozenset(('ceph',)), queues=4,
    offloads=frozenset(('USO',)), post_copy=True, hypervisor=8002000,
    libvirt=10000000)
EMULATOR = facts.Emulator(QEMU, 'x86_64', frozenset(('kvm', 'qemu')),
                          frozenset(('pc-q35-8.2', 'pc-q35-7.2')))
HOST = facts.Capabilities(
    8002000, 10000000, (EMULATOR,), {'kvm': CPU}, frozenset(('ceph', 'other')),
    256, frozenset(tap.OFFLOADS), True)


def without(*features):
    return HOST._replace(cpus={'kvm': CPU._replace(
        features=CPU.features.difference(features))})


#: change of the guest, change of the host; kind, verdict, value, answer
CASES = (
    ({}, {'emulators': ()}, 'dest-emulator', 'no', QEMU,
     'no emulator for x86_64'),
    ({}, {'emulators': (EMULATOR._replace(path='/usr/libexec/qemu-kvm'),)},
     'dest-emulator', 'unknown', QEMU, 'libvirt lists /usr/libexec/qemu-kvm'),
    ({}, {'emulators': (EMULATOR._replace(virt_types=frozenset(['qemu'])),)},
     'dest-emulator', 'no', QEMU, 'without kvm'),
    ({'machine': MACHINE._replace(machine='pc-q35-9.0')}, {},
     'dest-machine', 'no', 'pc-q35-9.0', f'not in {QEMU}'),
    ({}, {'emulators': None}, 'dest-machine', 'unknown', 'pc-q35-8.2',
     'not known'),
    ({}, {'cpus': without('avx2').cpus}, 'dest-cpu', 'no', 'Broadwell',
     'lacks avx2'),
    # Another libvirt may list other features of the same model.
    ({'libvirt': 9000000}, {'cpus': without('avx2').cpus}, 'dest-cpu',
     'unknown', 'Broadwell',
     'lacks avx2, if both have the same release of libvirt'),
    ({'libvirt': None}, {'cpus': without('avx2').cpus, 'libvirt': None},
     'dest-cpu', 'unknown', 'Broadwell',
     'lacks avx2, if both have the same release of libvirt'),
    ({'cpu': CPU._replace(vendor='AMD')}, {}, 'dest-cpu', 'no',
     'Broadwell, AMD', 'Intel'),
    ({'cpu': None}, {}, 'dest-cpu', 'unknown', 'CPU', 'not known'),
    ({}, {'cpus': None}, 'dest-cpu', 'unknown', 'Broadwell', 'not known'),
    ({}, {'cpus': {'kvm': CPU._replace(arch='aarch64')}}, 'dest-cpu',
     'unknown', 'Broadwell', 'not known'),
    ({'is_passthrough': True}, {'cpus': without('avx2').cpus}, 'dest-cpu',
     'no', 'host-passthrough', 'lacks avx2'),
    ({'is_passthrough': True, 'cpu': CPU._replace(
        features=frozenset(['sse2']))}, {}, 'dest-cpu', 'unknown',
     'host-passthrough', 'the CPU of the host differs'),
    ({'secrets': frozenset(('b', 'ceph', 'a'))}, {}, 'dest-secret', 'no',
     'a, b', 'missing'),
    ({}, {'secrets': None}, 'dest-secret', 'unknown', 'ceph', 'not known'),
    ({'queues': 16}, {'queues': 8}, 'dest-queues', 'no', '16',
     'the kernel opens 8'),
    ({}, {'queues': None}, 'dest-queues', 'unknown', '4', 'not known'),
    ({}, {'offloads': frozenset()}, 'dest-offload', 'unknown', 'USO',
     'missing: QEMU refuses the guest if its driver uses it'),
    ({}, {'offloads': None}, 'dest-offload', 'unknown', 'USO', 'not known'),
    ({'offloads': None}, {}, 'dest-offload', 'unknown', 'not known',
     'not known'),
    ({'hypervisor': 9000001}, {}, 'dest-version', 'no', '9.0.1',
     'older, 8.2.0'),
    ({'hypervisor': 9000001, 'skips_version': True}, {}, 'dest-version',
     'unknown', '9.0.1', 'older, 8.2.0: refused unless nova-conductor has '
     'skip_hypervisor_version_check_on_lm, as the source'),
    ({}, {'hypervisor': None}, 'dest-version', 'unknown', '8.2.0',
     'not known'),
    ({}, {'post_copy': False}, 'dest-post-copy', 'no', 'permitted',
     'vm.unprivileged_userfaultfd is 0'),
    ({}, {'post_copy': None}, 'dest-post-copy', 'unknown', 'permitted',
     'not known'),
)

#: changes of a guest and a host that the host can run
MATCHES = (
    ({}, {}),
    ({'machine': MACHINE._replace(machine='pc-q35-7.2')},
     {'hypervisor': 9000000}),
    ({'cpu': CPU._replace(vendor='')}, {}),
    ({'cpu': CPU._replace(features=frozenset(['sse2']))}, {}),
    # not migratable, so that libvirt does not compare it
    ({'cpu': CPU._replace(features=CPU.features | {'invtsc'})}, {}),
    ({'is_passthrough': True}, {}),
    ({'is_passthrough': True, 'without': frozenset(['avx2']),
      'cpu': CPU.less({'avx2'})}, {}),
    ({'is_passthrough': True, 'without': frozenset(['avx2']),
      'cpu': CPU.less({'avx2'})}, {'cpus': without('avx2').cpus}),
    ({'secrets': frozenset()}, {'secrets': None}),
    ({'queues': 1}, {'queues': None}),
    ({'offloads': frozenset()}, {'offloads': None}),
    ({'post_copy': False}, {'post_copy': False}),
    ({'hypervisor': None, 'skips_version': True}, {}),
)


@ddt.ddt
class TestCompare(testtools.TestCase):

    @ddt.data(*CASES)
    @ddt.unpack
    def test_mismatch_has_its_reason(self, guest, host, kind, verdict, value,
                                     answer):
        reasons = matching.compare(
            NEEDS._replace(**guest), HOST._replace(**host))
        self.assertEqual([matching.Reason(
            kind, matching.Verdict(verdict), value, answer)], reasons)
        self.assertEqual(verdict, matching.verdict(reasons).value)

    @ddt.data(*MATCHES)
    @ddt.unpack
    def test_match_has_no_reason(self, guest, host):
        self.assertEqual([], matching.compare(
            NEEDS._replace(**guest), HOST._replace(**host)))

    def test_every_kind_of_reason_has_a_case(self):
        self.assertEqual(set(matching.KINDS), {case[2] for case in CASES})

    def test_worst_verdict_counts(self):
        self.assertEqual(matching.Verdict.YES, matching.verdict([]))
        no, unknown = (matching.Reason('', verdict, '', '') for verdict in (
            matching.Verdict.NO, matching.Verdict.UNKNOWN))
        self.assertEqual(matching.Verdict.NO, matching.verdict([unknown, no]))

    @ddt.data(
        (f'the machine \'pc-q35-8.2\' is not supported by emulator \'{QEMU}\'',
         'dest-machine', 'pc-q35-8.2'),
        (f'Cannot check QEMU binary {QEMU}: No such file', 'dest-emulator',
         QEMU))
    @ddt.unpack
    def test_refusal_by_libvirt_is_the_reason(self, said, kind, value):
        self.assertEqual(
            [matching.Reason(kind, matching.Verdict.NO, value, said)],
            matching.compare(NEEDS, HOST, matching.Answer(said, '')))

    def test_consent_of_libvirt_overrules_lists(self):
        self.assertEqual([], matching.compare(
            NEEDS, without('avx2')._replace(emulators=()),
            matching.Answer('', '')))

    def test_incompatible_cpu_is_the_reason(self):
        reason, = matching.compare(
            NEEDS, HOST, matching.Answer('', 'missing features: pdcm'))
        self.assertEqual(('dest-cpu', 'missing features: pdcm'),
                         (reason.kind, reason.answer))

    def test_versions_are_shown_as_those_of_qemu(self):
        self.assertEqual('10.0.2', facts.shown(10000002))


names = strategies.frozensets(strategies.sampled_from(
    ['a', 'b', 'c', 'avx2', 'vmx']))
cpus = strategies.builds(
    facts.Cpu, strategies.just('x86_64'), strategies.sampled_from('mn'),
    strategies.sampled_from(['', 'Intel', 'AMD']), names)
numbers = strategies.integers(1, 300)
needs = strategies.builds(
    facts.Needs, strategies.just(MACHINE), cpus, strategies.booleans(), names,
    numbers, strategies.frozensets(strategies.sampled_from(
        [*tap.OFFLOADS])), strategies.booleans(), numbers,
    strategies.booleans(), numbers)


def same_host(guest):
    """Return the capabilities of the host on which a guest runs."""
    return HOST._replace(
        hypervisor=guest.hypervisor, libvirt=guest.libvirt,
        cpus={'kvm': guest.cpu}, secrets=guest.secrets, queues=guest.queues,
        offloads=guest.offloads, post_copy=guest.post_copy or None)


class TestProperties(testtools.TestCase):

    @hypothesis.given(needs)
    def test_identical_host_runs_any_guest(self, guest):
        self.assertEqual([], matching.compare(guest, same_host(guest)))

    @hypothesis.given(needs)
    def test_host_that_tells_nothing_never_matches_and_never_refuses(
            self, guest):
        self.assertEqual(matching.Verdict.UNKNOWN, matching.verdict(
            matching.compare(guest, facts.Capabilities())))

    @hypothesis.given(needs)
    def test_facts_survive_json(self, guest):
        host = same_host(guest)
        for value, load in ((guest, facts.load_needs),
                            (host, facts.load_capabilities)):
            self.assertEqual(value, load(json.loads(json.dumps(
                facts.as_json(value)))))


@ddt.ddt
class TestFacts(testtools.TestCase):

    @ddt.data(None, [], 'x', {'machine': 1}, {'cpu': {'arch': 1}},
              {'queues': '4'}, {'post_copy': 1}, {'secrets': [1]},
              {'secrets': 1}, {})
    def test_invalid_needs_are_refused(self, value):
        self.assertRaises((ValueError, TypeError), facts.load_needs, value)

    def test_fields_of_another_release_are_ignored(self):
        value = {**facts.as_json(HOST), 'color': 'red'}
        del value['offloads']
        self.assertEqual(HOST._replace(offloads=None),
                         facts.load_capabilities(value))

    def test_missing_values_come_from_elsewhere(self):
        mine = HOST._replace(queues=None, post_copy=None)
        other = facts.Capabilities(queues=8, post_copy=False, hypervisor=1)
        self.assertEqual(HOST._replace(queues=8, post_copy=False),
                         mine.or_else(other))

    @ddt.data(('pc-q35-7.2', []), ('pc-i440fx-8.2', ['USO']),
              # of early releases of QEMU 8.2
              ('pc-q35-8.1', ['USO']),
              ('pc-q35-10.2', ['UDP tunnel', 'USO']),
              ('pc-q35-rhel9.2.0', []), ('pc-q35-rhel9.4.0', ['USO']),
              ('pc-q35-noble', ['UDP tunnel', 'USO']))
    @ddt.unpack
    def test_offloads_depend_on_the_machine_type(self, machine, expected):
        self.assertEqual(expected, sorted(facts.possible_offloads(machine)))

    def test_offloads_are_those_that_the_kernel_is_asked_for(self):
        self.assertEqual(set(tap.OFFLOADS), set(facts.possible_offloads('x')))
