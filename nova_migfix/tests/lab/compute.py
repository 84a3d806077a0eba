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

import dataclasses
import signal
import types

import fixtures

from nova_migfix.tests.lab import configuration
from nova_migfix.tests.lab import environments


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a compute host is set up.

    :param variant: environments.STOCK or environments.PLUGIN
    :param options: of nova.conf, ``{(section, option): value}``
    :param tap_queue_limit: how many queues of one tap device its kernel
        seems to open; None: as many as it does
    """

    variant: str = environments.STOCK
    options: dict = dataclasses.field(
        default_factory=lambda: types.MappingProxyType({}))
    tap_queue_limit: int = None


_DRIVER = {
    environments.STOCK: {},
    environments.PLUGIN: {
        ('DEFAULT', 'compute_driver'): 'migfix.LibvirtDriver'},
}

# What nova-compute writes when it can be reached by RPC.
_STARTED = 'Join ServiceGroup membership for this service compute'


class Compute(fixtures.Fixture):
    """nova-compute, restarted only when its settings change."""

    _CONFIGURATION = 'etc/nova/nova.conf'

    def __init__(self, host, libvirt, venvs):
        self.host = host
        self.libvirt = libvirt
        self._venvs = venvs
        self._daemon = None
        self._settings = None

    def _setUp(self):
        instances = configuration.instances(self.host.root)
        instances.mkdir(parents=True)
        self._start_agent()

    @property
    def log(self):
        return self.host.log('nova-compute')

    def _start_agent(self):
        place = 'etc/neutron/openvswitch_agent.ini'
        venv = self._venvs.control
        path = configuration.write(
            self.host, place,
            configuration.openvswitch_agent(self.host, venv, place))
        self.host.start('openvswitch-agent',
                        venv.bin('neutron-openvswitch-agent'),
                        '--config-file', path,
                        env={'PYTHONWARNINGS': 'ignore'})

    def apply(self, settings):
        """Begin to run with *settings*; returns whether to `wait`."""
        if settings == self._settings:
            return False
        if self._daemon:
            # Nothing is under way that it could end gracefully.
            self._daemon.stop(signal.SIGKILL)
        limit = settings.tap_queue_limit
        self.libvirt.limit_tap_queues(limit)
        environment = self.libvirt.environment(limit)
        venv = self._venvs.nova[settings.variant]
        path = configuration.write(
            self.host, self._CONFIGURATION, configuration.nova_compute(
                self.host, venv, self._CONFIGURATION,
                {**_DRIVER[settings.variant], **settings.options}))
        self._seen = self._started()
        self._daemon = self.host.start(
            'nova-compute', venv.bin('nova-compute'), '--config-file', path,
            env={**environment, 'PYTHONWARNINGS': 'ignore'})
        self._settings = settings
        return True

    def _started(self):
        """How often nova-compute has come up here."""
        if not self.log.exists():
            return 0
        return self.log.read_text(errors='replace').count(_STARTED)

    def wait(self):
        """Wait until nova-compute takes messages."""
        self._daemon.wait_for(
            f'nova-compute of {self.host.name}',
            lambda: self._started() > self._seen, log=self.log, timeout=180)
