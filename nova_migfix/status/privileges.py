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
"""Nova's privsep daemon, for actions that need root."""

from __future__ import annotations

from collections.abc import Callable
import logging
import os
import shlex
from typing import TypeVar

import nova.privsep
from nova import utils
from oslo_config import cfg
from oslo_privsep import priv_context

CONF = cfg.CONF

T = TypeVar('T')


def acquire() -> None:
    """Let Nova's privsep functions run in its daemon, as in nova-compute.

    The first call starts the daemon, by sudo and nova-rootwrap.
    """
    context = nova.privsep.sys_admin_pctxt
    # the exception has the error, so that it need not be logged
    logging.getLogger('oslo.privsep').setLevel(logging.CRITICAL + 1)
    priv_context.init(_without_password(utils.get_root_helper()))
    if own := context.conf.helper_command:
        CONF.set_override('helper_command', shlex.join(
            _without_password(own)), context.cfg_section)
    context.set_client_mode(True)


def call(function: Callable[[], T]) -> T:
    """Call one of Nova's privsep functions, as this user if that suffices.

    :raises OSError: the function failed
    :raises FailedToDropPrivileges: this user cannot start the daemon
    """
    nova.privsep.sys_admin_pctxt.set_client_mode(False)
    try:
        return function()
    except PermissionError:
        acquire()
        return function()


def _without_password(command: str) -> list[str]:
    """Make sudo fail instead of asking for a password."""
    program, *words = shlex.split(command)
    silent = ['-n'] if os.path.basename(program) == 'sudo' else []
    return [program, *silent, *words]
