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

"""The services of a compute host: Open vSwitch and libvirt."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import pathlib
import shutil
from typing import Any

import fixtures

from lab import emulator
from lab import host
from lab import process
from lab import qemu_tcg
from lab import topology
from lab import users
from lab import workdir

_LIBVIRTD = '''
listen_tls = 0
listen_tcp = 1
auth_tcp = "sasl"
auth_unix_rw = "none"
unix_sock_group = "{group}"
host_uuid = "{uuid}"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
log_filters = "3:remote 4:event"
'''

# Over TCP libvirt requires a name and a password, as with Kolla Ansible. The
# clients, nova-compute and a source's libvirtd, read them from auth.conf.
_USER, _PASSWORD = 'nova', 'lab'
_SASL = '''
mech_list: digest-md5
sasldb_path: /etc/libvirt/passwd.db
'''
_AUTH = f'''
[credentials-default]
authname={_USER}
password={_PASSWORD}

[auth-libvirt-default]
credentials=default
'''

# Both hosts share one control group tree and one user namespace.
_QEMU = f'''
user = "{users.QEMU}"
group = "{users.QEMU_GROUP}"
dynamic_ownership = 1
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
max_core = 0
migrate_tls_x509_cert_dir = "/etc/libvirt/migration"
'''


class Tools:
    """Files that the compute hosts share, made in the cache directory."""

    def __init__(self, cache: pathlib.Path) -> None:
        self.key = cache / 'ssh-key'
        self.tap_queue_limit = cache / 'tap_queue_limit.so'
        self.qemu = emulator.Qemu(cache)

    def make(self) -> None:
        if not self.key.exists():
            process.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '',
                         '-f', self.key])
        for library in (self.qemu.claim, self.tap_queue_limit):
            source = workdir.DATA / f'{library.stem}.c'
            process.run(['gcc', '-shared', '-fPIC', '-O2', '-Wall',
                         '-o', library, source, '-ldl'])
        self.qemu.make()


class Switch(fixtures.Fixture):
    """Open vSwitch with the userspace datapath, without a kernel module."""

    _DATABASE = '/run/openvswitch/conf.db'
    SOCKET = 'unix:/run/openvswitch/db.sock'
    # For the user nova, who cannot open the socket; os-vif's default.
    ADDRESS = 'tcp:127.0.0.1:6640'

    def __init__(self, host: host.Host) -> None:
        self.host = host

    def _setUp(self) -> None:
        self.host.run('ovsdb-tool', 'create', self._DATABASE,
                      '/usr/share/openvswitch/vswitch.ovsschema')
        ovsdb = self.host.start(
            'ovsdb-server', 'ovsdb-server', self._DATABASE,
            f'--remote=p{self.SOCKET}', '--remote=ptcp:6640:127.0.0.1')
        ovsdb.wait_for('ovsdb-server answers', lambda: self.host.succeeds(
            'ovs-vsctl', '--timeout=5', '--no-wait', 'init'))
        self.host.start('ovs-vswitchd', 'ovs-vswitchd', self.SOCKET)
        for bridge in ('br-int', 'br-provider'):
            self.host.run('ovs-vsctl', '--timeout=30', 'add-br', bridge, '--',
                          'set', 'Bridge', bridge, 'datapath_type=netdev')
        self.host.run('ovs-vsctl', '--timeout=30', 'add-port', 'br-provider',
                      topology.PROVIDER.name)


class Libvirt(fixtures.Fixture):
    """libvirtd, reachable from the other host; QEMU always emulates."""

    def __init__(self, host: host.Host, tools: Tools) -> None:
        self.host = host
        self.tools = tools
        self._daemon: process.Daemon
        self._tap_queue_limit: int | None = None
        self._emulators = ''

    def _setUp(self) -> None:
        number = topology.COMPUTES.index(self.host.name) + 1
        self.host.write('etc/libvirt/libvirtd.conf', _LIBVIRTD.format(
            uuid=f'0000000{number}-1111-4222-8333-00000000000{number}',
            group=users.LIBVIRT_GROUP))
        self.host.write('etc/libvirt/qemu.conf', _QEMU)
        self.certificates.mkdir()
        self._require_password()
        self.host.run('mount', '--bind', self.tools.qemu.wrapper,
                      emulator.QEMU)
        self._start()

    def _require_password(self) -> None:
        self.host.write('etc/libvirt/auth.conf', _AUTH)
        self.host.run('mount', '--bind', self.host.write(
            'etc/sasl2/libvirt.conf', _SASL), '/etc/sasl2/libvirt.conf')
        self.host.run('saslpasswd2', '-c', '-p', '-a', 'libvirt', '-f',
                      '/etc/libvirt/passwd.db', _USER, input=_PASSWORD)

    def _start(self) -> None:
        environment = self.environment(self._tap_queue_limit)
        if self._emulators:
            environment['PATH'] = f'{self._emulators}:{host.PATH}'
        self._daemon = self.host.start('libvirtd', 'libvirtd', '--listen',
                                       env=environment)
        self._daemon.wait_for('libvirtd answers', lambda: self.host.succeeds(
            'virsh', 'version'))

    def environment(self, tap_queue_limit: int | None) -> dict[str, Any]:
        """Return the variables with which a process opens that many queues.

        :param tap_queue_limit: of one tap device; None: no limit
        """
        if tap_queue_limit is None:
            return {}
        return {'LD_PRELOAD': self.tools.tap_queue_limit,
                'TAP_QUEUE_LIMIT': tap_queue_limit}

    def limit_tap_queues(self, limit: int | None) -> None:
        """Restart libvirtd if the limit has changed; guests keep running."""
        if limit != self._tap_queue_limit:
            self._tap_queue_limit = limit
            self.restart()

    def search_emulators(self, directory: pathlib.Path | None) -> None:
        """Restart libvirtd, which looks for QEMU in a directory first.

        A guest keeps the path of its emulator; see virFindFileInPath().

        :param directory: in the mount namespace of the host; None: look as
            usual
        """
        self._emulators = str(directory or '')
        self.restart()

    def add_emulator(self) -> pathlib.Path:
        """Make another path of QEMU on this host; return its directory."""
        self._emulator.parent.mkdir(exist_ok=True)
        shutil.copy(self.tools.qemu.wrapper, self._emulator)
        return self.host.own / self._emulator.parent.name

    def remove_emulator(self) -> None:
        self._emulator.unlink(missing_ok=True)

    @property
    def _emulator(self) -> pathlib.Path:
        return self.host.root / 'emulators' / pathlib.Path(emulator.QEMU).name

    @contextlib.contextmanager
    def other_qemu(self, wrapper: pathlib.Path) -> Iterator[None]:
        """Replace QEMU for guests that start during the context.

        libvirt probes QEMU again when the file at its path is another one.

        :param wrapper: from `Tools.qemu`
        """
        self.host.run('mount', '--bind', wrapper, emulator.QEMU)
        try:
            yield
        finally:
            self.host.run('umount', '--lazy', emulator.QEMU)

    @property
    def certificates(self) -> pathlib.Path:
        """The directory with QEMU's certificates for migrations."""
        return self.host.root / 'etc/libvirt/migration'

    @property
    def gnutls(self) -> pathlib.Path:
        """The directory of libraries that QEMU prefers, and its TLS policy."""
        return self.host.root / qemu_tcg.GNUTLS.lstrip('/')

    def virsh(self, *arguments: object) -> str:
        return self.host.run('virsh', *arguments)

    def domains(self) -> list[str]:
        """Return the names of all domains here, running or not."""
        return self.virsh('list', '--all', '--name').split()

    def state(self, domain: str) -> str:
        """Return the state of a domain and its reason; '' without it."""
        if domain not in self.domains():
            return ''
        return self.virsh('domstate', '--reason', domain).strip()

    def restart(self) -> None:
        """Restart libvirtd; guests keep running."""
        self._daemon.stop()
        self._start()

    def live_xml(self, domain: str) -> str:
        return self.virsh('dumpxml', domain)
