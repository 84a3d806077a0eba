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
"""``preflight`` with the guests in ``data/hypervisor.xml``."""

import csv
import io
import itertools
import json
import re
import subprocess
import threading
from unittest import mock

import ddt
import fixtures
from lxml import etree
from nova import exception
from nova.image import glance
from nova.network import neutron
from nova.tests import fixtures as nova_fixtures
from oslo_concurrency import processutils
import testtools

from nova_migfix import nova_release
from nova_migfix.status import finders
from nova_migfix.status import findings
from nova_migfix.status import hypervisor
from nova_migfix.status import preflight
from nova_migfix.status import recomputed
from nova_migfix.status import remote
from nova_migfix.status import results
from nova_migfix.status import services
from nova_migfix.status import shared
from nova_migfix.storage import image_file
from nova_migfix.tests.unit.abi import test_vnic
from nova_migfix.tests.unit.status import base
from nova_migfix.tls import audit
from nova_migfix.tls import gnutls
from nova_migfix.transport import transfer

#: guest, finding, device, running, computed, covered
FINDINGS = (
    (1, 'vnic', 'fa:16:3e:00:00:01 driver/@queues', '2', '4', 'yes'),
    (1, 'vnic-ring', 'fa:16:3e:00:00:01 driver/@rx_queue_size', '256', '512',
     'yes'),
    (2, 'vnic', 'fa:16:3e:00:00:02 driver/@queues', '8', '4', 'yes'),
    (2, 'config-drive', 'hda disk.config', 'ISO', 'all zeros',
     'if on the destination'),
    (2, 'kernel-ramdisk', 'kernel', '@INSTANCES@/{uuid}/kernel',
     'fetched as a disk image: ImageUnacceptable', 'if on the destination'),
    (3, 'ephemeral', 'vdb disk.eph0', 'ephemeral_1_40d1d2c ext4 {fs}',
     'the destination\'s file system', 'yes'),
    (3, 'ephemeral-lost', 'vdc disk.eph1',
     '@INSTANCES@/_base/ephemeral_2_40d1d2c', 'is missing', 'yes'),
    (3, 'config-drive-empty', 'hda disk.config', 'all zeros', 'all zeros',
     'yes'),
)


class PreflightTestCase(testtools.TestCase):

    real = False

    def setUp(self):
        super().setUp()
        finders._file_system.cache_clear()
        # the findings depend on the release of Nova
        self.useFixture(fixtures.MockPatchObject(
            nova_release, 'major', autospec=True, return_value=34))
        self.host = self.useFixture(base.Hypervisor(self.real))
        self.connect = self.useFixture(fixtures.MockPatchObject(
            remote, 'connect', autospec=True, return_value=remote.Connected(
                None, results.warning('no connection')))).mock

    def report(self, *arguments):
        ran = self.host.run('preflight', '--json', *arguments)
        self.assertEqual('', ran.err)
        answer = json.loads(ran.out)
        self.assertEqual(max((row['result'] for row in (
            *answer['findings'], *answer['checks'])), default=0), ran.code)
        return answer

    def findings(self, *arguments):
        return [tuple(row[key] for key in (
            'instance', 'finding', 'device', 'running', 'computed',
            'covered')) for row in self.report(*arguments)['findings']]

    def expected(self, *numbers, **other):
        system = image_file.filesystem(str(
            self.host.base / 'ephemeral_1_40d1d2c'))['UUID']
        return [(base.uuid(number), kind, device, *(
            text.replace('@INSTANCES@', str(self.host.path)).format(
                uuid=base.uuid(number), fs=system)
            for text in (running, computed)), other.get(kind, covered))
            for number, kind, device, running, computed, covered in FINDINGS
            if number in (numbers or (1, 2, 3, 4))]

    def covered(self, *arguments):
        return {row['finding']: row['covered']
                for row in self.report(*arguments)['findings']}


