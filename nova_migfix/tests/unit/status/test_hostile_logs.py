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
"""``explain`` with logs that a user or a broken host fills."""

import os
import re
import tracemalloc

import ddt
import fixtures
import hypothesis
from hypothesis import strategies
import testtools

from nova_migfix.status import attempt
from nova_migfix.status import daemon_logs
from nova_migfix.status import explain
from nova_migfix.status import faults
from nova_migfix.tests import backtracking
from nova_migfix.tests.unit.status import base
from nova_migfix.tests.unit.status import test_corpus

BEGIN = (f'2026-11-25 10:44:1{{}}.412 7101 {{}} nova.virt.libvirt.driver '
         f'[None {test_corpus.REQUEST} - - - -] [instance: '
         f'{test_corpus.UUID}] ')
FAILURE = BEGIN.format(5, 'ERROR') + 'Live Migration failure: stars\n'
STARTS = f'''\
2026-11-25 10:44:11.101+0000: starting up libvirt version: 9.0.0
/usr/bin/qemu-system-x86_64 \\
-uuid {test_corpus.UUID} \\
'''

#: lines of the corpus that show a fault, without the beginning of a record
EVIDENCE = sorted({
    re.sub(r'^[-\d]{10}[T ][^\]]*\] (?:\[instance: \S+ )?', '', line)
    for text in test_corpus.CASES.values() for line in text.splitlines()
    if any(re.search(pattern, line)
           for fault in faults.FAULTS for pattern in fault.patterns)})

#: a text of a user, in the logs
QUOTED = {
    'name, in XML': ('nova-compute.log', lambda text: (
        BEGIN.format(4, 'ERROR') + 'Error defining a guest with XML: <domain '
        f'type="kvm">\n  <metadata>\n    <nova:name>{text}</nova:name>\n')),
    'name, in XML of one line': ('nova-compute.log', lambda text: (
        BEGIN.format(4, 'ERROR') + f'XML: <domain><name>{text}</name>\n')),
    'name, in a representation': ('nova-compute.log', lambda text: (
        BEGIN.format(4, 'WARNING') + f'Instance(display_name={text!r})\n')),
    'name, at DEBUG': ('nova-compute.log', lambda text: (
        BEGIN.format(4, 'DEBUG') + f'{text}\n')),
    'kernel arguments': ('qemu.log', lambda text: (
        STARTS + '-append \'' + text.replace('\'', '\'\\\'\'')
        + '\' \\\n-msg timestamp=on\n')),
    'kernel arguments after a new line': ('qemu.log', lambda text: (
        STARTS + '-append \'\n' + text.replace('\'', '\'\\\'\'')
        + '\' \\\n-msg timestamp=on\n')),
}


@ddt.ddt
class TestTextsOfUsers(test_corpus.CorpusTestCase):

    def assertUnknown(self, kind, *texts):
        name, quote = QUOTED[kind]
        (self.directory / 'nova-compute.log').write_text(FAILURE)
        with open(self.directory / name, 'a') as log:
            log.writelines(map(quote, texts))
        self.assertEqual(('failed', 'unknown'), self.explain()[1:6:4])

    @ddt.data(*QUOTED)
    def test_name_like_the_lines_of_all_faults_gives_no_diagnosis(self, kind):
        self.assertUnknown(kind, *EVIDENCE)

    @ddt.data(*QUOTED)
    def test_any_name_gives_no_diagnosis(self, kind):
        texts = strategies.sampled_from(EVIDENCE)

        @hypothesis.settings(max_examples=30)
        @hypothesis.given(
            texts, strategies.text(strategies.characters(codec='utf-8',
                                   exclude_characters='\r\n'), max_size=9),
            texts)
        def check(first, between, last):
            self.assertUnknown(kind, f'{first}{between}{last}')
        check()

    def test_queues_in_a_name_give_no_diagnosis(self):
        for kind in QUOTED:
            self.assertUnknown(kind, 'runs with 1 queue on the vNIC')

    def test_name_like_a_migration_does_not_choose_the_request(self):
        """The server of another user is created later."""
        text = f'live migration of {test_corpus.UUID} has failed'
        (self.directory / 'nova-compute.log').write_text(FAILURE + ''.join(
            f'2026-11-25 10:44:19.412 7101 {level} nova.x [None req-'
            f'{base.uuid(7)} - - - -] [instance: {base.uuid(8)}] '
            f'Instance(display_name={text!r})\n'
            for level in ('DEBUG', 'WARNING')))
        self.assertEqual(test_corpus.REQUEST, self.explain('').request)

    def test_uuid_of_another_guest_in_kernel_arguments_does_not_count(self):
        (self.directory / 'nova-compute.log').write_text(FAILURE)
        (self.directory / 'qemu.log').write_text(
            STARTS.replace('0000', '1111', 1)
            + f'-append \'\n-uuid {test_corpus.UUID} \\\n\' \\\n'
            '2026-11-25T10:44:12.1Z qemu-kvm: unsupported machine type\n')
        self.assertEqual('unknown', self.explain().fault)


