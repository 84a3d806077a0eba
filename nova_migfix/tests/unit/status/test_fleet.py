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
"""Merge the answers of many hosts, and judge each host."""

import json
import pathlib

import ddt
import fixtures
import testtools

from nova_migfix import status
from nova_migfix.status import drain
from nova_migfix.status import findings
from nova_migfix.status import fleet
from nova_migfix.tests import hosts
from nova_migfix.tests.unit.status import base

A, B = map(base.uuid, (1, 2))


class FleetTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)

    def put(self, name, *findings, plugin=True, notes=(), facts=None,
            **checks):
        """Write the answers of a host.

        :param facts: other values of preflight
        """
        hosts.write(
            self.directory, name,
            hosts.registered(hosts.checks(plugin, **checks)),
            hosts.registered(hosts.preflight(
                name, list(findings), plugin=plugin, notes=notes,
                **{'guests': 2, **(facts or {})})))

    def judged(self):
        found = fleet.read(self.directory)
        self.matrix = drain.judge(found)
        return {host.host: host for host in found}

    def assertDrain(self, drain, *why, host='a'):
        found = self.judged()[host]
        self.assertEqual((drain, list(why)), (found.drain.value, found.why))


@ddt.ddt
class TestRead(FleetTestCase):

    def test_answers_of_a_host_are_read(self):
        self.put('a', hosts.finding('vnic', A))
        host = self.judged()['a']
        self.assertEqual(fleet.State.ANSWERED, host.state)
        self.assertEqual(2, host.guests)
        self.assertEqual(list(hosts.FIXES), host.fixes)
        self.assertEqual(hosts.checks()['checks'], host.checks)
        self.assertEqual([hosts.finding('vnic', A)], host.findings)

    def test_columns_match_those_of_preflight(self):
        self.assertEqual({*findings.Finding._fields},
                         {*fleet.TEXTS, 'result'})

    def test_example_findings_match_those_of_preflight(self):
        for name, *_, fix, covered, harm in hosts.KINDS:
            kind = findings.KINDS[name]
            self.assertEqual(kind.fix.name, fix)
            if covered != 'if on the destination':
                self.assertEqual(2 if kind.fails else 1, harm)
            self.assertEqual(covered, findings.covered(
                kind, frozenset(hosts.FIXES), None))

    def test_unreachable_host_is_unknown(self):
        hosts.write(self.directory, 'a', hosts.UNREACHABLE, {})
        self.assertEqual(fleet.State.UNREACHABLE, self.judged()['a'].state)
        self.assertDrain('unknown', hosts.UNREACHABLE['msg'])

    def test_host_that_becomes_unreachable_keeps_its_checks(self):
        hosts.write(self.directory, 'a', hosts.registered(hosts.checks()),
                    hosts.UNREACHABLE)
        self.assertEqual(fleet.State.UNREACHABLE, self.judged()['a'].state)
        self.assertTrue(self.judged()['a'].checks)

    @ddt.data(
        (hosts.NO_CONTAINER,
         f'exit code 1: {hosts.NO_CONTAINER["stderr"]}'),
        ({'rc': 255, 'stdout': '', 'stderr': 'Traceback\n  x\nOSError: no\n'},
         'exit code 255: OSError: no'),
        ({'msg': 'Timed out after 300 second(s).'},
         'Timed out after 300 second(s).'),
        ({'rc': 0, 'stdout': '{}', 'stderr': ''},
         'exit code 0: the output is not that of nova-migfix-status'),
        ({'rc': 0, 'stdout': '[' * 100000, 'stderr': ''},
         'exit code 0: the output is not that of nova-migfix-status'),
        ({}, 'there is no answer from this host.'))
    @ddt.unpack
    def test_failed_command_is_reported_with_its_error(self, result, error):
        hosts.write(self.directory, 'a', hosts.registered(hosts.checks()),
                    result)
        self.assertEqual(fleet.State.FAILED, self.judged()['a'].state)
        self.assertDrain('unknown', error)

    def test_error_of_both_commands_is_reported_once(self):
        hosts.write(self.directory, 'a', hosts.NO_CONTAINER,
                    hosts.NO_CONTAINER)
        self.assertEqual(1, len(self.judged()['a'].errors))

    def test_findings_count_although_checks_failed(self):
        hosts.write(self.directory, 'a', hosts.NO_CONTAINER, hosts.registered(
            hosts.preflight('a', [hosts.finding('vnic', A, False)])))
        host = self.judged()['a']
        self.assertEqual(fleet.State.FAILED, host.state)
        self.assertEqual(fleet.Drain.NO, host.drain)

    def test_only_values_of_a_finding_can_be_missing(self):
        self.put('a', hosts.finding('vnic', A, running=None, covered=None))
        row, = self.judged()['a'].findings
        self.assertEqual((None, 'None'), (row['running'], row['covered']))

    @ddt.data('', '[]', '{"upgrade": 1}', '\0')
    def test_malformed_file_is_a_failed_host(self, text):
        (self.directory / 'a.json').write_text(text)
        host = self.judged()['a']
        self.assertEqual(fleet.State.FAILED, host.state)
        self.assertIn('is not valid', host.errors[0])

    @ddt.data('a directory', 'bytes', 'Infinity', 'digits', 'far too large')
    def test_bad_file_is_the_error_of_its_host(self, kind):
        self.put('b')
        path = self.directory / 'a.json'
        path.mkdir() if kind == 'a directory' else path.write_bytes({
            'bytes': b'{"upgrade": "\xff"}', 'Infinity': b'Infinity',
            'digits': b'1' * 5000, 'far too large': b'[' * 10 ** 6}[kind])
        (self.directory / 'hosts').write_bytes(b'a\nb\nc\xff\n')
        self.assertEqual(
            ['failed', 'answered', 'failed'],
            [host.state.value for host in self.judged().values()])

    @ddt.data('seconds', 'guests')
    def test_number_of_preflight_has_limits(self, name):
        for number in ('Infinity', 'NaN', '1e999', '1' * 400, '-1', '"x"'):
            hosts.write(self.directory, 'a', hosts.registered(hosts.checks()),
                        {'rc': 0, 'stderr': '', 'stdout': json.dumps({
                            **hosts.preflight('a', []), name: '@'}).replace(
                                '"@"', number)})
            self.assertDrain('unknown', 'exit code 0: the output is not that '
                             'of nova-migfix-status')

    @ddt.data(3, -1, '1', None, 10 ** 30, [])
    def test_result_of_a_check_has_limits(self, result):
        self.put('a', Plugin=(result, ''))
        self.assertEqual(fleet.State.FAILED, self.judged()['a'].state)

    def test_error_of_a_host_is_cut(self):
        hosts.write(self.directory, 'a', {'rc': 1, 'stderr': 'x' * 10 ** 6},
                    {})
        self.assertLess(len(self.judged()['a'].errors[0]), 600)

    def test_host_without_a_file_is_a_failed_host(self):
        self.put('a.example')
        (self.directory / 'hosts').write_text('a.example\nb.example\n')
        found = self.judged()
        self.assertEqual(['a.example', 'b.example'], list(found))
        self.assertEqual(fleet.State.FAILED, found['b.example'].state)
        self.assertDrain('unknown', 'there is no answer from this host.',
                         host='b.example')

    def test_directory_without_hosts_is_an_error(self):
        self.assertRaises(status.Error, fleet.read, self.directory)
        self.assertRaises(status.Error, fleet.read, self.directory / 'none')


