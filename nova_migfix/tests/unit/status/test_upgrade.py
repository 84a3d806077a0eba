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
import json
import os
import sys
from unittest import mock

import ddt
import fixtures
import nova.privsep
from nova.virt.disk import api as disk_api
from oslo_concurrency import processutils
from oslo_privsep import daemon
from oslo_privsep import priv_context
from oslo_upgradecheck import upgradecheck

from nova_migfix.abi import tap
from nova_migfix import fixes
from nova_migfix.fixes import base as fixes_base
from nova_migfix import nova_release
from nova_migfix.status import results
from nova_migfix.status import upgrade
from nova_migfix.tests import fixtures as migfix_fixtures
from nova_migfix.tests.unit.status import base
from nova_migfix.tls import probe
from nova_migfix.tls import qmp

SUCCESS, WARNING, FAILURE = upgradecheck.Code


class TestOutput(base.StatusTestCase):

    def test_json_matches_oslo_upgradecheck(self):
        ran = self.command.run('upgrade', 'check', '--json')
        answer = json.loads(ran.out)
        self.assertEqual({'name', 'checks'}, set(answer))
        for check in answer['checks']:
            self.assertEqual({'check', 'result', 'details'}, set(check))
        self.assertEqual(max(
            check['result'] for check in answer['checks']), ran.code)

    def test_checks_are_printed_as_a_table(self):
        ran = self.command.run('upgrade', 'check')
        self.assertIn('| Check: Fix vnic ', ran.out)
        self.assertIn('| nova_migfix on this host ', ran.out)

    def test_exit_status_is_the_worst_result(self):
        with mock.patch.object(upgrade, 'CHECKS', ()), mock.patch.object(
                upgrade, '_fix_checks', autospec=True) as checks:
            for code in (SUCCESS, WARNING, FAILURE):
                checks.return_value = [
                    ('one', results.success),
                    ('other', lambda: upgradecheck.Result(code, 'x'))]  # noqa: B023
                self.assertEqual(
                    code, self.command.run('upgrade', 'check').code)

    def test_check_that_raises_is_an_error(self):
        with mock.patch.object(upgrade, 'CHECKS', (('one', lambda: 1 / 0),)):
            ran = self.command.run('upgrade', 'check')
        self.assertEqual(255, ran.code)
        self.assertIn('ZeroDivisionError', ran.err)

    def test_missing_configuration_is_an_error(self):
        self.command.path.unlink()
        ran = self.command.run('upgrade', 'check')
        self.assertEqual(255, ran.code)
        self.assertIn('nova.conf', ran.err)
        self.assertNotIn('Traceback', ran.err)


@ddt.ddt
class TestPlugin(base.StatusTestCase):

    def start(self, pid, command, since_boot):
        process = self.proc / pid
        process.mkdir()
        python = os.path.join(os.path.dirname(sys.executable), 'python3')
        (process / 'cmdline').write_text('\0'.join(
            [python, *command, '']))
        ticks = since_boot * os.sysconf('SC_CLK_TCK')
        (process / 'stat').write_text(
            f'{pid} (a) b) S ' + '0 ' * 18 + f'{ticks} 0 0')

    def test_configured_driver_is_success(self):
        self.assertCheck('Plugin', SUCCESS, 'migfix.LibvirtDriver')

    def test_other_driver_is_a_failure(self):
        self.command.write('[DEFAULT]\ncompute_driver=libvirt.LibvirtDriver')
        self.assertCheck('Plugin', FAILURE, 'libvirt.LibvirtDriver',
                         'compute_driver = migfix.LibvirtDriver', 'restart')

    def test_missing_entry_point_is_a_failure(self):
        with mock.patch.object(
                upgrade.named.NamedExtensionManager, 'entry_points_names',
                autospec=True, return_value=['ovs']):
            self.assertCheck('Plugin', FAILURE, 'pip install nova-migfix')

    @ddt.data((2, SUCCESS), (-.5, SUCCESS), (-2, WARNING))
    @ddt.unpack
    def test_process_older_than_the_configuration_is_a_warning(
            self, after, code):
        self.start('7', ['/usr/bin/nova-compute', '--x'], 2000)
        self.start('8', ['/usr/bin/nova-conductor'], 1)
        os.utime(self.command.path, (3000 - after, 3000 - after))
        self.assertCheck('Plugin', code)

    def test_process_files_in_any_encoding_are_read(self):
        self.start('7', ['x'], 2000)
        for name in ('cmdline', 'stat'):
            path = self.proc / '7' / name
            path.write_bytes(b'\xff\xfe' + path.read_bytes())
        self.assertCheck('Plugin', SUCCESS)

    def test_unsupported_nova_is_a_failure(self):
        with mock.patch.object(nova_release, 'major', return_value=28):
            self.assertCheck('Release of Nova', FAILURE, '29 to 34')
        self.assertCheck('Release of Nova', SUCCESS)


