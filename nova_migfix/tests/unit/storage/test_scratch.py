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

import os
import pathlib
import shutil
import tempfile
import time
from unittest import mock

import eventlet
from eventlet import patcher
import fixtures
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from oslo_config import cfg
from oslo_config import fixture as config_fixture
import testtools

from nova_migfix import nova_release
from nova_migfix.storage import scratch
from nova_migfix.tests import fixtures as migfix_fixtures


class TestScratch(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.config = self.useFixture(config_fixture.Config(cfg.CONF))
        self.config.config(host='compute1.example')

    def killed(self):
        """Leave a directory behind as a killed process does."""
        with mock.patch.object(scratch, '_RUN_ID', 'killed'), \
                scratch.directory(str(self.instances.base / 'file')) as path:
            kept = f'{path}-kept'
            os.mkdir(kept)
        return os.path.exists(kept), kept

    def replace(self, program, script):
        """Replace a program by a shell script; return the script's log."""
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        log, path = directory / 'log', directory / program
        path.write_text(f'#!/bin/sh\necho "$*" >>{log}\n'
                        + script.format(real=shutil.which(program)) + '\n')
        path.chmod(0o755)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', f'{directory}:{os.environ["PATH"]}'))
        return log

    def test_directory_is_beside_the_file_and_removed_afterwards(self):
        with scratch.directory(str(self.instances.base / 'file')) as path:
            self.assertEqual(str(self.instances.base), os.path.dirname(path))
            (self.instances.base / 'other').touch()
        self.assertEqual(['other'], os.listdir(self.instances.base))

    def test_directory_name_is_ignored_by_the_image_cache(self):
        self.config.config(host='a_host_with_a_name_of_more_than_40_letters')
        with scratch.directory(str(self.instances.base / 'file')) as path:
            name = os.path.basename(path)
            self.assertLess(len(name), 40)
            self.assertNotIn(name.split('_')[0], ('ephemeral', 'swap'))

    def test_directory_of_a_killed_process_is_removed(self):
        existed, path = self.killed()
        self.assertTrue(existed)
        scratch.sweep()
        self.assertFalse(os.path.exists(path))

    def test_directory_that_this_process_uses_stays(self):
        with scratch.directory(str(self.instances.base / 'file')) as path:
            scratch.sweep()
            self.assertTrue(os.path.exists(path))

    def test_directory_of_another_running_process_stays(self):
        with mock.patch.object(scratch, '_RUN_ID', 'another'), \
                scratch.directory(str(self.instances.base / 'file')) as path:
            scratch.sweep()
            self.assertTrue(os.path.exists(path))
        self.assertEqual([], os.listdir(self.instances.base))

    def test_directory_removed_before_its_lock_is_made_again(self):
        make, made = tempfile.mkdtemp, []

        def make_and_lose(*args, **kwargs):
            made.append(make(*args, **kwargs))
            if len(made) == 1:
                os.rmdir(made[0])
            return made[-1]
        with mock.patch.object(tempfile, 'mkdtemp', make_and_lose), \
                scratch.directory(str(self.instances.base / 'file')) as path:
            self.assertEqual(made[1], path)
            self.assertTrue(os.path.exists(path))

    def test_directory_that_cannot_be_removed_is_logged(self):
        _existed, path = self.killed()
        log = self.useFixture(fixtures.FakeLogger('nova_migfix'))
        self.replace('rm', 'echo "Read-only file system" >&2; exit 1')
        scratch.sweep()
        self.assertTrue(os.path.exists(path))
        self.assertIn(f'{path}, which was left', log.output)
        self.assertIn('Read-only file system', log.output)

    def test_directory_is_removed_by_another_process(self):
        """Freeing many GiB blocks all greenthreads of eventlet."""
        log = self.replace('rm', 'exec {real} "$@"')
        with scratch.directory(str(self.instances.base / 'file')) as path:
            (pathlib.Path(path) / 'raw').touch()
        self.assertEqual(f'-rf -- {path}\n', log.read_text())
        self.assertFalse(os.path.exists(path))

    def test_archive_that_disappears_during_a_sweep_is_ignored(self):
        (self.instances.base / scratch.archive()).touch()
        with mock.patch.object(
                os.path, 'getmtime', side_effect=FileNotFoundError):
            scratch.sweep()

    def test_directories_of_other_hosts_on_shared_storage_stay(self):
        _existed, path = self.killed()
        self.config.config(host='compute2.example')
        scratch.sweep()
        self.assertTrue(os.path.exists(path))

    def test_old_archive_is_removed(self):
        old, new = (self.instances.base / scratch.archive() for _ in '12')
        for path, age in ((old, 2), (new, 0)):
            path.touch()
            then = time.time() - age * 24 * 3600
            os.utime(path, (then, then))
        scratch.sweep()
        self.assertEqual([new.name], os.listdir(self.instances.base))


class TestWriteThrough(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.path = self.useFixture(fixtures.TempDir()).join('disk')

    def flush_log(self):
        """Replace sync by a script that logs its arguments; return the log."""
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        log, sync = directory / 'log', directory / 'sync'
        log.touch()
        sync.write_text(f'#!/bin/sh\necho "$*" >>{log}\n'
                        f'exec {shutil.which("sync")} "$@"\n')
        sync.chmod(0o755)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', f'{directory}:{os.environ["PATH"]}'))
        return log

    def test_file_is_flushed_alone_by_another_process(self):
        pathlib.Path(self.path).write_text('content')
        log = self.flush_log()
        with mock.patch.object(os, 'fsync', autospec=True) as fsync:
            scratch.write_through(self.path)
        self.assertEqual(f'-- {self.path}\n', log.read_text())
        fsync.assert_not_called()

    def test_flush_of_a_missing_file_is_an_error(self):
        error = self.assertRaises(OSError, scratch.write_through, self.path)
        self.assertIn('No such file', str(error))

    @settings(max_examples=20)
    @given(st.text(st.characters(
        exclude_characters='/', exclude_categories=['Cs'], min_codepoint=1),
        min_size=1, max_size=20).filter(
            lambda name: name not in ('.', '..')))
    def test_file_with_any_name_is_flushed(self, name):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, name)
            self.assertRaises(OSError, scratch.write_through, path)
            pathlib.Path(path).touch()
            scratch.write_through(path)


@testtools.skipUnless(
    nova_release.major() < 34 and patcher.is_monkey_patched('os'),
    'nova-compute of this release has threads')
class TestWriteThroughUnderEventlet(testtools.TestCase):

    # Bytes of dirty pages, and the seconds added to a flush: not every disk is
    # slow enough.
    DIRTY = 256 << 20
    DELAY = 1

    def setUp(self):
        super().setUp()
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.path = directory / 'disk'
        self.delay(directory)
        self.ticks = 0
        ticker = eventlet.spawn(self.tick)
        self.addCleanup(ticker.kill)
        eventlet.sleep(0)

    def delay(self, directory):
        """Delay each flush, by sync or by fsync."""
        sync = directory / 'sync'
        sync.write_text(f'#!/bin/sh\nsleep {self.DELAY}\n'
                        f'exec {shutil.which("sync")} "$@"\n')
        sync.chmod(0o755)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', f'{directory}:{os.environ["PATH"]}'))
        fsync, sleep = os.fsync, patcher.original('time').sleep

        def slow_fsync(descriptor):
            sleep(self.DELAY)
            fsync(descriptor)
        self.useFixture(fixtures.MockPatchObject(os, 'fsync', slow_fsync))

    def tick(self):
        while True:
            self.ticks += 1
            eventlet.sleep(0.01)

    def test_greenthreads_run_every_100_ms_during_a_flush(self):
        block = os.urandom(1 << 20)
        with self.path.open('wb') as file:
            for _ in range(self.DIRTY >> 20):
                file.write(block)
        begin, before = time.monotonic(), self.ticks
        scratch.write_through(str(self.path))
        seconds = time.monotonic() - begin
        self.assertGreaterEqual(seconds, self.DELAY)
        self.assertGreaterEqual(self.ticks - before, int(seconds / 0.1))


class TestPut(testtools.TestCase):
    """A file replaces another file."""

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.made, self.path = self.directory / 'made', self.directory / 'path'
        self.made.write_text('new')

    def put(self):
        scratch.replace(str(self.made), str(self.path))
        self.assertEqual('new', self.path.read_text())

    def test_replaced_file_stays_under_the_temporary_name(self):
        self.path.write_text('old')
        self.put()
        self.assertEqual('old', self.made.read_text())

    def test_put_without_an_old_file_moves_the_new_one(self):
        self.put()
        self.assertFalse(self.made.exists())

    def test_put_works_without_exchange_of_names(self):
        self.path.write_text('old')
        with mock.patch.object(scratch, 'exchange', autospec=True,
                               side_effect=OSError(22, 'Invalid argument')):
            self.put()
        self.assertFalse(self.made.exists())

    def test_exchange_without_an_old_file_changes_nothing(self):
        error = self.assertRaises(
            FileNotFoundError, scratch.exchange, str(self.made),
            str(self.path))
        self.assertEqual(str(self.made), error.filename)
        self.assertTrue(self.made.exists())
