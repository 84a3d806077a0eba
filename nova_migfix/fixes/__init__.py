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

"""Finding and loading the fixes that are switched on."""

from __future__ import annotations

from collections.abc import Sequence

from nova import exception
from nova.i18n import _
from oslo_log import log as logging
from stevedore import named

from nova_migfix.fixes import base

LOG = logging.getLogger(__name__)

NAMESPACE = 'nova_migfix.fixes'


def load(enabled: Sequence[str] | None) -> tuple[base.Fix, ...]:
    """Load the fixes, and log what became of each that is registered.

    :param enabled: names of fixes, None for all that are registered
    :returns: those in force, in the order of their names
    :raises InvalidConfiguration: a name is unknown or a fix cannot be loaded;
        a host that lacks a fix it was configured with would harm guests
        silently, so nova-compute must not start
    """
    def failed(manager, entry_point, error):  # type: ignore[no-untyped-def]
        raise exception.InvalidConfiguration(_(
            'The fix %(name)s cannot be loaded from %(value)s: %(error)s. '
            'Mend the installation, or leave it out of [migfix] '
            'enabled_fixes.') % {
                'name': entry_point.name, 'value': entry_point.value,
                'error': error}) from error

    manager = named.NamedExtensionManager(
        NAMESPACE, names=[], on_load_failure_callback=failed)
    known = sorted({point.name for point in manager.list_entry_points()})
    wanted = set(known if enabled is None else enabled)
    if unknown := sorted(wanted.difference(known)):
        raise exception.InvalidConfiguration(_(
            '[migfix] enabled_fixes names unknown fixes: %(unknown)s. '
            'Known are: %(known)s.') % {
                'unknown': ', '.join(unknown), 'known': ', '.join(known)})
    manager = named.NamedExtensionManager(
        NAMESPACE, names=sorted(wanted), name_order=True,
        on_load_failure_callback=failed)
    classes = {extension.name: extension.plugin for extension in manager}
    return tuple(
        classes[name]() for name in known if _in_force(name, classes))


def _in_force(name: str, classes: dict[str, type[base.Fix]]) -> bool:
    if name not in classes:
        LOG.info('Fix %s: switched off by [migfix] enabled_fixes', name)
        return False
    if reason := classes[name].not_needed():
        LOG.info('Fix %(name)s: not needed in this Nova, %(reason)s',
                 {'name': name, 'reason': reason})
        return False
    LOG.info('Fix %(name)s: active (%(bug)s)',
             {'name': name, 'bug': classes[name].bug})
    return True
