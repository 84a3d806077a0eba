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

"""The configuration files of the services, as tables."""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
from typing import Any

from lab import environments
from lab import host
from lab import hypervisor
from lab import infrastructure
from lab import topology

# {section: {option: value}}, and {(section, option): value}
Sections = dict[str, dict[str, Any]]
Options = Mapping[tuple[str, str], Any]

REGION = 'RegionOne'
PASSWORD = infrastructure.PASSWORD
AUTH_URL = topology.url('identity', '/v3')

# The credentials of a service at keystone.
_SERVICE_USER = {
    'auth_type': 'password',
    'auth_url': AUTH_URL,
    'project_domain_name': 'Default',
    'user_domain_name': 'Default',
    'project_name': 'service',
    'username': 'service',
    'password': PASSWORD,
    'region_name': REGION,
}

_AUTHTOKEN = {**_SERVICE_USER,
              'www_authenticate_uri': topology.url('identity')}

_FLAT_NETWORK = 'physnet1'


def render(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """Return *sections* as the text of an oslo.config file."""
    text = []
    for section, options in sections.items():
        text.append(f'[{section}]')
        text += [f'{option} = {_value(value)}'
                 for option, value in options.items()]
    return '\n'.join(text) + '\n'


def write(host: host.Host, place: str,
          sections: Mapping[str, Mapping[str, Any]]) -> pathlib.Path:
    """Write *sections* to a file of *host*; return its path."""
    return host.write(place, render(sections))


def _value(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def keystone(host: host.Host) -> Sections:
    etc = host.root / 'etc/keystone'
    return {
        'DEFAULT': {'log_file': host.log('keystone')},
        'database': {'connection': infrastructure.connection('keystone')},
        'token': {'provider': 'fernet', 'expiration': 86400},
        'fernet_tokens': {'key_repository': etc / 'fernet-keys'},
        'credential': {'key_repository': etc / 'credential-keys'},
    }


def placement(host: host.Host) -> Sections:
    return {
        'DEFAULT': {'log_file': host.log('placement')},
        'placement_database': {
            'connection': infrastructure.connection('placement')},
        'api': {'auth_strategy': 'keystone'},
        'keystone_authtoken': _AUTHTOKEN,
    }


def glance(host: host.Host, venv: environments.Venv) -> Sections:
    return {
        'DEFAULT': {'log_file': host.log('glance'),
                    'enabled_backends': 'files:file'},
        'database': {'connection': infrastructure.connection('glance')},
        'paste_deploy': {'flavor': 'keystone', 'config_file': venv.etc(
            'glance/glance-api-paste.ini')},
        'glance_store': {'default_backend': 'files'},
        'files': {'filesystem_store_datadir': host.root / 'images'},
        'keystone_authtoken': _AUTHTOKEN,
    }


def neutron(host: host.Host, venv: environments.Venv) -> Sections:
    state = host.root / 'neutron'
    return {
        'DEFAULT': {
            'log_file': host.log('neutron'),
            'state_path': state,
            'api_paste_config': venv.etc('neutron/api-paste.ini'),
            'transport_url': infrastructure.TRANSPORT_URL,
            'core_plugin': 'ml2',
            'service_plugins': '',
            'auth_strategy': 'keystone',
            'notify_nova_on_port_status_changes': True,
            'notify_nova_on_port_data_changes': True,
            'rpc_workers': 1,
            'rpc_state_report_workers': 0,
            'api_workers': 1,
            'dhcp_agent_notification': False,
        },
        'database': {'connection': infrastructure.connection('neutron')},
        'nova': _SERVICE_USER,
        'placement': _SERVICE_USER,
        'oslo_concurrency': {'lock_path': state / 'lock'},
        'keystone_authtoken': _AUTHTOKEN,
        'ml2': {
            'type_drivers': 'flat',
            'tenant_network_types': '',
            'mechanism_drivers': 'openvswitch',
            'extension_drivers': '',
        },
        'ml2_type_flat': {'flat_networks': _FLAT_NETWORK},
        'securitygroup': {'enable_security_group': False,
                          'firewall_driver': 'noop'},
    }


# The privsep contexts of the Open vSwitch agent; each has its own daemon.
_NEUTRON_PRIVSEP = ('privsep', 'privsep_dhcp_release', 'privsep_ovs_vsctl',
                    'privsep_namespace', 'privsep_conntrack', 'privsep_link')


def openvswitch_agent(host: host.Host, venv: environments.Venv,
                      path: str) -> Sections:
    """Return the configuration of the Open vSwitch agent.

    :param path: of this file, below the directory of the host
    """
    state = host.root / 'neutron'
    helper = f'{venv.bin("privsep-helper")} --config-file {host.root / path}'
    return {
        'DEFAULT': {
            'log_file': host.log('openvswitch-agent'),
            'state_path': state,
            'transport_url': infrastructure.TRANSPORT_URL,
            'core_plugin': 'ml2',
        },
        'oslo_concurrency': {'lock_path': state / 'lock'},
        'ovs': {
            'bridge_mappings': f'{_FLAT_NETWORK}:br-provider',
            'datapath_type': 'netdev',
            'ovsdb_connection': hypervisor.Switch.SOCKET,
            'of_listen_address': '127.0.0.1',
        },
        'agent': {'tunnel_types': '', 'root_helper': '/usr/bin/env',
                  'polling_interval': 1},
        'securitygroup': {'enable_security_group': False,
                          'firewall_driver': 'noop'},
        **{context: {'helper_command': helper}
           for context in _NEUTRON_PRIVSEP},
    }


def _nova(host: host.Host, state: pathlib.Path) -> Sections:
    return {
        'DEFAULT': {
            'state_path': state,
            'my_ip': topology.MANAGEMENT.address(host.name),
            'transport_url': infrastructure.TRANSPORT_URL,
            'debug': True,
            # The logs are evidence; the values of all options are none.
            'log_options': False,
        },
        'glance': {'api_servers': topology.url('image')},
        'placement': _SERVICE_USER,
        'neutron': _SERVICE_USER,
        'cinder': _SERVICE_USER,
        'service_user': {**_SERVICE_USER, 'send_service_user_token': True},
        'keystone_authtoken': _AUTHTOKEN,
        'oslo_concurrency': {'lock_path': f'{state}/lock'},
    }


def nova_controller(host: host.Host) -> Sections:
    result = _nova(host, host.root / 'nova')
    result['DEFAULT'].update({'log_dir': host.root / 'log',
                              'max_local_block_devices': -1})
    return {
        **result,
        'api_database': {'connection': infrastructure.connection('nova_api')},
        'database': {'connection': infrastructure.connection('nova')},
        'scheduler': {'workers': 1},
        'conductor': {'workers': 1},
    }


# The privsep contexts in which nova-compute and os-vif run as root.
_NOVA_PRIVSEP = ('nova_sys_admin', 'vif_plug_ovs_privileged',
                 'vif_plug_linux_bridge_privileged', 'privsep_osbrick')


def nova_compute(host: host.Host, venv: environments.Venv, path: str,
                 environment: Mapping[str, object],
                 options: Options) -> Sections:
    """Return nova.conf of a compute host.

    :param path: of this file, below the directory of the host
    :param environment: of the privsep daemons of nova-compute
    :param options: additional or other options: ``{(section, option): value}``
    """
    result = _nova(host, host.home)
    result['DEFAULT'].update({
        'log_file': host.log('nova-compute'),
        'compute_driver': 'libvirt.LibvirtDriver',
        'instances_path': instances(host.own),
        'vif_plugging_timeout': 120,
        'resume_guests_state_on_host_boot': False,
        'reserved_host_memory_mb': 64,
        'ram_allocation_ratio': 8,
        'cpu_allocation_ratio': 16,
        # Disks are almost empty, and guests ignore the power button.
        'disk_allocation_ratio': 64,
        'shutdown_timeout': 1,
    })
    helper = ' '.join(['sudo', '--non-interactive', *[
        f'{name}={value}' for name, value in environment.items()],
        f'{venv.bin("privsep-helper")} --config-file {host.root / path}'])
    result.update({
        'os_vif_ovs': {'ovsdb_connection': hypervisor.Switch.ADDRESS,
                       'isolate_vif': False},
        'workarounds': {'skip_cpu_compare_on_dest': True},
        'compute': {'live_migration_wait_for_vif_plug': False},
        'vnc': {'enabled': False},
        'libvirt': {
            'virt_type': 'kvm',
            'cpu_mode': 'none',
            # as Kolla Ansible sets it; requires a password
            'connection_uri': 'qemu+tcp://'
                f'{topology.MANAGEMENT.address(host.name)}/system',
            'live_migration_inbound_addr':
                topology.MIGRATION.address(host.name),
            'max_queues': 4,
            'remote_filesystem_transport': 'ssh',
            'live_migration_permit_auto_converge': False,
            'live_migration_timeout_action': 'abort',
        },
        **{context: {'helper_command': helper} for context in _NOVA_PRIVSEP},
    })
    for (section, option), value in options.items():
        result.setdefault(section, {})[option] = value
    return result


def instances(base: pathlib.Path) -> pathlib.Path:
    """Return the directory of the guests' files, below *base*."""
    return base / 'nova/instances'
