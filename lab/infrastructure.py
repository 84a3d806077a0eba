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

"""The database and the broker of OpenStack's services."""

from __future__ import annotations

from collections.abc import Iterable
import pathlib
import shutil

import fixtures

from lab import host
from lab import process
from lab import topology

USER = 'openstack'
PASSWORD = 'lab'

DATABASES = ('keystone', 'glance', 'placement', 'neutron', 'nova', 'nova_api',
             'nova_cell0')

_ADDRESS = topology.MANAGEMENT.address(topology.CONTROLLER)

TRANSPORT_URL = (
    f'rabbit://{USER}:{PASSWORD}@{_ADDRESS}:{topology.PORTS["amqp"]}/')


def connection(database: str) -> str:
    """Return the SQLAlchemy URL of one of DATABASES."""
    return (f'mysql+pymysql://{USER}:{PASSWORD}@{_ADDRESS}/{database}'
            f'?charset=utf8mb3')


class Database(fixtures.Fixture):
    """MariaDB on the controller.

    Filling the databases takes as long as the rest of the control plane, so
    the filled databases are kept for later runs.
    """

    _SOCKET = '/run/mariadb.sock'

    def __init__(self, host: host.Host, seed: pathlib.Path) -> None:
        """Remember whether the seed exists, as `filled`.

        :param seed: the directory of filled databases, which `keep` makes
        """
        self.host = host
        self.seed = seed
        self.filled = seed.exists()
        self._data = host.root / 'mysql'
        self._client = ('mariadb', f'--socket={self._SOCKET}', '--user=root')

    def _setUp(self) -> None:
        if self.filled:
            shutil.copytree(self.seed, self._data)
        else:
            self._install()
        self._start()
        if not self.filled:
            self.host.run(*self._client, input=''.join(
                [f"CREATE DATABASE {name} CHARACTER SET utf8mb3;"
                 f"GRANT ALL ON {name}.* TO '{USER}'@'%' "
                 f"IDENTIFIED BY '{PASSWORD}';" for name in DATABASES]))

    def _install(self) -> None:
        self._data.mkdir()
        process.run(['mariadb-install-db', '--no-defaults', '--user=root',
                     f'--datadir={self._data}', '--skip-test-db',
                     '--auth-root-authentication-method=normal'],
                    log=self.host.log('mariadb-install'))

    def _start(self) -> None:
        self._daemon = self.host.start(
            'mariadb', 'mariadbd', '--no-defaults', '--user=root',
            f'--datadir={self._data}', f'--socket={self._SOCKET}',
            '--pid-file=/run/mariadb.pid', f'--bind-address={_ADDRESS}',
            '--innodb-flush-log-at-trx-commit=0', '--skip-log-bin',
            '--max-connections=500', '--sync-frm=0')
        self._daemon.wait_for('MariaDB answers', lambda: self.host.succeeds(
            *self._client, '--execute=select 1'))

    def keep(self) -> None:
        """Make the seed from the databases; no client may be connected."""
        self._daemon.stop()
        copy = self.seed.with_suffix('.new')
        shutil.rmtree(copy, ignore_errors=True)
        for old in _other_versions(self.seed):
            shutil.rmtree(old)
        shutil.copytree(self._data, copy)
        copy.rename(self.seed)
        self._start()


def _other_versions(seed: pathlib.Path) -> Iterable[pathlib.Path]:
    """Return all paths whose name is the same up to the last dash."""
    return seed.parent.glob(f'{seed.name.rpartition("-")[0]}-*')


class Broker(fixtures.Fixture):
    """RabbitMQ on the controller."""

    def __init__(self, host: host.Host) -> None:
        self.host = host

    def _setUp(self) -> None:
        state = self.host.root / 'rabbitmq'
        state.mkdir()
        self.host.write('etc/rabbitmq.conf', (
            f'loopback_users = none\n'
            f'listeners.tcp.1 = {_ADDRESS}:{topology.PORTS["amqp"]}\n'
            f'default_user = {USER}\n'
            f'default_pass = {PASSWORD}\n'))
        environment = {
            'HOME': state,
            'RABBITMQ_NODENAME': f'rabbit@{self.host.name}',
            'RABBITMQ_CONFIG_FILE': self.host.root / 'etc/rabbitmq',
            'RABBITMQ_MNESIA_BASE': state / 'mnesia',
            'RABBITMQ_LOG_BASE': state / 'log',
            'RABBITMQ_PID_FILE': state / 'pid',
            'RABBITMQ_ENABLED_PLUGINS_FILE': state / 'enabled_plugins',
            'ERL_EPMD_ADDRESS': _ADDRESS,
            # Idle schedulers must not spin: the machine may have few CPUs.
            'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS': '+S 1:1 +sbwt none',
        }
        daemon = self.host.start(
            'rabbitmq', '/usr/lib/rabbitmq/bin/rabbitmq-server',
            env=environment)
        daemon.wait_for('RabbitMQ answers', lambda: answers(
            self.host, topology.PORTS['amqp']))


def answers(host: host.Host, port: int) -> bool:
    """Return whether *host* listens on TCP *port*, on any address."""
    table = host.run('ss', '--listening', '--numeric', '--tcp',
                     '--no-header', f'sport = :{port}')
    return bool(table.strip())
