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

"""Keystone, Glance, Placement, Neutron and Nova on the controller."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import pathlib
import sys
from typing import Any

import fixtures
import openstack

from lab import configuration
from lab import environments
from lab import host
from lab import infrastructure
from lab import process
from lab import topology

# A program and its arguments.
Command = tuple[Any, ...]

# Seconds in which a service has to answer.
_ANSWER = 240

# oslo.config parses sys.argv, which has gunicorn's arguments.
_GUNICORN = '''
import sys

timeout = 300
# longer than clients keep idle connections
keepalive = 75

def post_fork(server, worker):
    sys.argv = ['api']
'''


@dataclasses.dataclass(frozen=True)
class Api:
    """One WSGI application."""

    name: str
    service: str            # a key of topology.PORTS
    environment: Mapping[str, str]  # values are paths below etc/
    wsgi: str
    worker: str = 'gthread'


_APIS = (
    Api('keystone', 'identity', {'OS_KEYSTONE_CONFIG_DIR': 'keystone'},
        'keystone.wsgi.api:application'),
    Api('placement', 'placement', {'OS_PLACEMENT_CONFIG_DIR': 'placement'},
        'placement.wsgi.api:application'),
    Api('glance', 'image', {'OS_GLANCE_CONFIG_DIR': 'glance'},
        'glance.wsgi.api:application'),
    Api('neutron-api', 'network',
        {'OS_NEUTRON_CONFIG_FILES': 'neutron/neutron.conf'},
        'neutron.wsgi.api:application'),
)

# The endpoints that keystone-manage bootstrap does not create.
_ENDPOINTS = {
    'image': topology.url('image'),
    'placement': topology.url('placement'),
    'compute': topology.url('compute', '/v2.1'),
    'network': topology.url('network'),
}


class ControlPlane(fixtures.Fixture):
    """The APIs and their workers, those of Nova from an unmodified one."""

    def __init__(self, host: host.Host, venvs: environments.Environments,
                 cache: pathlib.Path) -> None:
        self.host = host
        self._cache = cache
        self.control = venvs.control
        self.nova = venvs.nova[environments.STOCK]
        self._series = venvs.series

    def _setUp(self) -> None:
        self._configure()
        database = self.useFixture(
            infrastructure.Database(self.host, self._seed()))
        self._in_turn(*self._keys())
        if not database.filled:
            process.in_parallel(*[
                functools.partial(self._in_turn, *chain)
                for chain in self._chains()])
            database.keep()
        self._start_apis()

    def _seed(self) -> pathlib.Path:
        """Return the path of the filled databases; it names their inputs."""
        digest = hashlib.sha256()
        for venv in (self.control, self.nova):
            digest.update(venv.made_of().encode())
        for module in (sys.modules[__name__], infrastructure, topology):
            digest.update(pathlib.Path(str(module.__file__)).read_bytes())
        digest.update(process.run(['mariadbd', '--version']).encode())
        name = f'{self.nova.path.name}-databases-{digest.hexdigest()[:16]}'
        return self._cache / name

    def _configure(self) -> None:
        host, venv = self.host, self.control
        for place, sections in (
                ('keystone/keystone.conf', configuration.keystone(host)),
                ('placement/placement.conf', configuration.placement(host)),
                ('glance/glance-api.conf', configuration.glance(host, venv)),
                ('neutron/neutron.conf', configuration.neutron(host, venv)),
                ('nova/nova.conf', configuration.nova_controller(host))):
            configuration.write(host, f'etc/{place}', sections)
        # Nova's application reads it from the directory of nova.conf.
        host.write('etc/nova/api-paste.ini',
                   self.nova.etc('nova/api-paste.ini').read_text())
        host.write('etc/gunicorn.py', _GUNICORN)
        host.write('etc/openrc', openrc())
        for key in ('fernet-keys', 'credential-keys'):
            (host.root / 'etc/keystone' / key).mkdir(mode=0o700)
        (host.root / 'images').mkdir()

    def _etc(self, place: str) -> pathlib.Path:
        return self.host.root / 'etc' / place

    @property
    def _keystone_manage(self) -> Command:
        return (self.control.bin('keystone-manage'), '--config-file',
                self._etc('keystone/keystone.conf'))

    def _keys(self) -> tuple[Command, ...]:
        """Return the commands that make keystone's keys."""
        owner = ('--keystone-user', 'root', '--keystone-group', 'root')
        return ((*self._keystone_manage, 'fernet_setup', *owner),
                (*self._keystone_manage, 'credential_setup', *owner))

    def _chains(self) -> tuple[tuple[Command, ...], ...]:
        """Return two independent lists of commands that fill the databases."""
        keystone = self._keystone_manage
        nova = (self.nova.bin('nova-manage'), '--config-file',
                self._etc('nova/nova.conf'))
        identity = topology.url('identity', '/v3')
        return (
            ((*keystone, 'db_sync'),
             (*keystone, 'bootstrap', '--bootstrap-password',
              configuration.PASSWORD, '--bootstrap-admin-url', identity,
              '--bootstrap-public-url', identity, '--bootstrap-internal-url',
              identity, '--bootstrap-region-id', configuration.REGION),
             (self.control.bin('glance-manage'), '--config-file',
              self._etc('glance/glance-api.conf'), 'db_sync'),
             (self.control.bin('placement-manage'), '--config-file',
              self._etc('placement/placement.conf'), 'db', 'sync')),
            ((self.control.bin('neutron-db-manage'), '--config-file',
              self._etc('neutron/neutron.conf'), 'upgrade', 'heads'),
             (*nova, 'api_db', 'sync'),
             (*nova, 'cell_v2', 'map_cell0', '--database_connection',
              infrastructure.connection('nova_cell0')),
             (*nova, 'db', 'sync'),
             (*nova, 'cell_v2', 'create_cell', '--name', 'cell1')),
        )

    def _in_turn(self, *commands: Command) -> None:
        for command in commands:
            log = self.host.log(f'setup-{command[0].name}')
            self.host.run(*command, log=log, timeout=400)

    def _start_apis(self) -> None:
        apis = (*_APIS, Api(
            'nova-api', 'compute', {'OS_NOVA_CONFIG_DIR': 'nova'},
            self._series.wsgi, self._series.worker))
        daemons = [self._start_api(api) for api in apis]
        for api, daemon in zip(apis, daemons):
            daemon.wait_for(f'{api.name} answers', functools.partial(
                self.host.succeeds, 'curl', '--silent', '--output',
                '/dev/null', topology.url(api.service)))

    def _start_api(self, api: Api) -> process.Daemon:
        venv = self.nova if api.service == 'compute' else self.control
        size = (('--workers', '4') if api.worker == 'sync'
                else ('--workers', '1', '--threads', '8'))
        address = topology.url(api.service).split('//')[1]
        environment = {key: self._etc(place)
                       for key, place in api.environment.items()}
        return self.host.start(
            api.name, venv.bin('gunicorn'), '--config',
            self._etc('gunicorn.py'), '--worker-class', api.worker, *size,
            '--bind', address, api.wsgi,
            env=environment)

    def start_workers(self) -> None:
        """Start the workers, which need the service user."""
        for name in ('nova-conductor', 'nova-scheduler'):
            self.host.start(name, self.nova.bin(name), '--config-file',
                            self._etc('nova/nova.conf'))
        self.host.start('neutron-rpc', self.control.bin('neutron-rpc-server'),
                        '--config-file', self._etc('neutron/neutron.conf'))

    def discover_computes(self) -> None:
        self.host.run(self.nova.bin('nova-manage'), '--config-file',
                      self._etc('nova/nova.conf'), 'cell_v2',
                      'discover_hosts',
                      log=self.host.log('setup-nova-manage'))