@ddt.ddt
class TestFindings(PreflightTestCase):

    def test_findings_of_all_guests_are_reported(self):
        self.assertEqual(self.expected(), self.findings())

    @ddt.data((1,), (3, 2), (4,))
    def test_findings_of_named_instances_are_reported(self, numbers):
        arguments = [word for number in numbers
                     for word in ('--instance', base.uuid(number))]
        self.assertEqual(self.expected(*numbers), self.findings(*arguments))

    def test_instance_of_another_host_is_an_error(self):
        ran = self.host.run('preflight', '--instance', base.uuid(9))
        self.assertEqual(255, ran.code)
        self.assertEqual(f'Not running on this host: {base.uuid(9)}.\n',
                         ran.err)

    def test_unreachable_libvirt_is_an_error(self):
        (self.host.path / 'hypervisor.xml').unlink()
        ran = self.host.run('preflight')
        self.assertEqual(255, ran.code)
        self.assertIn('libvirt at test://', ran.err)
        self.assertNotIn('Traceback', ran.err)

    def test_silent_libvirt_is_an_error(self):
        answers = threading.Event()
        self.addCleanup(answers.set)
        with mock.patch.object(
                base.FakeLibvirt, 'openAuth', autospec=True,
                side_effect=lambda *arguments: answers.wait(60)), \
                mock.patch.object(hypervisor, '_TIMEOUT', .1):
            ran = self.host.run('preflight')
        self.assertEqual(255, ran.code)
        self.assertIn('does not answer: no answer within 0.1 seconds', ran.err)
        self.assertFalse(answers.is_set())

    def test_missing_libvirt_password_is_an_error(self):
        with mock.patch.object(base.FakeLibvirt, 'asks', (
                base.FakeLibvirt.VIR_CRED_AUTHNAME,
                base.FakeLibvirt.VIR_CRED_PASSPHRASE)):
            ran = self.host.run('preflight')
        self.assertEqual(255, ran.code)
        self.assertIn('Failed to collect auth credentials. It requires a '
                      'name and a password from auth.conf', ran.err)
        self.assertEqual(1, ran.err.count('\n'))

    def test_missing_libvirt_python_is_an_error(self):
        with mock.patch.object(hypervisor, '_libvirt', autospec=True,
                               side_effect=hypervisor.status.Error('none')):
            self.assertEqual(255, self.host.run('preflight').code)

    def test_nova_29_has_no_config_drive_finding(self):
        with mock.patch.object(nova_release, 'major', return_value=29):
            self.assertNotIn('config-drive', self.covered())

    def test_disks_on_shared_storage_have_no_findings(self):
        with mock.patch.object(shared, 'FILE_SYSTEMS', AnyOf()):
            kinds = {row[1] for row in self.findings()}
        self.assertEqual(
            {'vnic', 'vnic-ring', 'config-drive-empty', 'ephemeral-lost'},
            kinds)

    def test_unreachable_bases_are_noted(self):
        for path in self.host.base.iterdir():
            path.unlink()
        self.host.base.rmdir()
        report = self.report()
        self.assertNotIn('ephemeral-lost', {
            row['finding'] for row in report['findings']})
        self.assertTrue([note for note in report['notes']
                         if 'not accessible' in note])


class AnyOf:
    """A container of every value."""

    def __contains__(self, _value):
        return True


