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

"""nova-compute and the Open vSwitch agent of one compute host."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import signal
import types
from typing import Any

import fixtures

from lab import configuration
from lab import environments
from lab import host
from lab import hypervisor
from lab import process
from lab import workdir


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a compute host.

    :param nova: environments.STOCK or environments.FIXED
    :param options: of nova.conf, ``{(section, option): value}``
    :param tap_queue_limit: the most queues of one tap device that processes
        can open; None: the limit of the kernel
    """

    nova: str = environments.STOCK
    options: configuration.Options = dataclasses.field(
        default_factory=lambda: types.MappingProxyType({}))
    tap_queue_limit: int | None = None


_PLUGIN = {('DEFAULT', 'compute_driver'): 'migfix.LibvirtDriver'}

# The lab's programs take precedence over those of the host.
_PATH = f'{workdir.DATA / "bin"}:{host.PATH}'

# The log lines of nova-compute at its start, and when it accepts RPC.
_PLUGINS = re.compile('Loaded VIF plugins: .*')
_STARTED = 'Join ServiceGroup membership for this service compute'


# The log line of the Open vSwitch agent after each iteration over all ports.
_LOOKED = re.compile(r'rpc_loop - iteration:\d+ completed')


class Compute(fixtures.Fixture):
    """nova-compute, restarted only when its settings change."""

    _CONFIGURATION = 'etc/nova/nova.conf'

    def __init__(self, on: host.Host, libvirt: hypervisor.Libvirt,
                 venvs: environments.Environments) -> None:
        """:param on: the host on which it runs"""
        self.host = on
        self.libvirt = libvirt
        self._venvs = venvs
        self._daemon: process.Daemon | None = None
        self._running: tuple[str, dict[str, Any]] | None = None

    def _setUp(self) -> None:
        configuration.instances(self.host.root).mkdir()
        self.host.give_to_nova(self.host.home_here)
        self.log.touch()
        self.host.give_to_nova(self.log)
        self._start_agent()

    @property
    def log(self) -> pathlib.Path:
        return self.host.log('nova-compute')

    @property
    def configuration(self) -> pathlib.Path:
        """The path of its nova.conf."""
        return self.host.root / self._CONFIGURATION

    def _start_agent(self) -> None:
        place = 'etc/neutron/openvswitch_agent.ini'
        venv = self._venvs.control
        path = configuration.write(
            self.host, place,
            configuration.openvswitch_agent(self.host, venv, place))
        self._agent = self.host.start(
            'openvswitch-agent', venv.bin('neutron-openvswitch-agent'),
            '--config-file', path)

    def agent_looks(self) -> int:
        """Return how many iterations the Open vSwitch agent has completed."""
        log = self.host.log('openvswitch-agent')
        return len(_LOOKED.findall(log.read_text(errors='replace')))

    def apply(self, settings: Settings) -> bool:
        """Start nova-compute with *settings*, unless it has them already.

        :returns: whether it was started, and the caller has to `wait`
        """
        limit = settings.tap_queue_limit
        environment = {**self.libvirt.environment(limit), 'PATH': _PATH}
        venv = self._venvs.nova[settings.nova]
        plugin = (settings.nova == environments.FIXED
                  and self._venvs.variant == environments.PLUGIN)
        text = configuration.render(configuration.nova_compute(
            self.host, venv, self._CONFIGURATION, environment,
            {**(_PLUGIN if plugin else {}), **settings.options}))
        if (text, environment) == self._running and self._alive:
            return False
        if self._daemon:
            # No operation is under way that a graceful stop would finish.
            self._daemon.stop(signal.SIGKILL)
        self.libvirt.limit_tap_queues(limit)
        path = self.host.write(self._CONFIGURATION, text)
        self._seen = self._started()
        self._daemon = self.host.start_as_nova(
            'nova-compute', venv.bin('nova-compute'), '--config-file', path,
            env=environment)
        self._running = text, environment
        self._plugin = plugin
        return True

    @property
    def _alive(self) -> bool:
        return self._daemon is not None and self._daemon.running()

    def end(self, number: int) -> None:
        """Send a signal to nova-compute, and SIGKILL if it goes on."""
        assert self._daemon
        self._daemon.stop(number)

    def restart(self) -> None:
        """Start nova-compute again, as it was; wait until it accepts RPC."""
        assert self._daemon
        self._seen = self._started()
        self._daemon.start()
        self.wait()

    def _started(self) -> int:
        """Return how often nova-compute has started on this host."""
        return self.log.read_text(errors='replace').count(_STARTED)

    def wait(self) -> None:
        """Wait until nova-compute accepts RPC."""
        assert self._daemon
        self._daemon.wait_for(
            f'nova-compute of {self.host.name}',
            lambda: self._started() > self._seen, log=self.log, timeout=180)
        self._check_plugin()

    def _check_plugin(self) -> None:
        """Check that nova-compute has loaded the plugin only if it must.

        :raises LabError: it has not, or an unmodified Nova has
        """
        plugins = _PLUGINS.findall(self.log.read_text(errors='replace'))[-1]
        if ('migfix' in plugins) != self._plugin:
            raise process.LabError(
                f'nova-compute of {self.host.name} with'
                f'{"" if self._plugin else "out"} the plugin: {plugins}')
