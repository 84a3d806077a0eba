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
"""``heal`` completes old disks; with real files."""

import contextlib
import os
import pathlib
import pwd
import signal
import stat
import subprocess
import sys
from unittest import mock

import ddt
import fixtures
import nova.privsep.path
from nova.virt.libvirt import guest as libvirt_guest
from oslo_concurrency import processutils
from oslo_utils.fixture import uuidsentinel as uuids
import testtools

from nova_migfix.status import heal
from nova_migfix.status.heal import display
from nova_migfix.status.heal import plan
from nova_migfix.status import hypervisor
from nova_migfix.status import privileges
from nova_migfix.storage import completion
from nova_migfix.storage import image_file
from nova_migfix.storage import scratch
from nova_migfix.tests import fixtures as migfix_fixtures
from nova_migfix.tests.unit.status import base

GIB = 1 << 30


class HealTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.command = self.useFixture(base.Command(
            '[DEFAULT]\nhost = compute1\n'
            f'instances_path = {self.instances.path}\n'))
        self.base = self.instances.make_base()
        self.guests = {}
        self.useFixture(fixtures.MockPatchObject(
            hypervisor, 'guests',
            lambda: contextlib.nullcontext(self.guests)))

    def add(self, uuid, active=False, name='disk.eph0'):
        """Add a guest with an old disk; return the disk's path."""
        path = self.instances.make_disk(
            uuid, name, self.base, written=b'\x07' * 65536)
        guest = self.guests[uuid] = mock.create_autospec(
            libvirt_guest.Guest, instance=True)
        guest._domain = mock.Mock(spec=['hasManagedSaveImage'])
        guest._domain.hasManagedSaveImage.return_value = 0
        guest.is_active.return_value = active
        guest.get_disk.side_effect = {str(path): 'vdb'}.get
        guest.get_job_info.return_value.type = 0    # VIR_DOMAIN_JOB_NONE
        guest.get_all_disks.return_value = [mock.Mock(target_dev='vdb')]
        self.device = guest.get_block_device.return_value
        self.device.get_job_info.return_value = None
        self.device.is_job_complete.return_value = True
        self.device.rebase.side_effect = lambda _base: image_file.flatten(
            str(path), 'qcow2', str(path))
        return path

    def run_heal(self, *arguments, yes=True):
        return self.command.run(
            'heal', *(['--yes'] if yes else []), *arguments)

    def image(self, path):
        """Return a raw image with the content of a disk."""
        copy = self.instances.path / 'image'
        processutils.execute('qemu-img', 'convert', '-O', 'raw', path, copy)
        return copy

    def assert_complete(self, path, image):
        self.assertEqual('', image_file.qcow2_header(str(path)).backing)
        processutils.execute('qemu-img', 'compare', image, path)
        self.assert_no_scratch(path)

    def assert_untouched(self, path, before):
        self.assertEqual(plan._state(before), plan._state(path.stat()))
        self.assertEqual(
            str(self.base), image_file.qcow2_header(str(path)).backing)
        self.assert_no_scratch(path)

    def assert_no_scratch(self, path):
        self.assertEqual([], list(path.parent.glob('migfix-*')))


class TestTable(HealTestCase):

    def rows(self, *arguments):
        out = self.run_heal('--dry-run', *arguments, yes=False).out
        return [[cell.strip() for cell in line.split('|')[1:-1]]
                for line in out.splitlines() if line.startswith('|')]

    def test_table_shows_a_running_and_a_stopped_guest(self):
        running = self.add(uuids.running, active=True)
        stopped = self.add(uuids.stopped)
        with mock.patch.object(completion, 'free_space', autospec=True,
                               return_value=512 * GIB):
            titles, *rows = self.rows()
        self.assertEqual([title for title, _ in display.COLUMNS], titles)
        self.assertEqual(sorted([
            [uuids.running, running.name, '1.000', self.base.name,
             f'{completion.allocated(str(self.base)) / GIB:.3f}', '512.000',
             'block pull'],
            [uuids.stopped, stopped.name, '1.000', self.base.name,
             f'{image_file.flat_size(str(stopped)) / GIB:.3f}', '512.000',
             'convert']]), rows)

    def test_cost_of_a_missing_base_is_unknown(self):
        self.add(uuids.running, active=True)
        self.base.unlink()
        _titles, row = self.rows()
        self.assertEqual(['?', 'block pull'], [row[4], row[6]])

    def test_table_shows_only_disks_of_the_named_instances(self):
        self.add(uuids.running, active=True)
        self.add(uuids.stopped)
        _titles, row = self.rows('--instance', uuids.stopped)
        self.assertEqual(uuids.stopped, row[0])

    def test_sum_counts_disks_that_can_be_completed(self):
        self.add(uuids.running, active=True)
        self.add(uuids.stopped)
        del self.guests[uuids.stopped]
        written = completion.allocated(str(self.base)) / GIB
        self.assertIn(
            f'1 of 2 disks can be completed now, with about {written:.3f} '
            'GiB written', self.run_heal('--dry-run').out)

    def test_disks_that_cannot_be_read_are_named_on_standard_error(self):
        path = self.add(uuids.stopped)
        (path.parent / 'disk.info').write_text('[]')
        ran = self.run_heal('--dry-run')
        self.assertIn(f'The disks of {uuids.stopped} cannot be read', ran.err)


