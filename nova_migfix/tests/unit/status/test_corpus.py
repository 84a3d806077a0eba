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
"""``explain`` with a corpus of logs: each fault matches its own, and no other.

A file ``corpus/FAULT.CASE.log`` has lines of up to three logs, each below a
title as ``tail`` prints it, and its origin in the first line: the failure was
run, or the lines follow a public report or the source of the program.
"""

import itertools
import pathlib
import re
import time

import ddt
import fixtures
import hypothesis
from hypothesis import strategies
import testtools

from nova_migfix.status import attempt
from nova_migfix.status import daemon_logs
from nova_migfix.status import explain
from nova_migfix.status import faults
from nova_migfix.status.faults import base as faults_base
from nova_migfix.status import hypervisor
from nova_migfix.status import logs
from nova_migfix.status import verdict
from nova_migfix.tests.unit.status import base

CORPUS = pathlib.Path(__file__).parent / 'corpus'
UUID = base.uuid(1)
REQUEST = f'req-{base.uuid(2)}'

CASES = {path.stem: path.read_text() for path in CORPUS.glob('*.log')}
NOT_FAULTS = {'unknown', 'arrived'}

_TITLE = re.compile(r'^==> (\S+) <==\n', re.MULTILINE)

#: public report: cases with its lines
REPORTS = {
    'kubevirt#16386, #19000, RHEL-80313': ('vnic-offloads.uso',),
    'vexxhost/atmosphere#2553': ('certificate.nova-only',
                                 'certificate-name.libvirt'),
    'Mirantis MOSK manual': ('tls-credentials.namespace',),
    'tp-libvirt#5192': ('certificate-name.qemu',),
    'LP 1860743': ('libvirt-ssh.host-key',),
    'nova-operator#621': ('config-drive-copy.name',),
    'LP 2005119': ('ssh-sftp.base',),
    'LP 1729566': ('name-lookup.dns',),
    'LP 2039803': ('cpu.precheck',),
    'stackhpc-kayobe-config#2178': ('cpu-pdcm.package',),
    'harvester#11615': ('cpu-ht.libvirt',),
    'BZ 1867127': ('cpu-name.feature',),
    'oracle-linux#221, kubevirt#4629': ('machine-type.libvirt',
                                        'machine-type.qemu'),
    'LP 2158515': ('libvirtd-busy.requests', 'keepalive.nova-only'),
    'kubevirt#17780, LP 2052473': ('post-copy.denied',),
    'LP 1761062': ('destination-disk-exists.left-over',),
    'cubecos#856, cloudstack#8255': ('secret-missing.ceph',),
    'LP 1741364': ('rbd-monitors.gone',),
    'BZ 2100054, LP 2046549': ('reenlightenment.tsc',),
    'Nova\'s prechecks': ('storage-shared.block', 'storage-not-shared.local',
                          'disk-too-large.precheck',
                          'hypervisor-older.forced'),
    'terraform-provider-libvirt#490': ('cache-mode.shared',),
    'LP 1800511': ('vnic-abi.mtu',),
    'LP 1967956': ('storage-denied.squash',),
    'cloudstack#5717': ('bridge-missing.linux',),
    'libvirt_exporter#33': ('state-change-lock.backup',),
    'exporters\' noise': ('unknown.exporter',),
    'Cinder is down': ('service-unreachable.cinder', 'unknown.refused'),
    'libvirt\'s ABI check': ('guest-abi.cpu', 'guest-abi.feature'),
    'Debian 13 back to 12': ('hypervisor-older.debian', 'no-valid-host.info'),
    'LP 2152697': ('iothread-pin.older',),
    'LP 2112187': ('refused-volume.swapped',),
    'libvirt\'s notes of 12.5.0': ('video-model.gpu', 'video-model.vga'),
    'LP 1815989, BZ 2012179': ('arrived.unreachable',),
}


def expected(case):
    """Return the fault of a case."""
    return case.partition('.')[0]


class CorpusTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.addCleanup(time.tzset)
        self.useFixture(fixtures.EnvironmentVariable('TZ', 'UTC'))
        time.tzset()
        for name in ('nova-compute.log', 'qemu.log', 'libvirtd.log'):
            (self.directory / name).touch()
        self.useFixture(fixtures.MockPatchObject(
            explain, '_nova_log',
            lambda: self.directory / 'nova-compute.log'))
        self.useFixture(fixtures.MockPatchObject(
            hypervisor, 'state', lambda uuid: ''))

    def write(self, text):
        _origin, *parts = _TITLE.split(text)
        for name, part in zip(parts[::2], parts[1::2]):
            (self.directory / name).write_text(part)

    def explain(self, request=REQUEST):
        return explain.explain(
            UUID, request, str(self.directory / 'qemu.log'),
            str(self.directory / 'libvirtd.log'))

    def matching(self):
        """Return the names of all faults that match."""
        found = attempt.find(
            self.directory / 'nova-compute.log', UUID, REQUEST)
        return {match.fault.name for match in verdict.matches({
            faults_base.NOVA: found.deciding,
            faults_base.QEMU: daemon_logs.qemu_file(
                str(self.directory / 'qemu.log'), UUID, found),
            faults_base.LIBVIRT: daemon_logs.libvirt(
                [self.directory / 'libvirtd.log'], found)})}


