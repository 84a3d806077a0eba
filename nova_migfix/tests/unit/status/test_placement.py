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
"""Guests of all hosts match all hosts: where a host can be drained to."""

from unittest import mock

from nova_migfix.status import matching
from nova_migfix.tests import hosts
from nova_migfix.tests.unit.status import base
from nova_migfix.tests.unit.status import test_fleet

A, B = map(base.uuid, (1, 2))

OLD_QEMU = {'emulators': [{
    **hosts.capabilities()['emulators'][0], 'machines': ['pc-q35-7.2']}]}
OLDER_PLUGIN = {'capabilities': None, 'needs': []}


def able(**changes):
    """Return the facts of a host without guests."""
    return {'capabilities': hosts.capabilities(**changes), 'needs': [],
            'guests': 0}


def guests(*groups, **changes):
    return {'capabilities': hosts.capabilities(**changes),
            'needs': list(groups)}


class PlacementTestCase(test_fleet.FleetTestCase):

    def destinations(self, name):
        """Return the names of other hosts by verdict."""
        host = self.judged()[name]
        return {verdict: [other for index in classes
                          for other in self.matrix.hosts[index].names]
                for verdict, classes in host.destinations.items() if classes}

    def test_equal_hosts_can_run_each_others_guests(self):
        self.put('a')
        self.put('b')
        self.assertDrain('yes')
        self.assertEqual({'yes': ['a', 'b']}, self.destinations('a'))

    def test_host_that_lacks_the_machine_type_is_no_destination(self):
        self.put('a')
        self.put('b', facts=able(**OLD_QEMU))
        self.put('c', facts=able())
        self.assertDrain(
            'depends',
            '1 of 2 other hosts are known to be able to run all guests.')
        self.assertEqual({'yes': ['a', 'c'], 'no': ['b']},
                         self.destinations('a'))

    def test_guests_without_a_destination_keep_their_host(self):
        self.put('a', facts=guests(hosts.needs([A]), hosts.needs(
            [B], 'pc-q35-7.2')))
        self.put('b', facts=able(**OLD_QEMU))
        self.assertDrain('no', 'Guests that no other host can run: 1 of 2.')
        self.assertEqual({'no': ['b']}, self.destinations('a'))

    def test_each_guest_may_have_another_destination(self):
        self.put('a', facts=guests(
            hosts.needs([A]), hosts.needs([B], 'pc-q35-7.2', queues=4)))
        self.put('b', facts=able(queues=1))
        self.put('c', facts=able(**OLD_QEMU))
        self.assertDrain('depends', 'No other host can run all guests, but '
                                    'there is one for each.')

    def test_host_with_an_older_plugin_is_an_unknown_destination(self):
        self.put('a')
        self.put('b', facts=OLDER_PLUGIN)
        self.assertDrain(
            'unknown', 'Guests of which it is not known whether another host '
            'can run them: 2 of 2. Not compared: capabilities.')
        self.assertEqual({'unknown': ['b']}, self.destinations('a'))

    def test_guests_of_an_older_plugin_have_unknown_destinations(self):
        self.put('a', facts=OLDER_PLUGIN)
        self.put('b')
        self.assertDrain(
            'unknown', 'Guests of which it is not known whether another host '
            'can run them: 2 of 2. Not compared: capabilities.')

    def test_unreachable_host_is_an_unknown_destination(self):
        self.put('a')
        hosts.write(self.directory, 'b', hosts.UNREACHABLE, {})
        self.assertEqual({'unknown': ['b']}, self.destinations('a'))

    def test_value_that_was_not_compared_is_named(self):
        self.put('a', facts=guests(hosts.needs([A, B], secrets=['x'])))
        self.put('b', facts=able(secrets=None, post_copy=None))
        self.assertDrain(
            'unknown', 'Guests of which it is not known whether another host '
            'can run them: 2 of 2. Not compared: post-copy, secret.')

    def test_host_without_guests_can_be_drained(self):
        self.put('a', facts=able())
        self.put('b', facts=OLDER_PLUGIN)
        self.assertDrain('yes')

    def test_single_host_is_compared_with_none(self):
        self.put('a')
        self.assertDrain('unknown', 'The report has no other host.')

    def test_fix_of_the_destination_is_a_part_of_the_match(self):
        """One host has the fix, another one the machine type."""
        self.put('a', hosts.finding('config-drive', A))
        self.put('b', facts=able(**OLD_QEMU))
        self.put('c', facts=able(), plugin=False)
        self.assertDrain(
            'no', 'Guests that no other host can run: 1 of 2.',
            'The destination needs config_drive: 1 of 2 other hosts are known '
            'to have it.')
        self.assertEqual({'no': ['b', 'c']}, self.destinations('a'))

    def test_cost_follows_the_number_of_classes(self):
        for number in range(20):
            self.put(f'a{number}', facts=guests(
                hosts.needs([A]), hosts.needs([B], queues=2)))
            # Nova makes secrets of instances on their host
            self.put(f'b{number}', facts=able(
                queues=None, secrets=[f'{number}']))
        with mock.patch.object(matching, 'compare', autospec=True,
                               return_value=[]) as compared:
            self.judged()
        self.assertEqual(4, compared.call_count)

    def test_invalid_facts_are_an_error_of_the_host(self):
        self.put('a', facts={'capabilities': {'queues': 'many'}})
        self.put('b', facts={'needs': [{'instances': [A], 'needs': {}}]})
        for name in 'ab':
            self.assertEqual('failed', self.judged()[name].state.value)

    def test_placement_is_part_of_the_json(self):
        self.put('a', facts=guests(hosts.needs([A, B])))
        self.put('b', hosts.finding('config-drive', A),
                 facts=able(**OLD_QEMU))
        self.judged()
        found = self.matrix.as_json()
        self.assertEqual([['a'], ['b']],
                         [one['hosts'] for one in found['hosts']])
        self.assertEqual('pc-q35-8.2',
                         found['guests'][0]['needs']['machine']['machine'])
        self.assertEqual({'verdict': 'yes', 'reasons': []},
                         found['matrix'][0][0])
        self.assertEqual({'verdict': 'no', 'reasons': [{
            'kind': 'dest-machine', 'verdict': 'no', 'value': 'pc-q35-8.2',
            'answer': f'not in {hosts.EMULATOR}'}]}, found['matrix'][0][1])
