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

"""The tools for patches to Nova, with a small patch."""

import pathlib
import re
import subprocess
import textwrap

import fixtures
import testtools

from tools.patches import check
from tools.patches import kolla
from tools.patches import note
from tools.patches import passed
from tools.patches import series

NAME = '0001-libvirt-Double-a-number.patch'

#: as git format-patch writes it, with code, a new test and a release note
MAIL = textwrap.dedent("""\
    From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001
    From: Somebody <somebody@example.org>
    Date: Wed, 25 Nov 2026 00:00:00 +0000
    Subject: [PATCH 1/1] libvirt: Double a number whose name is too long for
     one line

    It could not be had twice:
    --- nor thrice

    ---
     nova/virt/libvirt/twice.py | 2 +-
     1 file changed, 1 insertion(+), 1 deletion(-)

    diff --git a/nova/tests/unit/test_twice.py b/nova/tests/unit/test_twice.py
    new file mode 100644
    index 0000000..1234567
    --- /dev/null
    +++ b/nova/tests/unit/test_twice.py
    @@ -0,0 +1 @@
    +--- not a header
    diff --git a/nova/twice.py b/nova/twice.py
    index 1234567..89abcde 100644
    --- a/nova/twice.py
    +++ b/nova/twice.py
    @@ -1,3 +1,3 @@
     def twice(number):
         # of a/nova/twice.py
    -    return number
    +    return 2 * number
    diff --git a/releasenotes/notes/twice.yaml b/releasenotes/notes/twice.yaml
    new file mode 100644
    index 0000000..1234567
    --- /dev/null
    +++ b/releasenotes/notes/twice.yaml
    @@ -0,0 +1 @@
    +---
    --\x20
    2.39.5

    """)

BEFORE = 'def twice(number):\n    # of a/nova/twice.py\n    return number\n'


class SmallSeries(fixtures.Fixture):
    """A directory of patches with one series of one patch."""

    def _setUp(self):
        self.patches = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        directory = self.patches / '2026.2'
        directory.mkdir()
        (directory / NAME).write_text(MAIL)
        (directory / 'series').write_text(f'# in this order\n\n{NAME}\n')
        self.patch, = series.read('2026.2', self.patches)


class PatchesTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.series = self.useFixture(SmallSeries())
        self.root = pathlib.Path(self.useFixture(fixtures.TempDir()).path)

    def install(self, prefix='', text=BEFORE):
        """Install a Nova without tests; return its package."""
        package = self.root / prefix / 'nova'
        package.mkdir(parents=True)
        (package / 'twice.py').write_text(text)
        return package


class TestSeries(PatchesTestCase):

    def test_files_of_a_patch_are_listed(self):
        self.assertEqual(
            ['nova/tests/unit/test_twice.py', 'nova/twice.py',
             'releasenotes/notes/twice.yaml'],
            series.touched(self.series.patch))

    def test_subject_of_a_patch_is_read(self):
        self.assertEqual(
            'libvirt: Double a number whose name is too long for one line',
            series.subject(self.series.patch))

    def test_message_of_a_patch_is_read(self):
        self.assertEqual('It could not be had twice:\n--- nor thrice\n\n',
                         series.message(self.series.patch))

    def test_installed_nova_is_patched(self):
        package = self.install()
        series.patch_installed(
            '2026.2', self.root, patches=self.series.patches)
        self.assertEqual(BEFORE.replace('return', 'return 2 *'),
                         (package / 'twice.py').read_text())
        self.assertEqual(
            '--- not a header\n',
            (package / 'tests' / 'unit' / 'test_twice.py').read_text())
        self.assertEqual(['nova'], [path.name for path in self.root.iterdir()])

    def test_patch_that_does_not_apply_is_refused(self):
        self.install(text=BEFORE.replace('a/nova', 'another'))
        self.assertRaises(
            subprocess.CalledProcessError, series.patch_installed, '2026.2',
            self.root, patches=self.series.patches)

    def test_releases_match_the_constraints(self):
        self.assertEqual('34.0.0', series.release(34))
        self.assertEqual('2026.2', series.of_nova(34))
        self.assertEqual(set(range(29, 35)), set(series.SERIES.values()))


class TestKolla(PatchesTestCase):

    def write(self, **options):
        directory = self.root / 'patches'
        written = kolla.write('2026.2', directory,
                              patches=self.series.patches, **options)
        return directory, written

    def test_patches_for_kolla_apply_at_the_root_of_an_image(self):
        package = self.install(kolla.SITE_PACKAGES)
        directory, written = self.write()
        self.assertEqual([NAME], written)
        self.assertEqual(f'{NAME}\n',
                         (directory / 'nova-base' / 'series').read_text())
        patch = (directory / 'nova-base' / NAME).read_text()
        self.assertTrue(patch.startswith('libvirt: Double a number'))
        self.assertNotIn('releasenotes', patch)
        series.apply(patch, self.root)
        self.assertIn('2 * number', (package / 'twice.py').read_text())

    def test_patches_for_kolla_can_omit_tests(self):
        directory, _ = self.write(image='nova-compute', tests=False)
        patch = (directory / 'nova-compute' / NAME).read_text()
        self.assertNotIn('test_twice', patch)
        self.assertIn('2 * number', patch)