class TestConsent(HealTestCase):

    def setUp(self):
        super().setUp()
        self.path = self.add(uuids.instance)
        self.before = self.path.stat()

    def answer(self, answer):
        self.useFixture(fixtures.MockPatchObject(
            sys, 'stdin', mock.Mock(isatty=lambda: True)))
        self.useFixture(fixtures.MockPatch(
            'builtins.input', return_value=answer))
        return self.run_heal(yes=False).code

    def test_dry_run_changes_no_disk(self):
        ran = self.run_heal('--dry-run')
        self.assertEqual(heal.LEFT, ran.code)
        self.assert_untouched(self.path, self.before)

    def test_answer_no_leaves_the_disk(self):
        self.assertEqual(heal.LEFT, self.answer(''))
        self.assert_untouched(self.path, self.before)

    def test_answer_yes_completes_the_disk(self):
        image = self.image(self.path)
        self.assertEqual(heal.DONE, self.answer('y'))
        self.assert_complete(self.path, image)

    def test_yes_option_is_required_without_a_terminal(self):
        self.useFixture(fixtures.MockPatchObject(
            sys, 'stdin', mock.Mock(isatty=lambda: False)))
        ran = self.run_heal(yes=False)
        self.assertEqual(255, ran.code)
        self.assertIn('use --yes', ran.err)
        self.assert_untouched(self.path, self.before)

    def test_unknown_instance_is_an_error(self):
        ran = self.run_heal('--instance', uuids.unknown)
        self.assertEqual(255, ran.code)
        self.assertIn(uuids.unknown, ran.err)


class TestRunningGuest(HealTestCase):

    def setUp(self):
        super().setUp()
        self.path = self.add(uuids.running, active=True)

    def test_disk_is_pulled_with_bounded_bandwidth(self):
        image = self.image(self.path)
        ran = self.run_heal()
        self.assertEqual(heal.DONE, ran.code, ran.err)
        self.assertEqual(100, self.device.REBASE_DEFAULT_BANDWIDTH)
        self.assert_complete(self.path, image)
        title = f'{uuids.running} disk.eph0'
        self.assertRegex(
            ran.out, rf'{title}: block pull, about 0\.\d+ GiB\n'
            rf'{title}: complete\n')

    def test_bandwidth_option_bounds_the_pull(self):
        self.run_heal('--bandwidth', '0')
        self.assertEqual(0, self.device.REBASE_DEFAULT_BANDWIDTH)

    def test_next_disk_follows_a_failed_pull(self):
        self.device.rebase.side_effect = OSError('libvirt is gone')
        stopped = self.add(uuids.stopped)
        image = self.image(stopped)
        ran = self.run_heal()
        self.assertEqual(heal.FAILED, ran.code)
        self.assertIn('not completed: libvirt is gone', ran.out)
        self.assert_complete(stopped, image)

    def test_disk_that_nova_compute_completes_is_not_touched(self):
        before = self.path.stat()
        lock = self.path.with_name('ephemeral.disk.eph0.lock')
        with scratch.locked(str(lock)):
            ran = self.run_heal()
        self.assertEqual(heal.FAILED, ran.code)
        self.assertIn('another process is completing the disk', ran.out)
        self.assert_untouched(self.path, before)

    def test_block_copy_of_a_killed_process_is_aborted(self):
        image = self.image(self.path)
        copy = self.path.with_name('ephemeral.disk.eph0')
        copy.touch()
        guest = self.guests[uuids.running]
        guest.get_xml_desc.return_value = (
            f'<domain><devices><disk><source file="{self.path}"/><mirror>'
            f'<source file="{copy}"/></mirror></disk></devices></domain>')
        guest.get_all_disks.return_value = [mock.Mock(
            target_dev='vdb', source_path=str(self.path))]
        self.device.get_job_info.return_value = mock.Mock(cur=1, end=1)
        self.device.abort_job.side_effect = lambda: setattr(
            self.device.get_job_info, 'return_value', None)
        ran = self.run_heal()
        self.assertEqual(heal.DONE, ran.code, ran.out)
        self.assert_complete(self.path, image)
        self.assertFalse(copy.exists())

    def test_second_run_finds_no_disks(self):
        self.run_heal()
        ran = self.run_heal()
        self.assertEqual(heal.DONE, ran.code)
        self.assertEqual(
            'No disk needs a backing file that Nova made.\n', ran.out)


