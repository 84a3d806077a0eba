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

"""Find and load the enabled fixes."""

from __future__ import annotations

from collections.abc import Sequence
import enum
from typing import NamedTuple

from nova import exception
from nova.i18n import _
from oslo_log import log as logging
from stevedore import named

from nova_migfix.fixes import base

LOG = logging.getLogger(__name__)

NAMESPACE = 'nova_migfix.fixes'


class State(enum.Enum):
    """The state of a fix on this host; the value is the text for the log."""

    ACTIVE = 'active (%s)'
    NOT_NEEDED = 'not needed in this Nova, %s'
    OFF = 'switched off by %s'


class Found(NamedTuple):
    """A fix that an installed package registers."""

    name: str
    state: State
    #: the bug if the fix is active, else the reason why it is not
    reason: str
    #: None if the fix is switched off and so not loaded
    plugin: type[base.Fix] | None

    def __str__(self) -> str:
        return self.state.value % self.reason


def load(enabled: Sequence[str] | None) -> tuple[base.Fix, ...]:
    """Load the enabled fixes, and log the state of each registered fix.

    :param enabled: names of fixes, None for all registered fixes
    :returns: the active fixes, sorted by name
    :raises InvalidConfiguration: a name is unknown or a fix cannot be loaded;
        without a configured fix the host would harm guests silently, so
        nova-compute must not start
    """
    found = find(enabled)
    for fix in found:
        LOG.info('Fix %(name)s: %(state)s', {'name': fix.name, 'state': fix})
    return tuple(fix.plugin() for fix in found
                 if fix.plugin and fix.state is State.ACTIVE)


def find(enabled: Sequence[str] | None) -> list[Found]:
    """Return the registered fixes, sorted by name.

    :param enabled: see load
    :raises InvalidConfiguration: see load
    """
    def failed(manager, entry_point, error):  # type: ignore[no-untyped-def]
        raise exception.InvalidConfiguration(_(
            'The fix %(name)s cannot be loaded from %(value)s: %(error)s. '
            'Repair the installation, or remove the fix from [migfix] '
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
            'The known fixes are: %(known)s.') % {
                'unknown': ', '.join(unknown), 'known': ', '.join(known)})
    manager = named.NamedExtensionManager(
        NAMESPACE, names=sorted(wanted), name_order=True,
        on_load_failure_callback=failed)
    classes = {extension.name: extension.plugin for extension in manager}
    return [_found(name, classes) for name in known]


def _found(name: str, classes: dict[str, type[base.Fix]]) -> Found:
    plugin = classes.get(name)
    if plugin is None:
        return Found(name, State.OFF, '[migfix] enabled_fixes', None)
    if reason := plugin.not_needed():
        return Found(name, State.NOT_NEEDED, reason, plugin)
    return Found(name, State.ACTIVE, plugin.bug, plugin)
