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
"""Fixtures to run ``nova-migfix-status`` in a test."""

import contextlib
import errno
import io
import json
import pathlib
from typing import NamedTuple
from unittest import mock

import fixtures
from lxml import etree
import nova.conf
from oslo_log import log as logging
import testtools

from nova_migfix.abi import tap
from nova_migfix.cmd import status
from nova_migfix.status import upgrade
from nova_migfix.tests import fixtures as migfix_fixtures

CONF = nova.conf.CONF
DATA = pathlib.Path(__file__).parent / 'data'


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Command(fixtures.Fixture):
    """Run the command with a nova.conf; restore CONF afterwards."""

    def __init__(self, config):
        self._config = config

    def _setUp(self):
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.write(self._config)
        self.addCleanup(self._forget)
        self._forget()

    def _forget(self):
        CONF.reset()
        CONF.unregister_opt(status.COMMAND)

    def write(self, config):
        self.path = self.directory / 'nova.conf'
        self.path.write_text(config)

    def run(self, *arguments):
        self._forget()
        with contextlib.redirect_stdout(io.StringIO()) as out, \
                contextlib.redirect_stderr(io.StringIO()) as err:
            code = status.main(['--config-file', str(self.path), *arguments])
        return Ran(code, out.getvalue(), err.getvalue())


CONFIG = '''
[DEFAULT]
compute_driver = migfix.LibvirtDriver
[libvirt]
virt_type = kvm
{libvirt}
[migfix]
{migfix}
'''


class StatusTestCase(testtools.TestCase):
    """Run ``upgrade check`` with a nova.conf."""

    def setUp(self):
        super().setUp()
        self.command = self.useFixture(Command(''))
        self.configure()
        self.proc = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        (self.proc / 'stat').write_text('cpu 1 2\nbtime 1000\n')
        self.useFixture(fixtures.MockPatchObject(upgrade, '_PROC', self.proc))
        self.useFixture(fixtures.MockPatchObject(
            tap, 'max_queues', autospec=True, return_value=256))

    def configure(self, libvirt='', migfix=''):
        self.command.write(CONFIG.format(libvirt=libvirt, migfix=migfix))

    def checks(self, code=None):
        ran = self.command.run('upgrade', 'check', '--json')
        self.assertEqual('', ran.err)
        if code is not None:
            self.assertEqual(code, ran.code)
        return {check['check']: (check['result'], check['details'])
                for check in json.loads(ran.out)['checks']}

    def assertCheck(self, name, code, *said):
        with mock.patch.object(upgrade, 'CHECKS', tuple(
                check for check in upgrade.CHECKS if check[0] == name)):
            result, details = self.checks()[name]
        self.assertEqual(code, result, details)
        for part in said:
            self.assertIn(part, details)


logging.register_options(CONF)


class Hypervisor(fixtures.Fixture):
    """A host with the guests, the configuration and the disks of DATA.

    libvirt is a fake, unless *real*: then it is libvirt's test driver, which
    reads the same file.
    """

    def __init__(self, real=False):
        self._real = real

    def _setUp(self):
        for name, value in (('max_queues', 256),
                            ('offloads', frozenset(tap.OFFLOADS))):
            self.useFixture(fixtures.MonkeyPatch(
                f'{tap.__name__}.{name}', lambda value=value: value))
        instances = self.useFixture(migfix_fixtures.Instances())
        self.path = instances.path
        self.base = instances.base
        self.command = self.useFixture(Command(self.text('nova.conf')))
        (self.path / 'hypervisor.xml').write_text(self.text('hypervisor.xml'))
        for number, names in ((2, ['disk.config']), (3, ['disk.config']),
                              (4, ['disk.config'])):
            for name in names:
                self.disk(number, name, b'' if number == 3 else b'\1CD001')
        instances.make_base('ephemeral_1_40d1d2c')
        if not self._real:
            self.useFixture(fixtures.MonkeyPatch(
                'nova_migfix.status.hypervisor._libvirt', FakeLibvirt))

    def text(self, name):
        return (DATA / name).read_text().replace(
            '@INSTANCES@', str(self.path))

    def disk(self, number, name, content):
        path = self.path / uuid(number) / name
        path.parent.mkdir(exist_ok=True)
        with open(path, 'wb') as file:
            file.truncate(1 << 16)
            file.seek(1 << 15)
            file.write(content)

    def run(self, *arguments):
        return self.command.run(*arguments)


def uuid(number):
    """Return the UUID of a guest in DATA."""
    return f'{number:08x}-0000-4000-8000-{number:012x}'


EMULATOR = '/usr/bin/qemu-system-x86_64'