def credentials() -> dict[str, Any]:
    """Return the SDK's arguments for the administrator."""
    return {
        'auth_url': configuration.AUTH_URL,
        'username': 'admin',
        'password': configuration.PASSWORD,
        'project_name': 'admin',
        'user_domain_name': 'Default',
        'project_domain_name': 'Default',
        'region_name': configuration.REGION,
    }


def openrc() -> str:
    """Return the same as a shell script, for use after a login."""
    lines = [f'export OS_{key.upper()}={value}'
             for key, value in credentials().items()]
    return '\n'.join([*lines, 'export OS_IDENTITY_API_VERSION=3',
                      'export PYTHONWARNINGS=ignore']) + '\n'


def connect() -> Any:
    """Return an openstacksdk connection.

    It works inside the controller's network namespace only.
    """
    return openstack.connect(
        load_yaml_config=False, load_envvars=False, api_timeout=_ANSWER,
        compute_default_microversion='2.90', **credentials())


def make_service_user() -> None:
    """Create the user of all services, and the endpoints of the services.

    Only connections that are made afterwards see these endpoints.
    """
    identity = connect().identity
    project = identity.create_project(name='service', domain_id='default')
    user = identity.create_user(
        name='service', password=configuration.PASSWORD, domain_id='default',
        default_project_id=project.id)
    roles = {role.name: role for role in identity.roles()}
    for name in ('admin', 'service'):
        role = roles.get(name) or identity.create_role(name=name)
        identity.assign_project_role_to_user(project, user, role)
    for service, endpoint in _ENDPOINTS.items():
        created = identity.create_service(name=service, type=service)
        for interface in ('public', 'internal', 'admin'):
            identity.create_endpoint(
                service_id=created.id, interface=interface, url=endpoint,
                region_id=configuration.REGION)


def login_hint(hosts: Mapping[str, host.Host],
               venv: environments.Venv) -> list[str]:
    """Return lines that say how to log in to a lab that is left up."""
    hint = [f'{name}: {" ".join(host.enter("bash"))}'
            for name, host in hosts.items()]
    controller = hosts[topology.CONTROLLER]
    return [*hint, f'then on the {controller.name}: '
                   f'source {controller.root}/etc/openrc; '
                   f'{venv.bin("openstack")} server list']