class TestFixes(base.StatusTestCase):

    def found(self, state):
        return [fixes.Found(name, state, 'reason', fixes_base.Fix)
                for name in ('source_address', 'vnic')] + [
            fixes.Found('tls_rekey', fixes.State.ACTIVE, '', fixes_base.Fix)]

    def test_active_fix_is_success(self):
        self.assertCheck('Fix vnic', SUCCESS, 'active (the vNIC')

    def test_disabled_fix_is_a_warning(self):
        self.configure(migfix='enabled_fixes = ephemeral')
        self.assertCheck('Fix vnic', WARNING, 'switched off by [migfix]')
        self.assertCheck('Fix ephemeral', SUCCESS, 'active')

    def test_unneeded_fix_is_success(self):
        with mock.patch.object(nova_release, 'major', return_value=31):
            self.assertCheck('Fix rollback_state', SUCCESS, 'not needed')

    def test_unknown_fix_is_a_failure(self):
        self.configure(migfix='enabled_fixes = vnics')
        self.assertCheck('Fixes', FAILURE, 'unknown fixes: vnics')

    def test_nova_with_all_fixes_is_a_warning(self):
        with mock.patch.object(fixes, 'find', autospec=True) as find:
            find.return_value = self.found(fixes.State.NOT_NEEDED)
            self.assertCheck('Patched Nova', WARNING,
                             'compute_driver = libvirt.LibvirtDriver')
            find.return_value = self.found(fixes.State.ACTIVE)
            self.assertCheck('Patched Nova', SUCCESS, 'source_address, vnic')


@ddt.ddt
class TestTapQueues(base.StatusTestCase):

    @ddt.data((8, 16, FAILURE, 'max_queues = 8'), (256, 16, SUCCESS, '16'),
              (8, 8, SUCCESS, '8'))
    @ddt.unpack
    def test_queue_limit_is_compared_with_max_queues(
            self, possible, wanted, code, said):
        self.configure(f'max_queues = {wanted}')
        tap.max_queues.return_value = possible
        self.assertCheck('Queues of tap devices', code, said)

    def ask_daemon(self, answer):
        """Let only Nova's privsep daemon open queues, with an answer."""
        self.useFixture(fixtures.MockPatchObject(
            priv_context, '_HELPER_COMMAND_PREFIX', ['none']))
        context = nova.privsep.sys_admin_pctxt
        self.addCleanup(context.set_client_mode, context.client_mode)

        def count():
            if not context.client_mode:
                raise PermissionError('not permitted')
            self.asked = context.helper_command('socket')
            if isinstance(answer, Exception):
                raise answer
            return answer
        tap.max_queues.side_effect = count

    def test_unprivileged_user_asks_the_privsep_daemon(self):
        self.ask_daemon(256)
        self.assertCheck('Queues of tap devices', SUCCESS, '256')
        self.assertEqual(
            ['sudo', '-n', 'nova-rootwrap', '/etc/nova/rootwrap.conf',
             'privsep-helper', '--config-file', str(self.command.path)],
            self.asked[:7])

    @ddt.data(('/usr/bin/sudo /venv/helper', ['/usr/bin/sudo', '-n',
                                              '/venv/helper']),
              ('/venv/helper --x', ['/venv/helper', '--x']))
    @ddt.unpack
    def test_configured_helper_command_starts_the_privsep_daemon(
            self, own, asked):
        self.configure(libvirt=f'[nova_sys_admin]\nhelper_command = {own}')
        self.ask_daemon(8)
        self.assertCheck('Queues of tap devices', SUCCESS, '8')
        self.assertEqual(asked, self.asked[:len(asked)])
        self.assertIn('--privsep_context', self.asked)

    @ddt.data(daemon.FailedToDropPrivileges('exited non-zero (1)'),
              FileNotFoundError('sudo'))
    def test_failed_privsep_daemon_is_a_warning(self, error):
        self.ask_daemon(error)
        self.assertCheck('Queues of tap devices', WARNING, str(error),
                         'Run this command as root')


