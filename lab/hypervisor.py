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

"""The services of a compute host: Open vSwitch, libvirt and sshd."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
import shutil
from typing import Any

import fixtures

from lab import host
from lab import infrastructure
from lab import process
from lab import qemu_tcg
from lab import topology
from lab import users
from lab import workdir

QEMU = '/usr/bin/qemu-system-x86_64'

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

_SSHD = '''
{listen}
HostKey {key}
PidFile /run/sshd.pid
AuthorizedKeysFile {key}.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
Subsystem sftp internal-sftp
'''

_SSH = '''
Host *
    BatchMode yes
    ConnectTimeout 10
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
'''

# QEMU's user runs it, and can read neither the checkout nor an interpreter
# below root's home.
_QEMU_WRAPPER = '''#!/usr/bin/python3
import sys
sys.path.insert(0, {directory!r})
import qemu_tcg
qemu_tcg.main({qemu!r}, {claim!r}, sys.argv[1:])
'''


class Tools:
    """Files that the compute hosts share, made in the cache directory."""

    def __init__(self, cache: pathlib.Path) -> None:
        self.key = cache / 'ssh-key'
        self.wrapper = cache / 'qemu-wrapper'
        self.tap_queue_limit = cache / 'tap_queue_limit.so'
        self._claim = cache / 'kvm_claim.so'
        self._sysroot = cache / 'qemu'

    def make(self) -> None:
        if not self.key.exists():
            process.run(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '',
                         '-f', self.key])
        for library in (self._claim, self.tap_queue_limit):
            source = workdir.DATA / f'{library.stem}.c'
            process.run(['gcc', '-shared', '-fPIC', '-O2', '-Wall',
                         '-o', library, source, '-ldl'])
        self._make_wrapper()

    def _make_wrapper(self) -> None:
        """Make the wrapper, which is mounted over QEMU, and copy the real one.

        QEMU finds its firmware relative to its own path, hence the links.
        """
        binary = self._sysroot / 'bin' / pathlib.Path(QEMU).name
        binary.parent.mkdir(parents=True, exist_ok=True)
        process.run(['cp', '--update', QEMU, binary])
        for place in ('share', 'lib'):
            link = self._sysroot / place
            if not link.is_symlink():
                link.symlink_to(f'/usr/{place}')
        shutil.copy(qemu_tcg.__file__, self._sysroot)
        self.wrapper.write_text(_QEMU_WRAPPER.format(
            qemu=str(binary), claim=str(self._claim),
            directory=str(self._sysroot)))
        self.wrapper.chmod(0o755)


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
        self._tools = tools
        self._daemon: process.Daemon
        self._tap_queue_limit: int | None = None

    def _setUp(self) -> None:
        number = topology.COMPUTES.index(self.host.name) + 1
        self.host.write('etc/libvirt/libvirtd.conf', _LIBVIRTD.format(
            uuid=f'0000000{number}-1111-4222-8333-00000000000{number}',
            group=users.LIBVIRT_GROUP))
        self.host.write('etc/libvirt/qemu.conf', _QEMU)
        self.certificates.mkdir()
        self._require_password()
        self.host.run('mount', '--bind', self._tools.wrapper, QEMU)
        self._start()

    def _require_password(self) -> None:
        self.host.write('etc/libvirt/auth.conf', _AUTH)
        self.host.run('mount', '--bind', self.host.write(
            'etc/sasl2/libvirt.conf', _SASL), '/etc/sasl2/libvirt.conf')
        self.host.run('saslpasswd2', '-c', '-p', '-a', 'libvirt', '-f',
                      '/etc/libvirt/passwd.db', _USER, input=_PASSWORD)

    def _start(self) -> None:
        environment = self.environment(self._tap_queue_limit)
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
        return {'LD_PRELOAD': self._tools.tap_queue_limit,
                'TAP_QUEUE_LIMIT': tap_queue_limit}

    def limit_tap_queues(self, limit: int | None) -> None:
        """Restart libvirtd if the limit has changed; guests keep running."""
        if limit != self._tap_queue_limit:
            self._tap_queue_limit = limit
            self.restart()

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


class SshServer(fixtures.Fixture):
    """sshd on the requested networks and on no other."""

    def __init__(self, host: host.Host, tools: Tools) -> None:
        self.host = host
        self.key = tools.key
        self._daemon: process.Daemon | None = None
        self._networks: Sequence[topology.Network] = ()

    def _setUp(self) -> None:
        self.host.write('etc/ssh/ssh_config', _SSH)
        keys = self.host.home_here / '.ssh'
        keys.mkdir(mode=0o700)
        shutil.copy(self.key, keys / 'id_ed25519')
        self.host.give_to_nova(keys)

    def listen(self, networks: Sequence[topology.Network]) -> None:
        """(Re)start sshd so that it answers on *networks*; () stops it."""
        if networks == self._networks:
            return
        if self._daemon:
            self._daemon.stop()
            self._daemon = None
        self._networks = networks
        if networks:
            self._start()

    def _start(self) -> None:
        addresses = [leg.split('/')[0] for network in self._networks
                     for leg in network.addresses(self.host.name)]
        configuration = self.host.write('etc/ssh/sshd_config', _SSHD.format(
            key=self.key, listen='\n'.join(
                f'ListenAddress {address}' for address in addresses)))
        self._daemon = self.host.start('sshd', '/usr/sbin/sshd', '-D', '-e',
                                       '-f', configuration)
        self._daemon.wait_for('sshd answers', lambda: infrastructure.answers(
            self.host, 22))
