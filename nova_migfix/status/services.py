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
"""Read port bindings from Neutron, and lost images from Glance.

Uses nova-compute's own credentials and clients, with short timeouts.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
import time
from typing import Any

from keystoneauth1 import loading
import nova.conf
from nova import context as nova_context
from nova import exception
from nova.image import glance
from nova.network import neutron

from nova_migfix import status
from nova_migfix.status import recomputed

CONF = nova.conf.CONF

# Seconds to wait for one answer.
_TIMEOUT = 5
# Seconds after which no further image is requested from Glance.
_PATIENCE = 10


def ports() -> dict[str, recomputed.Binding]:
    """Return the bindings of this host's ports by MAC address in lower case.

    :raises Error: Neutron does not answer, or there are no credentials
    """
    _limit('neutron')
    try:
        client = neutron.get_client(
            nova_context.get_admin_context(), admin=True)
        found = client.list_ports(**{'binding:host_id': CONF.host})['ports']
        mtu = {network['id']: network.get('mtu') for network
               in client.list_networks(fields=['id', 'mtu'])['networks']}
    except Exception as error:
        raise status.Error(f'Neutron was not queried: {error}') from error
    return {port['mac_address'].lower(): recomputed.Binding(
        port['binding:vif_type'], port['binding:vnic_type'],
        port.get('binding:vif_details') or {},
        port.get('binding:profile') or {}, mtu.get(port['network_id']))
        for port in found}


def lost_images(images: Collection[str],
                note: Callable[[str], object]) -> frozenset[str]:
    """Return the images that Glance no longer has.

    :param note: is called if Glance is too slow to check all images
    :raises Error: Glance does not answer, or the credentials do not suffice
    """
    _limit('service_user')
    try:
        auth: Any = loading.load_auth_from_conf_options(CONF, 'service_user')
        session = loading.load_session_from_conf_options(
            CONF, 'service_user', auth=auth)
        access = auth.get_access(session)
        if 'admin' not in access.role_names:
            raise status.Error(
                'the user of [service_user] does not have the role admin and '
                'cannot see all images')
        context = nova_context.RequestContext(
            user_auth_plugin=auth, auth_token=access.auth_token)
        begin = time.monotonic()
        lost = set()
        for number, image in enumerate(sorted(images)):
            if time.monotonic() - begin > _PATIENCE:
                note(f'Glance is slow: {len(images) - number} of '
                     f'{len(images)} images were not checked. Whether these '
                     'are lost is not known.')
                break
            if _is_lost(context, image):
                lost.add(image)
        return frozenset(lost)
    except Exception as error:
        raise status.Error(f'Glance was not queried: {error}') from error


def _is_lost(context: nova_context.RequestContext, image: str) -> bool:
    try:
        glance.API().get(context, image, show_deleted=False)
    except exception.ImageNotFound:
        return True
    return False


def _limit(group: str) -> None:
    """Set the timeout of a service, and require its credentials.

    :raises Error: nova.conf has no credentials
    """
    if not CONF[group].auth_type:
        raise status.Error(
            f'{"Neutron" if group == "neutron" else "Glance"} was not '
            f'queried: there are no credentials in [{group}]')
    CONF.set_override('timeout', _TIMEOUT, group)
