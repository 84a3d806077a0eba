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

import datetime
import os
import pathlib
import socket
import ssl
import threading
from unittest import mock

import ddt
import fixtures
from oslo_upgradecheck import upgradecheck

from nova_migfix.status import credentials
from nova_migfix.status import qemu
from nova_migfix.tests.unit.status import base
from nova_migfix.tls import certificates
from nova_migfix.tls import probe
from nova_migfix.tls import qmp
from nova_migfix.transport import libvirt_uri

SUCCESS, WARNING, FAILURE = upgradecheck.Code

OWN = 'live_migration_inbound_addr = 127.0.0.1\n'


class CredentialsTestCase(base.StatusTestCase):

    def setUp(self):
        super().setUp()
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)

    def write(self, place, days=100, hosts=('127.0.0.1',), early=0):
        """Make certificates that end after some days, or ended before.

        :param early: days until they are valid
        """
        validity = datetime.timedelta(days=abs(days))
        made = datetime.datetime.now(datetime.timezone.utc)
        if days < 0:
            made -= 2 * validity
        if early:
            made += validity + datetime.timedelta(days=early)
        place.mkdir(parents=True, exist_ok=True)
        with mock.patch.object(certificates, '_HOUR', validity), \
                mock.patch.object(certificates, 'datetime') as clock:
            clock.datetime.now.return_value = made
            certificates.write(place, hosts)


@ddt.ddt
class TestLibvirt(CredentialsTestCase):

    NAME = 'Certificates of libvirt'

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            credentials, '_LIBVIRT', self.directory))
        self.useFixture(fixtures.MockPatchObject(
            credentials, '_LIBVIRT_CA', self.directory / 'cacert.pem'))
        self.configure(f'{OWN}live_migration_scheme = tls')

    def install(self, **arguments):
        made = self.directory / 'made'
        self.write(made, **arguments)
        for name in ('ca', 'client', 'server'):
            (self.directory / f'{name}cert.pem').symlink_to(
                made / f'{name}-cert.pem')
        return made

    def test_valid_certificates_are_success(self):
        self.install()
        self.assertCheck(self.NAME, SUCCESS, 'valid for 127.0.0.1')

    @ddt.data((20, WARNING, 'ends in 19 days'), (-3, FAILURE, 'ended 3 days'))
    @ddt.unpack
    def test_end_of_each_certificate_is_judged(self, days, code, said):
        self.install(days=days)
        self.assertCheck(self.NAME, code, said, *(
            f'{self.directory}/{name}cert.pem'
            for name in ('server', 'client', 'ca')))

    def test_certificate_without_the_address_is_a_failure(self):
        self.install(hosts=('compute1', '192.0.2.1'))
        self.assertCheck(self.NAME, FAILURE, 'servercert.pem: the certificate '
                         'is not valid for 127.0.0.1, but for DNS:compute1, '
                         'IP:192.0.2.1')

    def test_missing_files_are_a_warning(self):
        self.assertCheck(
            self.NAME, WARNING, 'clientcert.pem does not exist here',
            'the certificate that libvirt has at 127.0.0.1, port 16514')

    def test_invalid_file_is_a_failure(self):
        self.install()
        (self.directory / 'cacert.pem').unlink()
        (self.directory / 'cacert.pem').write_text('no certificate')
        self.assertCheck(self.NAME, FAILURE, 'cacert.pem is invalid')

    @ddt.data((('127.0.0.1',), SUCCESS, 'valid for'),
              (('compute1',), FAILURE, 'not valid for 127.0.0.1'))
    @ddt.unpack
    def test_certificate_comes_from_libvirt_if_the_file_is_elsewhere(
            self, hosts, code, said):
        made = self.install(hosts=hosts)
        (self.directory / 'servercert.pem').unlink()
        (self.directory / 'private').mkdir()
        (self.directory / 'private' / 'clientkey.pem').symlink_to(
            made / 'client-key.pem')
        # libvirt asks for a certificate of the client
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(made / 'ca-cert.pem')
        context.load_cert_chain(made / 'server-cert.pem',
                                made / 'server-key.pem')
        with socket.create_server(('127.0.0.1', 0)) as server:
            def serve():
                connection, _peer = server.accept()
                with connection, context.wrap_socket(
                        connection, server_side=True) as session:
                    session.recv(1)
            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            with mock.patch.dict(libvirt_uri.PORTS,
                                 tls=server.getsockname()[1]):
                self.assertCheck(self.NAME, code, said)
            thread.join(10)

    @ddt.data('tcp', 'ssh')
    def test_other_transport_is_not_checked(self, scheme):
        self.configure(f'{OWN}live_migration_scheme = {scheme}')
        self.assertCheck(self.NAME, SUCCESS, 'Not used')


class QemuTestCase(CredentialsTestCase):

    def setUp(self):
        super().setUp()
        self.place = self.directory / 'etc/pki/qemu'
        self.useFixture(fixtures.MockPatchObject(
            qemu, 'credentials', autospec=True, return_value=self.place))
        self.user = self.useFixture(fixtures.MockPatchObject(
            qemu, 'user', autospec=True, return_value=qemu.User(
                os.getuid(), frozenset((os.getgid(),))))).mock
        self.running = self.useFixture(fixtures.MockPatchObject(
            qemu, 'running', autospec=True, return_value=[])).mock
        self.configure(f'{OWN}live_migration_with_native_tls = true')


