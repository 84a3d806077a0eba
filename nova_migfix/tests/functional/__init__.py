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

"""Functional tests on Nova's in-process cloud with two computes.

Importing this package prepares the installed Nova for such tests, in each
release and before other modules of Nova or eventlet are imported.
"""

import os
import sys

# As in Nova's own tests: eventlet, unless the caller sets the variable.
os.environ.setdefault('OS_NOVA_DISABLE_EVENTLET_PATCHING', 'False')

# Up to Nova 31 the import patches; from 32 on this needs a call, which Nova's
# functional package of 32 lacks.
from nova import monkey_patch  # noqa: E402

if hasattr(monkey_patch, 'patch'):
    monkey_patch.patch()

import nova.conf.paths  # noqa: E402
from oslo_config import cfg  # noqa: E402

# Nova's tests look for etc/nova beside the package, as in a source tree; a
# wheel puts it into the root of the environment.
if not os.path.isdir(os.path.join(os.path.dirname(nova.__path__[0]), 'etc')):
    cfg.set_defaults(nova.conf.paths.ALL_OPTS, pybasedir=sys.prefix)