@ddt.ddt
class TestSkippedDisk(HealTestCase):

    def assert_skipped(self, path, reason):
        before = path.stat()
        ran = self.run_heal()
        self.assertEqual(heal.LEFT, ran.code, ran.err)
        self.assertIn(f'skipped: {reason}', ' '.join(
            word for line in ran.out.splitlines()
            for word in line.rpartition('|')[0].rpartition('|')[2].split()))
        self.device.rebase.assert_not_called()
        self.assert_untouched(path, before)

    # bounded, unbounded; completed: the type for a guest that arrives
    @ddt.data(1, 2, 3)
    def test_guest_with_a_domain_job_is_skipped(self, job):
        path = self.add(uuids.instance, active=True)
        self.guests[uuids.instance].get_job_info.return_value.type = job
        self.assert_skipped(path, 'the guest is being migrated or saved')

    def test_guest_with_a_block_job_is_skipped(self):
        path = self.add(uuids.instance, active=True)
        self.device.get_job_info.return_value = mock.Mock()
        self.assert_skipped(path, 'a block job on vdb is running')

    def test_rescued_guest_is_skipped(self):
        path = self.add(uuids.instance, active=True)
        self.guests[uuids.instance].get_disk.side_effect = {}.get
        self.assert_skipped(path, 'the running guest does not have the disk')

    @ddt.data(True, False)
    def test_resized_instance_is_skipped(self, active):
        path = self.add(uuids.instance, active)
        (self.instances.path / f'{uuids.instance}_resize').mkdir()
        self.assert_skipped(path, 'the instance is being resized or migrated')

    def test_directory_of_a_resized_instance_is_skipped(self):
        path = self.add(f'{uuids.instance}_resize')
        self.assert_skipped(path, 'the instance is being resized or migrated')

    def test_instance_of_another_host_is_skipped(self):
        path = self.add(uuids.instance)
        del self.guests[uuids.instance]
        self.assert_skipped(path, 'libvirt has no such domain on this host')

    def test_suspended_guest_is_skipped(self):
        path = self.add(uuids.instance)
        domain = self.guests[uuids.instance]._domain
        domain.hasManagedSaveImage.return_value = 1
        self.assert_skipped(path, 'the guest is suspended')

    def test_stopped_guest_defined_with_a_copy_is_skipped(self):
        path = self.add(uuids.instance)
        self.guests[uuids.instance].get_disk.side_effect = None
        self.assert_skipped(path, 'the guest must be started first: its')

    def test_stopped_guest_without_its_base_is_skipped(self):
        path = self.add(uuids.instance)
        self.base.unlink()
        self.assert_skipped(path, 'the backing file is missing and the guest')

    def test_stopped_guest_with_an_open_disk_is_skipped(self):
        path = self.add(uuids.instance)
        holder = subprocess.Popen(
            ['qemu-io', path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.addCleanup(holder.communicate)
        holder.stdout.read(len('qemu-io> '))
        self.assert_skipped(path, 'a process has the disk open')

    def test_disk_without_enough_space_is_skipped(self):
        path = self.add(uuids.instance)
        with mock.patch.object(completion, 'free_space', autospec=True,
                               return_value=1 << 20):
            self.assert_skipped(path, 'there is not enough space')


class TestStoppedGuest(HealTestCase):

    def setUp(self):
        super().setUp()
        self.path = self.add(uuids.stopped)
        self.guest = self.guests[uuids.stopped]
        self.before = self.path.stat()

    def during_the_copy(self, happens):
        copy = image_file.copy

        def copied(*args, **kwargs):
            copy(*args, **kwargs)
            happens()
        self.useFixture(fixtures.MockPatchObject(image_file, 'copy', copied))

    def test_disk_is_replaced_with_owner_and_mode(self):
        self.path.chmod(0o640)
        os.chown(self.path, *self.another_owner())
        before, image = self.path.stat(), self.image(self.path)
        ran = self.run_heal()
        self.assertEqual(heal.DONE, ran.code, ran.out)
        after = self.path.stat()
        self.assertNotEqual(before.st_ino, after.st_ino)
        self.assertEqual(
            (before.st_uid, before.st_gid, 0o640),
            (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)))
        self.assert_complete(self.path, image)

    def another_owner(self):
        if os.geteuid() == 0:
            return 64055, 64055
        return -1, os.getgroups()[-1]

    def test_privsep_sets_the_owner_if_this_user_cannot(self):
        acquire, chown = (self.useFixture(fixtures.MockPatchObject(
            module, name, autospec=True)).mock for module, name in (
                (privileges, 'acquire'), (nova.privsep.path, 'chown')))
        with mock.patch.object(os, 'chown', autospec=True,
                               side_effect=PermissionError):
            ran = self.run_heal()
        self.assertEqual(heal.DONE, ran.code, ran.out)
        acquire.assert_called_once_with()
        chown.assert_called_once_with(
            mock.ANY, self.before.st_uid, self.before.st_gid)

    def test_bandwidth_option_bounds_the_copy(self):
        with mock.patch.object(image_file, 'copy', autospec=True,
                               side_effect=OSError) as copy:
            self.run_heal('--bandwidth', '7')
            self.run_heal('--bandwidth', '0')
        self.assertEqual([('-U', '-r', '7M'), ('-U',)],
                         [call.args[3:] for call in copy.call_args_list])

    def test_guest_started_during_the_copy_keeps_its_disk(self):
        self.during_the_copy(
            lambda: setattr(self.guest.is_active, 'return_value', True))
        ran = self.run_heal()
        self.assertEqual(heal.LEFT, ran.code)
        self.assertIn('skipped: the guest has been started', ran.out)
        self.assert_untouched(self.path, self.before)

    def test_disk_changed_during_the_copy_stays(self):
        self.during_the_copy(lambda: os.utime(self.path))
        ran = self.run_heal()
        self.assertIn('skipped: the disk changed in the meantime', ran.out)
        self.assertEqual(self.before.st_ino, self.path.stat().st_ino)

    def test_resize_during_the_copy_keeps_the_disk(self):
        self.during_the_copy((
            self.instances.path / f'{uuids.stopped}_resize').mkdir)
        ran = self.run_heal()
        self.assertEqual(heal.LEFT, ran.code)
        self.assert_untouched(self.path, self.before)

    def test_guest_started_before_its_turn_is_pulled(self):
        image = self.image(self.path)
        self.guest.is_active.side_effect = [False, False, True]
        ran = self.run_heal()
        self.assertEqual(heal.DONE, ran.code, ran.out)
        self.device.rebase.assert_called_once_with(None)
        self.assert_complete(self.path, image)

    def test_copy_does_not_hold_up_a_start(self):
        # a start of the guest opens the disk for writing
        opened = []
        execute = processutils.execute

        def convert_slowly(*command, on_execute=None, **kwargs):
            def started(process):
                os.kill(process.pid, signal.SIGSTOP)
                opened.append(subprocess.run(
                    ['qemu-io', '-c', 'write 0 64k', self.path],
                    capture_output=True).returncode)
                os.kill(process.pid, signal.SIGCONT)
                on_execute(process)
            return execute(*command, **kwargs, **(
                {'on_execute': started} if on_execute else {}))
        with mock.patch.object(processutils, 'execute', convert_slowly):
            ran = self.run_heal()
        self.assertEqual([0], opened)
        self.assertIn('skipped: the disk changed in the meantime', ran.out)


class TestInterruption(HealTestCase):

    def interrupt(self, number=signal.SIGINT):
        os.kill(os.getpid(), number)

    def test_signal_aborts_the_block_pull(self):
        path = self.add(uuids.running, active=True)
        before = path.stat()
        self.device.rebase.side_effect = None
        self.device.get_job_info.side_effect = [
            None, None, None, mock.Mock(cur=1, end=2)]
        self.device.is_job_complete.side_effect = (
            lambda: self.interrupt() or False)
        ran = self.run_heal()
        self.assertEqual(heal.FAILED, ran.code, ran.err)
        self.device.abort_job.assert_called_once_with()
        self.assertIn('interrupted', ran.out)
        self.assertIn('Run the command again to continue', ran.out)
        self.assert_untouched(path, before)

    def test_signal_ends_the_copy_and_a_second_run_continues(self):
        path = self.add(uuids.stopped)
        before, image = path.stat(), self.image(path)
        watch = plan._watch

        def interrupted(made, total, progress, process):
            pathlib.Path(made).touch()
            os.kill(process.pid, signal.SIGSTOP)
            self.interrupt(signal.SIGTERM)
            watch(made, total, progress, process)
        with mock.patch.object(plan, '_watch', interrupted):
            ran = self.run_heal()
        self.assertEqual(heal.FAILED, ran.code)
        self.assert_untouched(path, before)
        self.assertEqual(heal.DONE, self.run_heal().code)
        self.assert_complete(path, image)

    def test_interruption_begins_no_further_disk(self):
        for uuid in ('1', '2'):
            path = self.add(uuid, active=True)
        self.device.rebase.side_effect = None
        flatten = self.guests['1'].get_block_device.return_value.rebase
        done = flatten.side_effect
        flatten.side_effect = lambda base: (done(base), self.interrupt())
        ran = self.run_heal()
        self.assertEqual(heal.FAILED, ran.code)
        self.assertIn('1 disk.eph0: complete', ran.out)
        self.device.rebase.assert_not_called()
        self.assertEqual(
            str(self.base), image_file.qcow2_header(str(path)).backing)

    def test_signal_handlers_are_restored(self):
        before = signal.getsignal(signal.SIGTERM)
        self.add(uuids.stopped)
        self.run_heal()
        self.assertEqual(before, signal.getsignal(signal.SIGTERM))


class TestUser(HealTestCase):
    """Root does not write where another user can make links."""

    def become(self, asking, owner):
        """Return root's calls to change its user, in their order."""
        calls = mock.Mock()
        os.chown(self.instances.path, owner.pw_uid, owner.pw_gid)
        with mock.patch.multiple(
                os, geteuid=lambda: asking, initgroups=calls.initgroups,
                setgid=calls.setgid, setuid=calls.setuid):
            self.run_heal('--dry-run')
        return calls.mock_calls

    @testtools.skipUnless(os.geteuid() == 0, 'only root gives files away')
    def test_root_becomes_the_owner_of_the_instances(self):
        nobody = pwd.getpwnam('nobody')
        self.assertEqual(
            [mock.call.initgroups('nobody', nobody.pw_gid),
             mock.call.setgid(nobody.pw_gid), mock.call.setuid(nobody.pw_uid)],
            self.become(0, nobody))

    def test_other_users_and_the_owner_keep_their_user_id(self):
        this = pwd.getpwuid(os.geteuid())
        self.assertEqual([], self.become(this.pw_uid, this))
        self.assertEqual([], self.become(4711, this))


class TestSecondCommand(HealTestCase):

    def test_second_heal_command_is_refused(self):
        path = self.add(uuids.stopped)
        before = path.stat()
        lock = self.instances.path / 'locks' / 'migfix-heal-compute1'
        lock.parent.mkdir()
        with scratch.locked(str(lock)):
            ran = self.run_heal()
        self.assertEqual(255, ran.code)
        self.assertIn('runs already', ran.err)
        self.assert_untouched(path, before)

    def test_lock_is_released_when_its_process_ends(self):
        path = self.add(uuids.stopped)
        lock = self.instances.path / 'locks' / 'migfix-heal-compute1'
        lock.parent.mkdir()
        holder = subprocess.Popen(
            ['flock', lock, 'sh', '-c', 'echo; exec cat'],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        holder.stdout.readline()
        self.assertEqual(255, self.run_heal().code)
        holder.communicate()
        image = self.image(path)
        self.assertEqual(heal.DONE, self.run_heal().code)
        self.assert_complete(path, image)