@ddt.ddt
class TestCovered(PreflightTestCase):

    def test_findings_without_the_plugin_are_not_covered(self):
        self.host.command.write(self.host.text('nova.conf').replace(
            'migfix.LibvirtDriver', 'libvirt.LibvirtDriver'))
        report = self.report()
        self.assertEqual(
            {'vnic': 2, 'vnic-ring': 1, 'ephemeral-lost': 2,
             'config-drive-empty': 1, 'ephemeral': 1, 'config-drive': 1,
             'kernel-ramdisk': 1},
            {row['finding']: row['result'] for row in report['findings']})
        self.assertEqual([], [row for row in report['findings']
                              if not row['otherwise']])

    def test_disabled_fix_does_not_cover(self):
        self.host.command.write(self.host.text('nova.conf') + (
            '[migfix]\nenabled_fixes = ephemeral\n'))
        covered = self.covered()
        self.assertEqual(('no', 'yes'),
                         (covered['vnic'], covered['ephemeral']))

    def ask(self, *checks, plugin=0, tls='Not used'):
        return json.dumps({'name': '', 'checks': [
            {'check': 'Plugin', 'result': plugin, 'details': ''},
            {'check': 'TLS', 'result': 0, 'details': tls}, *(
                {'check': name, 'result': 0, 'details': details}
                for name, details in checks)]})

    @ddt.data(
        ([('Fix config_drive', 'active (..)')], 0, 'yes', 'no'),
        ([('Fix config_drive', 'active (..)')], 2, 'no', 'no'),
        ([('Fix kernel_ramdisk', 'not needed in ..')], 2, 'no', 'yes'),
        ([('Fix config_drive', 'switched off by ..')], 0, 'no', 'no'),
        # nova-compute has to be restarted
        ([('Fix config_drive', 'active (..)')], 1,
         *['if on the destination'] * 2))
    @ddt.unpack
    def test_destination_decides_for_its_fixes(
            self, checks, plugin, drive, kernel):
        with mock.patch.object(
                transfer, 'execute', autospec=True,
                return_value=self.ask(*checks, plugin=plugin)) as asked:
            covered = self.covered('--dest', 'compute2')
        self.assertEqual((drive, kernel), (
            covered['config-drive'], covered['kernel-ramdisk']))
        self.assertEqual('compute2', asked.call_args.args[0])

    @ddt.data(processutils.ProcessExecutionError('refused'), ['{'], ['{}'],
              subprocess.TimeoutExpired('ssh', 60))
    def test_unreachable_destination_is_noted(self, answer):
        with mock.patch.object(transfer, 'execute', autospec=True,
                               side_effect=answer):
            report = self.report('--dest', 'compute2')
        self.assertIn('compute2 did not report its fixes',
                      ' '.join(report['notes']))
        self.assertIn('if on the destination', {
            row['covered'] for row in report['findings']})

    def test_invalid_destination_name_is_noted(self):
        report = self.report('--dest=-oProxyCommand=x')
        self.assertIn('neither a host name', ' '.join(report['notes']))


class TestOutput(PreflightTestCase):

    def test_findings_are_printed_as_json(self):
        report = self.report()
        self.assertEqual(
            {*preflight.Report._fields, 'capabilities', 'needs'} - {'here'},
            set(report))
        self.assertEqual(('compute1', 4), (report['host'], report['guests']))
        for row in report['findings']:
            self.assertEqual(list(findings.Finding._fields), list(row))
        notes = ' '.join(report['notes'])
        for part in ('Neutron was not queried', 'Glance was not queried',
                     'Approximated: flavor and image', 'monitor'):
            self.assertIn(part, notes)

    def test_findings_are_printed_as_csv(self):
        ran = self.host.run('preflight', '--csv')
        rows = list(csv.DictReader(io.StringIO(ran.out)))
        self.assertEqual(list(findings.Finding._fields), list(rows[0]))
        self.assertEqual(len(FINDINGS), len(rows))
        self.assertIn('Neutron was not queried', ran.err)

    def test_findings_are_printed_as_a_table(self):
        ran = self.host.run('preflight')
        for part in ('| Instance ', '| Covered ', base.uuid(1), 'Note: ',
                     f'4 guests on compute1, {len(FINDINGS)} findings, '):
            self.assertIn(part, ran.out)
        self.assertRegex(ran.out, r'findings, [\d.]+ s\n$')


