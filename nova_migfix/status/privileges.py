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
"""Nova's own daemon, for what this user may not do."""

from __future__ import annotations

import logging
import os
import shlex

import nova.privsep
from nova import utils
from oslo_config import cfg
from oslo_privsep import priv_context

CONF = cfg.CONF


def acquire() -> None:
    """Have Nova's functions of privsep run in its daemon, as nova-compute.

    The first of them starts it, by sudo and nova-rootwrap.
    """
    context = nova.privsep.sys_admin_pctxt
    # oslo.log's name of it; what matters is in the exception, too
    logging.getLogger('oslo.privsep').setLevel(logging.CRITICAL + 1)
    priv_context.init(_without_password(utils.get_root_helper()))
    if own := context.conf.helper_command:
        CONF.set_override('helper_command', shlex.join(
            _without_password(own)), context.cfg_section)
    context.set_client_mode(True)


def _without_password(command: str) -> list[str]:
    """Have sudo fail where it would ask for one."""
    program, *words = shlex.split(command)
    silent = ['-n'] if os.path.basename(program) == 'sudo' else []
    return [program, *silent, *words]