class FakeLibvirt:
    """A fake of libvirt-python that reads its domains from a file.

    It is also its only connection, and answers questions only.

    :ivar asks: credentials that it requests from the client
    :ivar is_writable: whether it allows connections that are not read-only
    :ivar secrets: UUIDs, of Ceph but for 'volume'
    :ivar lacks: features of CPUs that the host does not have
    :ivar state: of all domains, and its reason; by default
        VIR_DOMAIN_PAUSED_MIGRATION
    """

    asks = ()
    is_writable = True
    secrets = ()
    lacks = ()
    state = [3, 2]
    capabilities = f'''<capabilities>
      <host><cpu><arch>x86_64</arch></cpu></host>
      <guest><arch name="x86_64"><emulator>{EMULATOR}</emulator>
        <machine deprecated="no">pc-i440fx-7.2</machine>
        <domain type="kvm"/></arch></guest></capabilities>'''
    domain_capabilities = f'''<domainCapabilities>
      <path>{EMULATOR}</path><domain>kvm</domain>
      <machine>pc-i440fx-7.2</machine><arch>x86_64</arch>
      <cpu><mode name="host-model" supported="yes">
        <model>Broadwell</model><vendor>Intel</vendor>
        <feature policy="require" name="vmx"/>
        <feature policy="disable" name="hle"/>
      </mode></cpu></domainCapabilities>'''
    #: features of each model
    models = {'Broadwell': ['avx2', 'hle', 'sse2'], 'Nehalem': ['sse2']}
    VIR_CONNECT_LIST_DOMAINS_ACTIVE = 1
    VIR_CONNECT_RO = 1
    VIR_DOMAIN_PAUSED = 3
    VIR_DOMAIN_PAUSED_USER = 1
    (VIR_CRED_AUTHNAME, VIR_CRED_ECHOPROMPT, VIR_CRED_REALM,
     VIR_CRED_PASSPHRASE, VIR_CRED_NOECHOPROMPT,
     VIR_CRED_EXTERNAL) = range(2, 8)
    VIR_SECRET_USAGE_TYPE_CEPH = 2
    VIR_ERR_INVALID_ARG = 8
    VIR_ERR_OPERATION_DENIED = 29
    VIR_ERR_SYSTEM_ERROR = 38
    VIR_ERR_NO_DOMAIN = 42
    VIR_ERR_AUTH_FAILED = 45
    VIR_ERR_CONFIG_UNSUPPORTED = 67
    VIR_ERR_CPU_INCOMPATIBLE = 91

    class libvirtError(Exception):

        def __init__(self, said, code=0, number=0):
            super().__init__(said)
            self._code = code
            self._number = number

        def get_int1(self):
            return self._number

        def get_error_code(self):
            return self._code

    def openAuth(self, uri, auth, flags):
        kinds, answer, _opaque = auth
        if flags != self.VIR_CONNECT_RO and not self.is_writable:
            raise self.libvirtError('access denied',
                                    self.VIR_ERR_OPERATION_DENIED)
        self._is_read_only = flags == self.VIR_CONNECT_RO
        if not set(self.asks) <= set(kinds) or answer(
                [[kind, '', '', None, None] for kind in self.asks], None):
            raise self.libvirtError('Failed to collect auth credentials',
                                    self.VIR_ERR_AUTH_FAILED)
        path = uri.removeprefix('test://')
        try:
            node = etree.parse(path).getroot()
        except OSError as error:
            raise self.libvirtError(str(error)) from error
        self.listAllDomains = lambda flags: [
            self._domain(domain) for domain in node]
        return self

    def getCapabilities(self):
        return self.capabilities

    def _require_writable(self):
        if self._is_read_only:
            raise self.libvirtError('read only access prevents it',
                                    self.VIR_ERR_OPERATION_DENIED)

    def getVersion(self):
        return 7002000

    def getLibVersion(self):
        return 9000000

    def isAlive(self):
        return True

    def listAllSecrets(self):
        return [mock.Mock(spec=['UUIDString', 'usageType'], **{
            'UUIDString.return_value': one,
            'usageType.return_value': (
                1 if one == 'volume' else self.VIR_SECRET_USAGE_TYPE_CEPH)})
            for one in self.secrets]

    def getDomainCapabilities(self, emulator, arch, machine, virt, _flags):
        self._require_writable()
        if emulator not in (None, EMULATOR):
            raise self.libvirtError(
                f'Cannot check QEMU binary {emulator}: No such file or '
                'directory', self.VIR_ERR_SYSTEM_ERROR, errno.ENOENT)
        if machine and machine not in self.capabilities:
            raise self.libvirtError(
                f'the machine \'{machine}\' is not supported by emulator '
                f'\'{emulator}\'', self.VIR_ERR_INVALID_ARG)
        return self.domain_capabilities

    def _features(self, cpu):
        document = etree.fromstring(cpu)
        found = set(self.models[document.findtext('model')])
        for feature in document.iterfind('feature'):
            if feature.get('policy') == 'require':
                found.add(feature.get('name'))
            else:
                found.discard(feature.get('name'))
        return found

    def baselineHypervisorCPU(self, _emulator, _arch, _machine, _virt, cpus,
                              _flags):
        self._require_writable()
        return '<cpu><model>x</model>{}</cpu>'.format(''.join(
            f'<feature policy="require" name="{name}"/>'
            for name in sorted(self._features(cpus[0]) - set(self.lacks))))

    def compareCPU(self, _cpu, _flags):
        return 1

    def compareHypervisorCPU(self, _emulator, _arch, _machine, _virt, cpu,
                             _flags):
        self._require_writable()
        if missing := self._features(cpu) & set(self.lacks):
            raise self.libvirtError(
                'the CPU is incompatible with host CPU: Host CPU does not '
                'provide required features: ' + ', '.join(sorted(missing)),
                self.VIR_ERR_CPU_INCOMPATIBLE)
        return 2

    def lookupByUUIDString(self, wanted):
        for domain in self.listAllDomains(0):
            if domain.UUIDString() == wanted:
                return domain
        raise self.libvirtError('Domain not found', self.VIR_ERR_NO_DOMAIN)

    def _domain(self, domain):
        fake = mock.Mock(spec=['UUIDString', 'name', 'XMLDesc', 'state'])
        fake.state.return_value = self.state
        fake.UUIDString.return_value = domain.findtext('uuid')
        fake.name.return_value = domain.findtext('name')
        fake.XMLDesc.return_value = etree.tostring(domain, encoding='unicode')
        return fake