@ddt.ddt
class TestTls(PreflightTestCase):

    def setUp(self):
        super().setUp()
        self.host.command.write(self.host.text('nova.conf') + (
            'live_migration_with_native_tls = true\n'))
        self.flavor(200 << 10)

    def flavor(self, memory):
        """Set the memory of all flavors, in MiB."""
        path = self.host.path / 'hypervisor.xml'
        path.write_text(re.sub(
            '(<nova:memory>)[0-9]+', rf'\g<1>{memory}', path.read_text()))

    def findings_of(self, memory, library, *arguments):
        guest = audit.Guest(7, 'instance-00000001', base.uuid(1), memory,
                            library)
        with mock.patch.object(audit, 'find', autospec=True,
                               return_value=guest):
            return {row['finding']: row for row in self.report(
                '--instance', base.uuid(1), *arguments)['findings']}

    def test_large_guest_on_an_old_library_is_found(self):
        found = self.findings_of(100 << 30, gnutls.Library(
            '/lib/libgnutls.so.30', True, '3.7.9', ''))
        self.assertEqual(('no', 2, 'will fail'), (
            found['tls']['covered'], found['tls']['result'],
            found['tls']['device']))
        self.assertEqual(('3.7.9', 1), (found['old-library']['running'],
                                        found['old-library']['result']))

    def test_large_guest_with_little_used_memory_is_not_found(self):
        self.assertNotIn('tls', self.findings_of(1 << 30, gnutls.Library(
            '/lib/libgnutls.so.30', True, '3.7.9', '')))

    def test_process_of_a_small_guest_is_not_inspected(self):
        self.flavor(1 << 10)
        with mock.patch.object(audit, 'find', autospec=True) as find:
            self.assertNotIn('tls', self.covered())
        find.assert_not_called()

    def test_unreadable_processes_are_noted(self):
        with mock.patch.object(audit, 'find', autospec=True,
                               side_effect=PermissionError('maps')):
            report = self.report('--instance', base.uuid(1))
        self.assertIn('Processes cannot be read: maps',
                      ' '.join(report['notes']))
        self.assertIn('tls', {row['finding'] for row in report['findings']})

    @ddt.data(('TLSv1.3 AES256 rekeys.', 'no', 2),
              ('TLSv1.3 AES256 unknown.', 'not known', 1),
              ('Not used: [libvirt] live_migration_with_native_tls.',
               'not known', 1))
    @ddt.unpack
    def test_tls_of_the_destination_decides(self, details, covered, result):
        with mock.patch.object(
                transfer, 'execute', autospec=True, return_value=(
                    TestCovered.ask(self, tls=details))):
            found = self.findings_of(
                100 << 30, None, '--dest', 'compute2')['tls']
        self.assertEqual((covered, result),
                         (found['covered'], found['result']))

    def test_large_guest_is_not_found_for_a_safe_destination(self):
        with mock.patch.object(
                transfer, 'execute', autospec=True, return_value=(
                    TestCovered.ask(self, tls='TLSv1.2 AES256 safe.'))):
            self.assertNotIn('tls', self.findings_of(
                100 << 30, None, '--dest', 'compute2'))