@ddt.ddt
class TestCorpus(CorpusTestCase):

    @ddt.data(*sorted(CASES))
    def test_fault_of_a_case_is_found(self, case):
        self.write(CASES[case])
        answer = self.explain()
        if expected(case) == 'arrived':
            self.assertEqual('arrived', answer.outcome)
            self.assertEqual(explain.UNREACHABLE, answer.remedy)
            return
        self.assertEqual(('failed', expected(case)),
                         (answer.outcome, answer.fault))
        self.assertNotIn('{thing}', answer.meaning)

    @ddt.data(*sorted(CASES))
    def test_request_is_needed_only_without_the_uuid(self, case):
        self.write(CASES[case])
        answer = self.explain('')
        if f'[instance: {UUID}]' in CASES[case] or UUID in CASES[case]:
            self.assertEqual(self.explain(), answer)
        else:
            self.assertEqual('unknown', answer.fault)

    @ddt.data(*sorted(CASES))
    def test_no_other_fault_matches_a_case(self, case):
        """A row of the confusion matrix: a fault, and its general one."""
        self.write(CASES[case])
        name = expected(case)
        allowed = set() if name in NOT_FAULTS else {
            name, *faults.BY_NAME[name].kind_of}
        self.assertEqual(set(), self.matching() - allowed)

    @hypothesis.given(strategies.lists(strategies.binary(), max_size=9))
    def test_any_bytes_are_read(self, lines):
        begin = (f'2026-11-25 10:44:10.412 1 ERROR nova.x [None {REQUEST} - -]'
                 f' [instance: {UUID}] Live Migration failure: ').encode()
        for name, start in (('nova-compute.log', begin), ('qemu.log', b''),
                            ('libvirtd.log', b'2026-11-25 10:44:10.1+0000: 6: '
                                             b'error : ')):
            (self.directory / name).write_bytes(b''.join(
                start + line + b'\n' for line in lines))
        self.assertIn(self.explain().fault, {*faults.BY_NAME, 'unknown'})

    def test_each_fault_has_a_case(self):
        self.assertEqual(set(faults.BY_NAME),
                         {*map(expected, CASES)} - NOT_FAULTS)

    def test_each_report_has_its_cases(self):
        self.assertEqual(
            set(), {*itertools.chain(*REPORTS.values())} - set(CASES))

    @ddt.data(*sorted(CASES))
    def test_case_names_documentation_hosts_only(self, case):
        for address in re.findall(r'\b\d+\.\d+\.\d+\.\d+\b', CASES[case]):
            self.assertTrue(address.startswith('192.0.2.'), address)


class TestAbiMessages(testtools.TestCase):

    LINES = [line for line in (CORPUS / 'abi.txt').read_text().splitlines()
             if not line.startswith('#')]

    def test_each_message_is_one_fault_that_names_the_thing(self):
        self.assertEqual(207, len(self.LINES))
        for text in self.LINES:
            line = logs.Line('log', 1, f'unsupported configuration: {text}')
            found, *general = verdict.matches({faults_base.NOVA: [line]})
            self.assertEqual(
                'vnic-abi' if 'network card' in text
                or 'virtio network' in text else 'guest-abi',
                found.fault.name, text)
            named = general[0] if general else found
            self.assertTrue(text.startswith(named.thing), text)
            self.assertIn(named.thing, named.meaning)
            self.assertNotIn('match', named.thing)


class TestTable(testtools.TestCase):

    def test_names_are_unique(self):
        self.assertEqual(len(faults.FAULTS), len(faults.BY_NAME))

    def test_columns_have_known_values(self):
        for fault in faults.FAULTS:
            self.assertIn(fault.said_by, faults_base.LOGS)
            self.assertIn(fault.phase, faults_base.PHASES)
            self.assertTrue(fault.patterns and fault.releases and fault.remedy)

    def test_general_faults_come_after_their_kinds(self):
        names = [fault.name for fault in faults.FAULTS]
        for fault in faults.FAULTS:
            for general in fault.kind_of:
                self.assertLess(names.index(fault.name),
                                names.index(general))

    def test_thing_is_a_group_of_a_pattern(self):
        for fault in faults.FAULTS:
            self.assertEqual(
                '{thing}' in fault.meaning,
                any('(?P<thing>' in pattern for pattern in fault.patterns),
                fault.name)