@ddt.ddt
class TestDrain(FleetTestCase):

    def test_host_without_findings_is_safe_to_drain(self):
        self.put('a', plugin=False)
        self.put('b', plugin=False)
        self.assertDrain('yes')

    def test_host_with_covered_findings_is_safe_to_drain(self):
        self.put('a', hosts.finding('vnic', A), hosts.finding('ephemeral', B))
        self.put('b', plugin=False)
        self.assertDrain('yes')

    def test_host_with_uncovered_findings_is_not_safe_to_drain(self):
        self.put('a', hosts.finding('vnic', A, False),
                 hosts.finding('ephemeral', A, False),
                 hosts.finding('vnic-ring', B, False), plugin=False)
        self.put('b')
        self.assertDrain(
            'no', 'Guests that would fail or be harmed: 1 of 2.',
            'Guests that would change: 1 of 2.')

    def test_host_with_changes_only_is_rated_changes(self):
        self.put('a', hosts.finding('vnic-ring', A, False), plugin=False)
        self.put('b')
        self.assertDrain(
            'changes', 'Guests that would change: 1 of 2.')

    @ddt.data((None, 'depends', (
        'Guests whose migration depends on the destination or the guest: 1 '
        'of 2.',)), ('vnic-ring', 'changes', (
            'Guests that would change: 1 of 2.',
            'Guests whose migration depends on the destination or the guest: '
            '1 of 2.')))
    @ddt.unpack
    def test_unknown_outcome_is_rated_depends(self, other, drain, reasons):
        unknown = hosts.finding('vnic', A, fix='', covered='not known',
                                result=1)
        self.put('a', unknown, *(
            [hosts.finding(other, B, False)] if other else []), plugin=False)
        self.put('b')
        self.assertDrain(drain, *reasons)

    @ddt.data(
        (True, True, 'yes', 2, ()),
        (True, False, 'depends', 1, (
            '1 of 2 other hosts are known to be able to run all guests.',)),
        (False, False, 'no', 0, (
            'Guests that no other host can run: 1 of 2.',)))
    @ddt.unpack
    def test_drain_depends_on_the_fixes_of_other_hosts(
            self, b, c, drain, able, why):
        self.put('a', hosts.finding('config-drive', A),
                 hosts.finding('kernel-ramdisk', A))
        self.put('b', plugin=b)
        self.put('c', plugin=c)
        self.assertDrain(
            drain, *why,
            'The destination needs config_drive, kernel_ramdisk: '
            f'{able} of 2 other hosts are known to have it.')

    def test_host_is_no_destination_for_itself(self):
        self.put('a', hosts.finding('config-drive', A))
        self.assertDrain('unknown', 'The report has no other host.',
                         'The destination needs config_drive: 0 of 0 other '
                         'hosts are known to have it.')

    def test_unreachable_host_is_no_destination(self):
        self.put('a', hosts.finding('config-drive', A))
        self.put('b')
        hosts.write(self.directory, 'c', hosts.UNREACHABLE, {})
        self.assertDrain(
            'depends',
            '1 of 2 other hosts are known to be able to run all guests.',
            'The destination needs config_drive: 1 of 2 other hosts are known '
            'to have it.')

    def test_host_that_has_not_restarted_is_no_destination(self):
        self.put('a', hosts.finding('config-drive', A))
        self.put('b', Plugin=(1, 'restart it.'))
        self.assertDrain('unknown', 'Guests of which it is not known whether '
                         'another host can run them: 1 of 2. Not compared: '
                         'config_drive.',
                         'The destination needs config_drive: 0 of 1 other '
                         'hosts are known to have it.')

    @ddt.data(
        ('TLSv1.2 AES256 safe.', 'yes', 1, ()),
        ('rekeys.', 'no', 0, ('Guests that no other host can run: 1 of 2.',)),
        # as with Kolla, where QEMU is in another container
        ('The TLS that QEMU negotiates could not be determined', 'unknown', 0,
         ('Guests of which it is not known whether another host can run them: '
          '1 of 2. Not compared: a policy for TLS.',)))
    @ddt.unpack
    def test_tls_policy_counts_on_the_destination(
            self, details, drain, able, why):
        self.put('a', hosts.finding('tls', A),
                 hosts.finding('tls', A, finding='old-library', result=1))
        self.put('b', TLS=(0, details))
        self.assertDrain(drain, *why,
                         'The destination needs a policy for TLS: '
                         f'{able} of 1 other hosts are known to have it.')

    def test_fix_before_a_restart_does_not_cover(self):
        self.put('a', hosts.finding('vnic', A), Plugin=(1, 'Restart it.'))
        self.put('b', Plugin=(1, 'Restart it.'))
        self.assertDrain('no', 'Restart it.')
        self.assertDrain('yes', host='b')

    def test_host_with_closed_ssh_is_not_safe_to_drain(self):
        ssh = {'ssh_to_the_migration_address': (2, 'nobody answers.')}
        self.put('a', hosts.finding('ephemeral', A), **ssh)
        self.put('b', plugin=False, **ssh)
        self.assertDrain('no', 'ssh to the migration address: nobody answers.')
        self.assertDrain('yes', host='b')

    def test_guest_that_was_not_checked_is_unknown(self):
        note = (f'{A}: the vNICs that Nova would give it could not be '
                'computed')
        self.put('a', notes=[note, f'{A} (x) is not an instance of Nova\'s.'])
        self.put('b')
        self.assertDrain('unknown', note)

    def test_worst_reason_comes_first(self):
        self.put('a', hosts.finding('vnic', B, False), notes=[f'{A}: no'])
        self.put('b')
        self.assertDrain('no', 'Guests that would fail or be harmed: 1 of 2.',
                         f'{A}: no')


class TestSummary(FleetTestCase):

    def test_summary_counts_hosts_guests_and_findings(self):
        self.put('a', hosts.finding('vnic', A), hosts.finding('ephemeral', A))
        self.put('b', hosts.finding('vnic', B, False), plugin=False)
        hosts.write(self.directory, 'c', hosts.UNREACHABLE, {})
        self.assertEqual({
            'hosts': 3,
            'states': {'answered': 2, 'failed': 0, 'unreachable': 1},
            'drain': {'no': 1, 'unknown': 1, 'changes': 0, 'depends': 1,
                      'yes': 0},
            'guests': 4, 'guests_with_findings': 2, 'guests_not_covered': 1,
            'findings': 3}, fleet.summary([*self.judged().values()]))