class TestServices(PreflightTestCase):

    def credentials(self, group):
        self.host.command.write(
            f'{self.host.text("nova.conf")}[{group}]\nauth_type = password\n')

    def auth(self, role):
        return mock.Mock(get_access=lambda _session: mock.Mock(
            role_names=[role], auth_token='token'))

    def test_bindings_and_mtu_come_from_neutron(self):
        self.credentials('neutron')
        with mock.patch.object(neutron, 'get_client', autospec=True) as get:
            client = get.return_value
            client.list_ports.return_value = {'ports': [{
                'mac_address': 'FA:16:3E:00:00:04', 'network_id': 'net',
                'binding:vif_type': 'ovs', 'binding:vnic_type': 'normal',
                'binding:vif_details': {}, 'binding:profile': {}}]}
            client.list_networks.return_value = {
                'networks': [{'id': 'net', 'mtu': 1442}]}
            found = self.findings('--instance', base.uuid(4))
        self.assertEqual([(
            base.uuid(4), 'vnic', 'fa:16:3e:00:00:04 mtu/@size', '1500',
            '1442', 'yes')], found)
        client.list_ports.assert_called_once_with(
            **{'binding:host_id': 'compute1'})

    def test_images_missing_in_glance_are_found(self):
        self.credentials('service_user')
        with mock.patch.object(services, 'loading', autospec=True) as load, \
                mock.patch.object(glance.API, 'get', autospec=True) as get:
            load.load_auth_from_conf_options.return_value = self.auth('admin')
            get.side_effect = exception.ImageNotFound(image_id='x')
            found = self.findings('--instance', base.uuid(4))
        self.assertEqual([(
            base.uuid(4), 'image-lost', '903243f7-8e2d-4f62-86f1-a72645651e54',
            '192.0.2.11', 'fetched from compute1', 'if on the destination')],
            found)

    def test_slow_glance_is_not_waited_for(self):
        self.credentials('service_user')
        images = [base.uuid(number) for number in range(20, 40)]
        with mock.patch.object(services, 'loading', autospec=True) as load, \
                mock.patch.object(services, 'time', autospec=True) as time, \
                mock.patch.object(glance.API, 'get', autospec=True) as get:
            load.load_auth_from_conf_options.return_value = self.auth('admin')
            get.side_effect = exception.ImageNotFound(image_id='x')
            # one second for each answer
            time.monotonic.side_effect = itertools.count()
            self.host.run('preflight')      # reads the configuration
            notes = []
            lost = services.lost_images(images, notes.append)
        self.assertEqual(set(images[:10]), lost)
        self.assertIn('10 of 20 images were not checked', notes[0])

    def test_glance_without_role_admin_is_noted(self):
        self.credentials('service_user')
        with mock.patch.object(services, 'loading', autospec=True) as load:
            load.load_auth_from_conf_options.return_value = self.auth('member')
            notes = self.report('--instance', base.uuid(4))['notes']
        self.assertIn('does not have the role admin', ' '.join(notes))


@ddt.ddt
class TestRecomputedVnics(testtools.TestCase):
    """Nova's own code computes the values in the fix's golden files."""

    def setUp(self):
        super().setUp()
        # the test machine does not have the devices of the bindings
        self.useFixture(nova_fixtures.LibvirtFixture())
        self.host = self.useFixture(base.Hypervisor())

    METADATA = '''<metadata>
      <n:instance xmlns:n="http://openstack.org/xmlns/libvirt/nova/1.1">
        <n:flavor><n:vcpus>4</n:vcpus><n:extraSpecs/></n:flavor>
        <n:image><n:properties>{}</n:properties></n:image>
      </n:instance></metadata><devices>'''

    @ddt.data(*test_vnic.CASES)
    def test_changed_vnics_match_the_golden_files(self, case):
        options, properties, mtu = test_vnic.CASES[case]
        self.host.command.write('[libvirt]\nvirt_type = kvm\n' + ''.join(
            f'{name} = {value}\n' for name, value in options.items()))
        self.host.run('preflight')      # reads the configuration
        source = test_vnic.golden(case, 'source')
        domain = hypervisor.Domain('', '', source.replace(
            '<devices>', self.METADATA.format(''.join(
                f'<n:property name="{name}">{value}</n:property>'
                for name, value in properties.items())), 1))
        ports = {}
        for interface in etree.fromstring(source).iterfind(
                './devices/interface'):
            kind, vnic, details, profile = test_vnic.BINDINGS[
                interface.get('type')]
            ports[interface.find('mac').get('address').lower()] = (
                recomputed.Binding(kind, vnic, details, {
                    **profile, 'os_vif_delegation': case == 'delegated'},
                    mtu))
        _, expected = test_vnic.keep(test_vnic.golden(case, 'stock'), source)
        self.assertEqual(
            [change for change in expected
             if (change.path, change.running, change.computed)
             not in recomputed._SAME],
            recomputed.changed_vnics(domain, ports))