@ddt.ddt
class TestLogs(test_corpus.CorpusTestCase):

    def test_log_of_nova_compute_may_be_a_pipe(self):
        """Such as the output of zcat in the shell's <()."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        os.write(writing, FAILURE.encode())
        os.close(writing)
        self.useFixture(fixtures.MockPatchObject(
            explain, '_nova_log', lambda: f'/dev/fd/{reading}'))
        self.assertEqual((test_corpus.REQUEST, 'failed'),
                         self.explain('')[2:0:-1])

    @ddt.data('2026-99-99 10:44:12', '0000-00-00 00:00:00',
              '0001-01-01 00:00:00', '2026-02-30T24:61:61')
    def test_impossible_time_is_none(self, time):
        for name, line in (
                ('nova-compute.log', f'{time}.412 1 ERROR nova.x [None '
                                     f'{test_corpus.REQUEST} - -] [instance: '
                                     f'{test_corpus.UUID}] live migration'),
                ('qemu.log', f'{time}.101Z qemu-kvm: stars'),
                ('libvirtd.log', f'{time}.101+0000: 1: error : stars')):
            with open(self.directory / name, 'a') as log:
                log.write(f'{line}\n')
        self.assertEqual('unknown', self.explain().fault)

    # a log of a size in bytes
    GROWING = {
        'nova, DEBUG': lambda size: FAILURE + (
            BEGIN.format(4, 'DEBUG') + 'x' * 300 + '\n') * (size // 500),
        'nova, ERROR': lambda size: FAILURE * (size // len(FAILURE)),
        'nova, one record': lambda size: FAILURE + ('x' * 499 + '\n') * (
            size // 500),
        'nova, one line': lambda size: FAILURE + 'x' * size,
        'nova, requests': lambda size: ''.join(
            f'2026-11-25 10:44:10.412 1 ERROR nova.x [None req-{number:036x} '
            f'- -] {"x" * 300}\n' for number in range(size // 400)) + FAILURE,
        'qemu': lambda size: STARTS + ('2026-11-25T10:44:12.1Z qemu-kvm: '
                                       + 'x' * 460 + '\n') * (size // 500),
        'qemu, command': lambda size: STARTS + ('x' * 497 + ' \\\n') * (
            size // 500),
        'libvirt': lambda size: ('2026-11-25 10:44:15.101+0000: 6: error : '
                                 + 'x' * 460 + '\n') * (size // 500),
    }

    def peak(self, kind, size):
        """Return the bytes that are needed to read a log."""
        path = self.directory / 'log'
        path.write_text(self.GROWING[kind](size))
        found = attempt.Attempt(test_corpus.REQUEST, '2026-11-25 10:44:10',
                                '2026-11-25 10:44:19')
        tracemalloc.start()
        try:
            if kind.startswith('nova'):
                attempt.find(path, test_corpus.UUID)
            elif kind.startswith('qemu'):
                daemon_logs.qemu_file(str(path), test_corpus.UUID, found)
            else:
                daemon_logs.libvirt([path], found)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    @ddt.data(*GROWING)
    def test_memory_does_not_grow_with_the_log(self, kind):
        self.assertLess(self.peak(kind, 3 << 20),
                        1.2 * self.peak(kind, 1 << 20) + (1 << 19))


#: name: pattern, of the tables and of what finds the lines
PATTERNS = {
    **{f'{fault.name} {number}': pattern for fault in faults.FAULTS
       for number, pattern in enumerate(fault.patterns)},
    **{f'{module.__name__} {name}': value.pattern
       for module in (attempt, daemon_logs)
       for name, value in vars(module).items()
       if isinstance(value, re.Pattern)}}


@ddt.ddt
class TestPatterns(testtools.TestCase):

    def growth(self, pattern, before, piece, after, length=300):
        """Return by what the steps grow if a text doubles its length."""
        search = backtracking.Search(pattern, most=20)
        number = length // len(piece) + 1
        steps = []
        for repeated in (number, 2 * number):
            search(before + piece * repeated + after)
            # a match ends the search, and has less
            steps.append(search.steps)
        return steps[1] / steps[0]

    @ddt.data(*PATTERNS)
    def test_steps_grow_linearly_with_the_line(self, name):
        """A part of a text that matches is repeated, before the rest."""
        pattern = PATTERNS[name]
        texts = strategies.from_regex(
            pattern, alphabet=strategies.characters(codec='ascii'))

        # to shrink a costly search takes minutes
        @hypothesis.settings(
            max_examples=25, phases=[hypothesis.Phase.generate])
        @hypothesis.given(texts, strategies.integers(0, 200),
                          strategies.integers(1, 200), strategies.booleans())
        def check(text, begin, size, is_cut):
            begin %= len(text) or 1
            piece = text[begin:begin + size] or 'x'
            after = '' if is_cut else text[begin + size:][:-1]
            self.assertLess(
                self.growth(pattern, text[:begin], piece, after), 2.5)
        check()

    @ddt.data((r'mkfs\S*.* -(?:L|n)', '', 'mkfs'), (r'\d+x', '', '1'),
              (r'^(?:a|aa)+$', '', 'a'), (r'a.*b.*c', '', 'ab'))
    @ddt.unpack
    def test_steps_of_other_patterns_grow_faster(self, pattern, before, piece):
        length = 12 if pattern.startswith('^') else 60
        self.assertGreater(self.growth(pattern, before, piece, '!', length), 3)

    @ddt.data(*PATTERNS)
    def test_counted_search_finds_what_re_finds(self, name):
        search = backtracking.Search(PATTERNS[name])
        for line in EVIDENCE:
            found = re.search(PATTERNS[name], line)
            self.assertEqual(found and found.span(), search(line), line)
