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

"""The release of the running Nova, and its features."""

from __future__ import annotations

import pkgutil

from nova import exception
from nova.i18n import _
from nova import version

OLDEST = 29
NEWEST = 34


def major() -> int:
    """Return the major version of the running Nova, 29 for 2024.1."""
    return int(version.version_string().split('.')[0])


def has(path: str) -> bool:
    """Return whether a module, or an object in one, exists.

    :param path: dotted path
    """
    try:
        pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return False
    return True


def require_supported() -> None:
    """Refuse a release on which the plugin has not been tested.

    :raises InvalidConfiguration: Nova is too old or too new
    """
    if not OLDEST <= major() <= NEWEST:
        raise exception.InvalidConfiguration(_(
            'nova_migfix supports Nova %(oldest)s to %(newest)s, this is '
            '%(version)s. Set [DEFAULT] compute_driver to '
            'libvirt.LibvirtDriver, or install a version of nova_migfix that '
            'supports it.') % {
                'oldest': OLDEST, 'newest': NEWEST,
                'version': version.version_string()})