class TestNewTests(testtools.TestCase):

    BEFORE = textwrap.dedent("""
        class TestOne(TestCase):
            def test_same(self):
                pass
            def test_changed(self):
                pass
            def helper(self):
                pass
        """)
    AFTER = textwrap.dedent("""
        class TestOne(TestCase):
            # a comment is no change
            def test_same(self):
                pass
            def test_changed(self):
                assert True
            def helper(self):
                assert True
            def test_added(self):
                pass
        """)

    def test_added_and_changed_tests_are_found(self):
        self.assertEqual({'TestOne.test_changed', 'TestOne.test_added'},
                         check.changed_tests(self.BEFORE, self.AFTER))

    def test_changed_inherited_test_is_found(self):
        both = """
        class _TestOne:
            def test_inherited(self):
                {}
        class TestLocal(TestCase, _TestOne):
            pass
        """
        self.assertEqual({'TestLocal.test_inherited'}, check.changed_tests(*(
            textwrap.dedent(both.format(body))
            for body in ('pass', 'assert True'))))

    def test_tests_of_a_new_module_are_found(self):
        self.assertEqual({'TestOne.test_same', 'TestOne.test_changed'},
                         check.changed_tests('', self.BEFORE))


class TestNewComplaints(testtools.TestCase):
    """Only new complaints of a tool about a file count against a patch."""

    BEFORE = textwrap.dedent("""\
        nova/crypto.py:40:1: error: Library stubs not installed
        nova/virt/driver.py:1:1: error: Need type annotation for "disks"
        """)

    def test_moved_complaint_is_not_new(self):
        self.assertEqual('', check.news(
            self.BEFORE, self.BEFORE.replace(':1:1:', ':20:17:')))

    def test_added_complaint_is_new(self):
        new = 'nova/virt/driver.py:2:1: error: Need type annotation for "a"'
        self.assertEqual(new, check.news(self.BEFORE, self.BEFORE + new))

    def test_repeated_complaint_is_new(self):
        again = 'nova/crypto.py:50:1: error: Library stubs not installed'
        self.assertEqual(again, check.news(self.BEFORE, self.BEFORE + again))


class TestPatchSet(testtools.TestCase):
    """The patch set, as far as it can be checked without Nova."""

    def test_series_file_names_exactly_the_patches(self):
        for name in series.SERIES:
            patches = series.read(name)
            self.assertEqual(
                sorted(path.name for path in patches),
                sorted(path.name for path in (
                    series.PATCHES / name).glob('*.patch')))
            self.assertEqual([path.name for path in patches],
                             sorted(path.name for path in patches))

    def test_each_patch_has_tests_and_a_release_note(self):
        for name in series.SERIES:
            for patch in series.read(name):
                touched = series.touched(patch)
                for where in (series.TESTS, 'releasenotes/notes/'):
                    self.assertTrue(
                        any(path.startswith(where) for path in touched),
                        f'{patch}: nothing in {where}')

    def test_commit_messages_are_wrapped(self):
        """Source: contributor/commit-messages.rst of Nova."""
        for name in series.SERIES:
            for patch in series.read(name):
                lines = [series.subject(patch),
                         *series.message(patch).splitlines()]
                self.assertEqual(
                    [], [line for line in lines if len(line) > 72
                         and not re.match(r'\S+://|[A-Z][\w-]+: ', line)],
                    patch)


class TestReleaseNote(testtools.TestCase):

    PATH = 'releasenotes/notes/twice-0123456789abcdef.yaml'
    TEXT = 'fixes:\n  - |\n    A number can be had twice.\n'

    def complaints(self, path=PATH, text=TEXT):
        return '\n'.join(note.complaints(path, text))

    def test_valid_release_note_has_no_complaints(self):
        self.assertEqual('', self.complaints())

    def test_release_note_without_a_unique_name_is_found(self):
        self.assertIn('not named', self.complaints(
            path='releasenotes/notes/twice.yaml'))

    def test_release_note_that_is_no_yaml_is_found(self):
        self.assertIn('mapping values', self.complaints(text='a: b: c'))

    def test_release_note_without_sections_is_found(self):
        self.assertIn('no sections', self.complaints(text='A text.'))

    def test_release_note_with_an_unknown_section_is_found(self):
        self.assertIn('no section fixed', self.complaints(
            text=self.TEXT.replace('fixes', 'fixed')))

    def test_release_note_with_a_mapping_as_text_is_found(self):
        self.assertIn('no list of texts', self.complaints(
            text='fixes:\n  - libvirt: A number can be had twice.\n'))


class TestPassedTests(testtools.TestCase):

    TREE = '0123456789012345678901234567890123456789'
    GOOD = {'nova.tests.test_one': {'nova.tests.test_one.One.test': 'success'}}
    BAD = {'nova.tests.test_two': {'nova.tests.test_two.Two.test_a': 'success',
                                   'nova.tests.test_two.Two.test_b': 'fail'}}

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path, 'passed')

    def passed(self, environment='nova==34.0.0'):
        return passed.Passed(self.directory, environment)

    def test_failed_tests_run_again(self):
        self.passed().add(self.TREE, {**self.GOOD, **self.BAD})
        self.assertEqual(self.GOOD, self.passed().read(self.TREE))

    def test_module_without_results_runs_again(self):
        self.passed().add(self.TREE, {'nova.tests.test_three': {}})
        self.assertEqual({}, self.passed().read(self.TREE))

    def test_tests_run_again_for_another_tree(self):
        self.passed().add(self.TREE, self.GOOD)
        self.assertEqual({}, self.passed().read(self.TREE[::-1]))

    def test_tests_run_again_in_another_environment(self):
        self.passed().add(self.TREE, self.GOOD)
        self.assertEqual({}, self.passed('nova==33.0.0').read(self.TREE))
