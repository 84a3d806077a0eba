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

"""A guest and its migrations."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import hashlib
import pathlib
import re
import signal
import socket
import time
from typing import Any

import fixtures
from openstack import exceptions

from lab import cloud
from lab import configuration
from lab import process

# Final states of a migration record.
_FINAL = ('completed', 'failed', 'error', 'cancelled')

# Seconds between two requests to an API, each of which takes processor time.
_POLL = 0.5

# After a failure Nova changes record and instance more than once: their state
# counts when it has not changed for so many seconds.
_SETTLE = 3

# The port on which the guest runs scripts, and the last line of its answer.
_SHELL = 23
_EXIT = re.compile(r'exit (\d+)\n\Z')

_SAYS = re.compile(r'second \d+ boot (\S+) queues (\S.*)')
_DEAD_VLAN = '4095'


class Silent(process.LabError):
    """The guest does not answer."""


@dataclasses.dataclass(frozen=True)
class Migration:
    """The outcome of one migration."""

    source: str
    destination: str
    status: str             # of the migration record
    vm_state: str           # of the instance: 'ACTIVE' or 'ERROR'
    host: str               # of the instance, according to Nova
    seconds: float
    final: bool = True      # whether record and instance are in a final state

    @property
    def arrived(self) -> bool:
        return self.status == 'completed' and self.host == self.destination


@dataclasses.dataclass
class Pings:
    """Numbers of echo requests sent to a guest and lost."""

    INTERVAL = 0.2          # seconds

    sent: int = 0
    lost: int = 0


@dataclasses.dataclass(frozen=True)
class Ephemeral:
    """A requested ephemeral disk.

    :param size: in GB
    :param guest_format: the filesystem; None: the default of the host
    """

    size: int
    guest_format: str | None = None

    @property
    def mapping(self) -> dict[str, Any]:
        """The entry of block_device_mapping_v2."""
        mapping = {'source_type': 'blank', 'destination_type': 'local',
                   'boot_index': -1, 'volume_size': self.size,
                   'delete_on_termination': True}
        if self.guest_format:
            mapping['guest_format'] = self.guest_format
        return mapping


class Guest(fixtures.Fixture):
    """An instance, from its boot on a given host until it is deleted."""

    def __init__(self, cloud: cloud.Cloud, image: Any, host: str,
                 ephemerals: Sequence[Ephemeral] = (), swap: int = 0,
                 config_drive: bool = False, cpus: int | None = None) -> None:
        """Describe the guest; setUp boots it.

        :param image: as `cloud.upload` returns it
        :param host: the name of the host on which the guest boots
        :param ephemerals: /dev/vdb and so on in the guest
        :param swap: MiB of a swap disk, which comes after those
        :param cpus: None: one for a guest with such disks, else the flavor's
        """
        self.cloud = cloud
        self.image = image
        self.ephemerals = ephemerals
        self.swap = swap
        self._config_drive = config_drive
        self._cpus = cpus
        self._first_host = host

    def _setUp(self) -> None:
        api = self.cloud.api
        self.cloud.wait_for_agents()
        port = self.cloud.create_port()
        self.port = port.id
        self.mac = port.mac_address
        self.address = port.fixed_ips[0]['ip_address']
        self.addCleanup(api.network.delete_port, port.id)
        server = api.compute.create_server(
            name='guest', image_id=self.image.id,
            flavor_id=self._flavor().id,
            networks=[{'port': self.port}],
            block_device_mapping=self._mappings(),
            has_config_drive=self._config_drive,
            availability_zone=f'nova:{self._first_host}')
        self.id = server.id
        self.addCleanup(self._delete)
        process.wait_for('the guest to be scheduled and started',
                         self._active, timeout=180, poll=_POLL,
                         log=self.cloud.compute[self._first_host].log)
        self.domain = self._server().instance_name
        self._booted()

    def _flavor(self, **changes: int) -> Any:
        """Return a flavor with the requested disks.

        A guest with such disks has one CPU: with several emulated CPUs and
        more disks it sometimes loses interrupts and does not answer.
        """
        size = sum(ephemeral.size for ephemeral in self.ephemerals)
        wanted = {'ephemeral': size} if size else {}
        if self.swap:
            wanted['swap'] = self.swap
        if self._cpus or size or self._config_drive:
            wanted['vcpus'] = self._cpus or 1
        return self.cloud.flavor(**{**wanted, **changes})

    def _mappings(self) -> list[dict[str, Any]]:
        root = {'uuid': self.image.id, 'source_type': 'image',
                'destination_type': 'local', 'boot_index': 0,
                'delete_on_termination': True}
        return [root, *[ephemeral.mapping for ephemeral in self.ephemerals]]

    def _booted(self) -> None:
        """Wait until the guest answers, and remember this boot's id.

        The agent may miss a port that is replaced while it processes others.
        An update of the port makes the agent process it again.
        """
        try:
            self._wait_for_tag(timeout=20)
        except process.LabError:
            self.cloud.api.network.update_port(
                self.port, description='look again')
        self.wait_reachable()
        self.boot_id, _ = self.says(self.host)

    def _delete(self) -> None:
        api = self.cloud.api
        api.compute.delete_server(self.id)
        process.wait_for('the guest to be deleted', self.gone, poll=_POLL)
        self.cloud.ports_changed()

    def gone(self) -> bool:
        """Return whether Nova has deleted the instance."""
        try:
            self._server()
        except exceptions.NotFoundException:
            return True
        return False

    def _server(self) -> Any:
        return self.cloud.api.compute.get_server(self.id)

    def _active(self) -> bool:
        server = self._server()
        if server.status == 'ERROR':
            raise process.LabError(f'guest not started: {server.fault}')
        return server.status == 'ACTIVE'

    @property
    def vm_state(self) -> str:
        return self._server().status

    @property
    def host(self) -> str:
        return self._server().compute_host

    def files(self, host: str) -> pathlib.Path:
        """Return the directory of the guest's files on *host*."""
        root = self.cloud.hosts[host].root
        return configuration.instances(root) / self.id

    def disk(self, host: str, name: str) -> pathlib.Path:
        """Return the path of a disk, in the mount namespace of *host*."""
        own = self.cloud.hosts[host].own
        return configuration.instances(own) / self.id / name

    def base_image(self, host: str) -> pathlib.Path:
        """Return the disk's backing file in the image cache of *host*."""
        name = hashlib.sha1(self.image.id.encode()).hexdigest()
        return self.files(host).parent / '_base' / name

    def qemu_log(self, host: str) -> pathlib.Path:
        root = self.cloud.hosts[host].root
        return root / f'var/log/libvirt/qemu/{self.domain}.log'

    def live_xml(self, host: str) -> str:
        return self.cloud.libvirt[host].live_xml(self.domain)

    def domain_state(self, host: str) -> str:
        """Return libvirt's state of the guest on *host*, with the reason."""
        return self.cloud.libvirt[host].state(self.domain)

    def running_on(self) -> list[str]:
        """Return the names of the hosts on which libvirt has the domain."""
        return [name for name, libvirt in self.cloud.libvirt.items()
                if self.domain in libvirt.domains()]

    def bindings(self) -> list[str]:
        """Return the names of the hosts that the port has bindings for."""
        return sorted(binding['host'] for binding in self._bindings())

    def _bindings(self) -> list[dict[str, Any]]:
        response = self.cloud.api.network.get(
            f'/ports/{self.port}/bindings')
        exceptions.raise_from_response(response)
        bindings: list[dict[str, Any]] = response.json()['bindings']
        return bindings

    def binding_status(self) -> dict[str, str]:
        """Return ``{host: status}`` of the port's bindings."""
        return {binding['host']: binding['status']
                for binding in self._bindings()}

    @property
    def task_state(self) -> str | None:
        return self._server().task_state

    def action_events(self, action: str) -> list[dict[str, Any]]:
        """Return all events of the instance's actions of this name."""
        url = f'/servers/{self.id}/os-instance-actions'
        found = []
        for each in self._get(url)['instanceActions']:
            if each['action'] == action:
                details = self._get(f'{url}/{each["request_id"]}')
                found += details['instanceAction']['events']
        return found

    def _get(self, url: str) -> Any:
        response = self.cloud.api.compute.get(url, microversion='2.90')
        exceptions.raise_from_response(response)
        return response.json()

    def says(self, host: str) -> tuple[str, list[str]]:
        """Wait for the next line on the guest's console on *host*.

        :returns: ``(boot id, names of the queues)``, from the guest's kernel
        """
        console = self.files(host) / 'console.log'
        before = len(_said(console))
        boot_id, queues = process.wait_for(
            'another line on the console of the guest',
            lambda: _said(console)[before:], log=console)[-1]
        return boot_id, queues.split()

    def last_words(self, host: str) -> str:
        """Return the console lines of a kernel crash, '' without one."""
        console = self.files(host) / 'console.log'
        return '\n'.join(re.findall(
            r'.*(?:BUG|Oops|panic|RIP:|general protection).*',
            console.read_text(errors='replace'))[:5])

    def copied_memory(self, host: str) -> bool:
        """Return whether *host* has sent some of the guest's memory."""
        return self._copied(host, 'Memory')

    def copied_disk(self, host: str) -> bool:
        """Return whether *host* has sent some of the disks, no memory yet."""
        return self._copied(host, 'File') and not self._copied(host, 'Memory')

    def _copied(self, host: str, what: str) -> bool:
        job = self.cloud.libvirt[host].virsh('domjobinfo', self.domain)
        match = re.search(rf'{what} processed: +([\d.]+)', job)
        return match is not None and float(match[1]) > 0

    def kill_qemu(self, host: str) -> None:
        """Kill the guest's QEMU on one host, as if it crashed."""
        on = self.cloud.hosts[host]
        pid = on.run('cat', f'/run/libvirt/qemu/{self.domain}.pid').strip()
        on.run('kill', '-KILL', pid)

    def wait_reachable(self) -> None:
        """Wait until the guest answers on the instance's host.

        Its port needs a VLAN tag first, which the Open vSwitch agent sets.

        :raises Silent: it does not answer
        """
        self._wait_for_tag()
        host = self.host
        # Open vSwitch in userspace reads the flags of a new port and writes
        # them back with IFF_PROMISC: it clears the IFF_UP that libvirt has
        # set meanwhile.
        self.cloud.hosts[host].run('ip', 'link', 'set', self.tap, 'up')
        try:
            process.wait_for(f'{self.domain} on {host} to answer',
                             self.answers,
                             log=self.files(host) / 'console.log')
        except process.LabError as error:
            raise Silent(error) from None

    @property
    def tap(self) -> str:
        """The name of the guest's tap device."""
        return f'tap{self.port[:11]}'

    def _wait_for_tag(self, timeout: float = 120) -> None:
        host = self.host
        process.wait_for(f'a VLAN tag on the port of {self.domain} on {host}',
                         lambda: self._tagged(host), timeout=timeout,
                         log=self.cloud.hosts[host].log('openvswitch-agent'))

    def _tagged(self, host: str) -> bool:
        tag = self.cloud.hosts[host].run(
            'ovs-vsctl', '--timeout=5', '--if-exists', 'get', 'Port',
            self.tap, 'tag').strip()
        return tag.isdigit() and tag != _DEAD_VLAN

    def answers(self) -> bool:
        return self.cloud.controller.succeeds(
            'ping', '-c', '1', '-W', '1', self.address)

    def run(self, script: str, timeout: float = 60) -> str:
        """Run a shell script in the guest and return its output.

        Background processes of the script must not keep its output open.

        :raises LabError: it fails, or does not end within *timeout* seconds
        """
        begin = time.monotonic()
        output = b''
        try:
            with socket.create_connection((self.address, _SHELL),
                                          timeout) as connection:
                connection.sendall(script.encode())
                connection.shutdown(socket.SHUT_WR)
                while True:
                    left = begin + timeout - time.monotonic()
                    connection.settimeout(max(left, 0.01))
                    part = connection.recv(1 << 16)
                    if not part:
                        break
                    output += part
        except OSError as error:
            raise process.LabError(f'in the guest: {script}: {error}'
                                   f'\n{output.decode()}') from error
        text = output.decode(errors='replace')
        status = _EXIT.search(text)
        if not status or status[1] != '0':
            raise process.LabError(f'in the guest: {script}: failed\n{text}')
        return text[:status.start()]

    def succeeds(self, script: str) -> bool:
        """Return whether a script succeeds in the guest."""
        try:
            self.run(script)
        except process.LabError:
            return False
        return True

    @contextlib.contextmanager
    def pinged(self, limit: int = 400) -> Iterator[Pings]:
        """Ping the guest during the context; yield Pings, filled at its end.

        :param limit: seconds after which the pings stop in any case
        """
        controller = self.cloud.controller
        pings = Pings()
        output = controller.root / 'log/ping.out'
        output.unlink(missing_ok=True)
        ping = controller.start('ping', 'ping', '-n', '-i', pings.INTERVAL,
                                '-w', limit, self.address)
        try:
            yield pings
        finally:
            ping.stop(signal.SIGINT)
            summary = re.search(r'(\d+) packets transmitted, (\d+) received',
                                output.read_text())
            if summary:
                sent, received = map(int, summary.groups())
                pings.sent, pings.lost = sent, sent - received

    def last_record(self) -> Any:
        """Return the newest migration record; None without one."""
        records = self.cloud.api.compute.migrations(instance_uuid=self.id)
        return max(records, key=lambda record: int(record.id), default=None)

    def migrate(self, destination: str,
                during: Callable[[], object] | None = None,
                timeout: float = 240) -> Migration:
        """Migrate live, with the disks, and wait until states are final.

        :param during: called once, right after Nova accepts the request
        """
        migration = self.attempt(destination, during, timeout)
        if not migration.final:
            log = self.cloud.compute[migration.source].log
            raise process.LabError(
                f'the migration of {self.domain}: not within {timeout} s'
                f'{process.tail(log)}')
        return migration

    def attempt(self, destination: str,
                during: Callable[[], object] | None = None,
                timeout: float = 240) -> Migration:
        """Migrate as `migrate` does, but return any state after *timeout*."""
        previous = self.last_record()
        if previous:
            self.cloud.ports_changed()
            self.cloud.wait_for_agents()
        source, begin = self.host, time.monotonic()
        self.request_migration(destination)
        if during:
            during()
        final = self.settles(previous, timeout)
        record, server = self.last_record(), self._server()
        return Migration(source, destination, record.status, server.status,
                         server.compute_host, time.monotonic() - begin, final)

    def settles(self, previous: Any, timeout: float) -> bool:
        """Wait for the final state of the migration after *previous*.

        :param previous: the record before, as `last_record` returns it
        :returns: whether it has come within *timeout* seconds
        """
        def settled() -> bool:
            # A service may be down at the moment.
            with contextlib.suppress(exceptions.SDKException):
                return self._settled(previous)
            return False
        try:
            process.wait_for(f'the migration of {self.domain}', settled,
                             timeout=timeout, poll=_POLL)
        except process.LabError:
            return False
        return True

    def hard_reboot(self) -> None:
        self.ask_for_hard_reboot()
        self._booted()

    def ask_for_hard_reboot(self) -> None:
        """Request a hard reboot and wait until the instance is ACTIVE.

        It is ACTIVE as well when Nova refuses and leaves the guest alone.
        """
        self.act({'reboot': {'type': 'HARD'}}, 'ACTIVE')

    def reset_state(self) -> None:
        """Make the instance ACTIVE in Nova's database, and change no more."""
        self.request({'os-resetState': {'state': 'active'}})

    def suspend(self) -> None:
        self.act({'suspend': None}, 'SUSPENDED')

    def resume(self) -> None:
        """Resume the guest; it is unreachable until a hard reboot.

        Nova does not change the port, so Open vSwitch in user space does not
        notice that the tap device is a new one.
        """
        self.act({'resume': None}, 'ACTIVE')

    def ask_in_vain_for_resume(self) -> str:
        """Request a resume; return the state in which Nova gives up."""
        self.act({'resume': None}, 'SUSPENDED', 'ERROR')
        return self.vm_state

    def pause(self) -> None:
        self.act({'pause': None}, 'PAUSED')

    def unpause(self) -> None:
        self.act({'unpause': None}, 'ACTIVE')

    def stop(self) -> None:
        self.act({'os-stop': None}, 'SHUTOFF')

    def start(self) -> None:
        self.act({'os-start': None}, 'ACTIVE')
        self._booted()

    def cold_migrate(self) -> None:
        """Migrate cold to the other host and confirm."""
        self.act({'migrate': None}, 'VERIFY_RESIZE')
        self.act({'confirmResize': None}, 'ACTIVE')
        self._booted()

    def resize(self, **changes: int) -> None:
        """Resize to a flavor with *changes* on the other host; confirm."""
        flavor = self._flavor(**changes)
        self.act({'resize': {'flavorRef': flavor.id}}, 'VERIFY_RESIZE')
        self.act({'confirmResize': None}, 'ACTIVE')
        self._booted()

    def act(self, action: dict[str, Any], *states: str) -> None:
        """Request an *action* and wait for one of these *states*."""
        self.cloud.ports_changed()
        self.cloud.wait_for_agents()
        self.request(action)
        process.wait_for(f'{next(iter(action))} of {self.domain}',
                         lambda: self._is(states), timeout=240, poll=_POLL)

    def _is(self, states: Sequence[str]) -> bool:
        server = self._server()
        if server.task_state:
            return False
        if server.status == 'ERROR' and server.status not in states:
            raise process.LabError(f'guest in ERROR: {server.fault}')
        return server.status in states

    def request_migration(self, destination: str) -> None:
        """Request a live migration, and return once Nova has accepted it."""
        self.request({'os-migrateLive': {
            'host': destination, 'block_migration': 'auto'}})

    def request(self, action: dict[str, Any]) -> None:
        """Request an action, and return once Nova has accepted it."""
        # The SDK uses an API version in which a live migration waits for the
        # prechecks of both hosts, and fails with them.
        response = self.cloud.api.compute.post(
            f'/servers/{self.id}/action', microversion='2.90', json=action)
        exceptions.raise_from_response(response)

    def _settled(self, previous: Any) -> bool:
        state = self._state()
        if state[0] == (previous and previous.id) or state[1] not in _FINAL:
            return False
        if state[3]:
            return False
        if state[1] != 'completed':
            time.sleep(_SETTLE)
        return state == self._state()

    def _state(self) -> tuple[Any, ...]:
        record, server = self.last_record(), self._server()
        if not record:
            return None, None, server.status, server.task_state
        return record.id, record.status, server.status, server.task_state


def _said(console: pathlib.Path) -> list[tuple[str, str]]:
    """Return the pairs of boot id and queues in the guest's output."""
    try:
        text = console.read_text(errors='replace')
    except OSError:
        return []
    return _SAYS.findall(text)