@ddt.ddt
class TestEphemeralDisks(base.StatusTestCase):
    """With file systems that mkfs makes."""

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', f'{os.environ["PATH"]}:/usr/sbin:/sbin'))

    def configure_format(self, name):
        self.command.write(
            '[DEFAULT]\ncompute_driver = migfix.LibvirtDriver\n'
            f'default_ephemeral_format = {name}\n')

    @ddt.data('ext4', 'xfs')
    def test_labelled_file_system_is_success(self, name):
        self.configure_format(name)
        self.assertCheck('Ephemeral disks', SUCCESS)

    def test_unknown_file_system_is_a_failure(self):
        self.configure_format('nosuchfs')
        self.assertCheck('Ephemeral disks', FAILURE, 'nosuchfs',
                         'default_ephemeral_format')

    @ddt.data(('xfs', 30, '', SUCCESS), ('xfs', 29, '', SUCCESS),
              ('xfs', 29, 'enabled_fixes = vnic', FAILURE),
              ('ext4', 29, 'enabled_fixes = vnic', FAILURE))
    @ddt.unpack
    def test_base_name_as_label_is_a_failure_without_the_fix(
            self, name, release, migfix, code):
        self.configure_format(name)
        with open(self.command.path, 'a') as file:
            file.write(f'[migfix]\n{migfix}\n')
        with mock.patch.object(nova_release, 'major', return_value=release):
            self.assertCheck('Ephemeral disks', code)

    def test_mkfs_command_without_the_label_is_a_failure(self):
        self.configure_format('ext4')
        with mock.patch.object(
                disk_api, 'mkfs', side_effect=lambda os_type, label, path,
                run_as_root: processutils.execute(
                    'mkfs.ext4', '-q', '-L', 'data', path)):
            self.assertCheck('Ephemeral disks', FAILURE, 'has data')


class TestEphemeralOverlays(base.StatusTestCase):

    def setUp(self):
        super().setUp()
        self.instances = self.useFixture(migfix_fixtures.Instances())
        self.base = self.instances.make_base(mkfs=None)
        for uuid, name in (('1', 'disk.eph0'), ('1', 'disk.eph1'),
                           ('2', 'disk.eph0')):
            self.instances.make_disk(uuid, name, self.base)

    def configure_overlays(self, value):
        self.command.write(base.CONFIG.format(
            libvirt='', migfix=f'ephemeral_overlays = {value}').replace(
                '[DEFAULT]',
                f'[DEFAULT]\ninstances_path = {self.instances.path}'))

    def test_disks_are_counted_and_heal_is_named(self):
        self.configure_overlays('false')
        self.assertCheck(
            'Ephemeral overlays', WARNING, '3 disks of 2 instances',
            '0 are missing', 'nova-migfix-status heal')

    def test_missing_bases_are_counted_once(self):
        self.configure_overlays('true')
        self.base.unlink()
        self.assertCheck('Ephemeral overlays', WARNING, '1 are missing')

    def test_enabled_overlays_are_success(self):
        self.configure_overlays('true')
        self.assertCheck('Ephemeral overlays', SUCCESS)

    def test_host_without_instances_is_success(self):
        self.assertCheck('Ephemeral overlays', SUCCESS, '0 disks')

    def test_unreadable_disks_are_a_warning(self):
        self.configure_overlays('true')
        (self.instances.path / '1' / 'disk.info').write_text('[]')
        self.assertCheck('Ephemeral overlays', WARNING, 'cannot be read')


@ddt.ddt
class TestTls(base.StatusTestCase):

    @ddt.data(
        (probe.Answer('TLSv1.2', 'AES256'), SUCCESS, 'TLSv1.2 AES256 safe'),
        (probe.Answer('TLSv1.3', 'AES256'), WARNING, 'generate'),
        (probe.Answer('', '', 'handshake failure'), FAILURE, 'failure'),
        (probe.Answer('TLSv1.2', 'AES256', doubt='who can read it'), WARNING,
         'unknown. who can read it'),
        (qmp.QemuError('no QEMU found'), WARNING, 'nova_libvirt'))
    @ddt.unpack
    def test_answer_of_the_tls_probe_is_judged(self, answer, code, said):
        self.configure('live_migration_with_native_tls = true')
        with mock.patch.object(probe, 'find_qemu', autospec=True), \
                mock.patch.object(probe, 'probe', autospec=True,
                                  side_effect=[answer]):
            self.assertCheck('TLS', code, said)

    def test_tls_is_not_probed_if_it_is_not_used(self):
        with mock.patch.object(probe, 'probe', autospec=True) as asked:
            self.assertCheck('TLS', SUCCESS, 'Not used')
        asked.assert_not_called()