@ddt.ddt
class TestQemu(QemuTestCase):

    NAME = 'Certificates of QEMU'

    def test_valid_certificates_are_success(self):
        self.write(self.place)
        self.assertCheck(self.NAME, SUCCESS, str(self.place))

    @ddt.data((20, WARNING, 'ends in 19 days'), (-3, FAILURE, 'ended 3 days'))
    @ddt.unpack
    def test_end_of_each_certificate_is_judged(self, days, code, said):
        self.write(self.place, days)
        self.assertCheck(self.NAME, code, said, *(
            f'{self.place}/{name}-cert.pem'
            for name in ('server', 'client', 'ca')))

    def test_certificate_of_the_future_is_a_failure(self):
        self.write(self.place, early=1)
        self.assertCheck(self.NAME, FAILURE, 'not yet valid')

    def test_server_certificate_without_the_address_is_a_failure(self):
        self.write(self.place, hosts=('compute1',))
        self.assertCheck(self.NAME, FAILURE, 'server-cert.pem: the '
                         'certificate is not valid for 127.0.0.1')

    def test_unset_address_is_not_compared(self):
        self.configure('live_migration_with_native_tls = true')
        self.write(self.place, hosts=('compute1',))
        self.assertCheck(self.NAME, SUCCESS)

    def test_key_that_qemu_cannot_read_is_a_failure(self):
        self.write(self.place)
        (self.place / 'server-key.pem').chmod(0)
        self.user.return_value = qemu.User(4242, frozenset())
        self.assertCheck(self.NAME, FAILURE, 'QEMU (user ID 4242) cannot '
                         f'read {self.place}/server-key.pem')

    def test_unknown_user_is_a_warning(self):
        self.write(self.place)
        self.user.return_value = None
        self.assertCheck(self.NAME, WARNING, 'user of QEMU is not known')

    def test_missing_server_certificate_is_a_failure(self):
        self.write(self.place)
        (self.place / 'server-cert.pem').unlink()
        self.assertCheck(self.NAME, FAILURE,
                         'server-cert.pem cannot be read: No such file')

    def test_missing_client_certificate_is_a_warning(self):
        self.write(self.place)
        (self.place / 'client-cert.pem').unlink()
        self.assertCheck(self.NAME, WARNING, 'migrate_tls_x509_verify')

    def test_missing_directory_is_a_failure_beside_qemu(self):
        with mock.patch.object(probe, 'find_qemu', autospec=True):
            self.assertCheck(self.NAME, FAILURE, 'does not exist')

    def test_missing_directory_is_a_warning_elsewhere(self):
        with mock.patch.object(probe, 'find_qemu', autospec=True,
                               side_effect=qmp.QemuError('none')):
            self.assertCheck(self.NAME, WARNING, 'nova_libvirt')

    def test_directory_of_a_running_guest_is_used_elsewhere(self):
        root = self.directory / 'root'
        self.write(root / str(self.place).lstrip('/'), -3)
        self.running.return_value = [qemu.Process(
            'instance-1', root, self.user.return_value)]
        self.assertCheck(self.NAME, FAILURE,
                         f'{self.place}/ca-cert.pem: the certificate ended')

    def test_refused_access_is_a_warning(self):
        with mock.patch.object(pathlib.Path, 'stat',
                               side_effect=PermissionError('refused')):
            self.assertCheck(self.NAME, WARNING, 'refused',
                             'Run this command as root')

    def test_migrations_without_tls_are_not_checked(self):
        self.configure(OWN)
        self.assertCheck(self.NAME, SUCCESS, 'Not used')


class TestGuests(QemuTestCase):

    NAME = 'Certificates of running guests'

    def guest(self, number, days=100):
        root = self.directory / f'root{number}'
        place = root / str(self.place).lstrip('/')
        if days:
            self.write(place, days)
        self.running.return_value.append(qemu.Process(
            f'instance-{number}', root, self.user.return_value))
        return place

    def test_valid_certificates_are_success(self):
        self.guest(1)
        self.guest(2)
        self.assertCheck(self.NAME, SUCCESS, '2 running guests')

    def test_certificates_lost_by_guests_are_a_failure(self):
        for number in range(1, 6):
            self.guest(number, 0)
        self.guest(6)
        self.assertCheck(
            self.NAME, FAILURE, 'instance-1, instance-2, instance-3 and 2 '
            f'more: {self.place}/ca-cert.pem cannot be read: No such file',
            'Hard-reboot')

    def test_ended_certificate_is_a_failure(self):
        self.guest(1, -3)
        self.assertCheck(self.NAME, FAILURE, 'client-cert.pem: the '
                         'certificate ended 3 days ago')

    def test_key_that_a_guest_cannot_read_is_a_failure(self):
        place = self.guest(1)
        (place / 'client-key.pem').chmod(0)
        user = qemu.User(4242, frozenset())
        self.running.return_value[0] = self.running.return_value[0]._replace(
            user=user)
        self.assertCheck(self.NAME, FAILURE, 'instance-1: QEMU (user ID 4242) '
                         f'cannot read {self.place}/client-key.pem')

    def test_invisible_processes_are_a_warning(self):
        self.running.side_effect = PermissionError('refused')
        self.assertCheck(self.NAME, WARNING, 'refused')

    def test_migrations_without_tls_are_not_checked(self):
        self.configure(OWN)
        self.assertCheck(self.NAME, SUCCESS, 'Not used')
