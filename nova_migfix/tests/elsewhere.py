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

"""Commands of the documentation that no test runs exactly as shown."""

import fnmatch
from typing import NamedTuple


class Elsewhere(NamedTuple):
    """The reason why a command is not run from its page, and its substitute.

    :ivar page: path of the page, relative to doc/source or the checkout
    :ivar command: a shell pattern that matches the whole command
    :ivar by: the substitute: a module of tests, ``tox -e ENVIRONMENT``, or a
        scenario of the lab as ``lab NAME``; '' if only a human can run it
    :ivar why: the reason
    """

    page: str
    command: str
    by: str
    why: str


_SELF = 'It installs a machine and runs for long: it is what runs the tests.'
_GERRIT = 'It needs an account at OpenDev.'

TABLE = tuple(Elsewhere(*row) for row in (
    ('README.rst', 'pip *', 'nova_migfix.tests.kolla.test_documentation',
     'Those of install/pip.rst are run there; they name a wheel.'),
    ('CONTRIBUTING.rst', 'tools/run_*', '', _SELF),
    ('CONTRIBUTING.rst', 'tox -e *',
     'nova_migfix.tests.documentation.test_tox',
     'Its environments have to exist; they are what runs the tests.'),
    ('fixes/post_copy.rst', 'virsh domstate *', 'lab cut-post-copy',
     'It needs a migration in post-copy.'),
    ('install/index.rst', 'ssh <live_migration_inbound_addr*',
     'lab image-gone-ssh', 'It needs another host.'),
    ('install/rollout.rst', 'docker exec *nova-migfix-status heal*',
     'nova_migfix.tests.unit.status.test_heal', 'It needs a libvirt.'),
    ('contributor/fix.rst', 'tools/run_lab.sh*', 'lab queues-grow', _SELF),
    ('contributor/tests.rst', 'tox -e *',
     'nova_migfix.tests.documentation.test_tox', _SELF),
    ('contributor/tests.rst', 'NOVA_MIGFIX_DIFFERENTIAL=whole tox -e *',
     'nova_migfix.tests.functional.test_differential',
     'It takes an hour; the other tests run a part of it.'),
    ('contributor/tests.rst', 'NOVA_MIGFIX_EXAMPLES=* tox -e *',
     'nova_migfix.tests.functional.tls.test_prediction',
     'It takes long; the other tests run a part of it.'),
    ('contributor/releases.rst', 'diff *', '', 'It needs two Novas.'),
    ('contributor/lab.rst', 'tools/run_lab.sh', '', _SELF),
    ('patches/index.rst', 'tools/run_patches.sh*', 'tox -e patches',
     _SELF),
    ('patches/images.rst', 'tox -e kolla-patches*',
     'nova_migfix.tests.unit.test_patches', 'What it runs is run there.'),
    ('patches/images.rst', 'kolla-build --patches-path*',
     'nova_migfix.tests.kolla.test_images',
     'It builds images; there one is rendered, and its step taken.'),
    ('patches/images.rst', 'for patch in*', '',
     'It needs the source package of a distribution.'),
    ('patches/images.rst', 'd[cp]*', '',
     'It needs the source package of a distribution.'),
    ('patches/upstream.rst', 'git clone*', '', _GERRIT),
    ('patches/upstream.rst', 'cd nova', '', _GERRIT),
    ('patches/upstream.rst', 'git review*', '', _GERRIT),
    ('patches/upstream.rst', 'git checkout*', 'tox -e patches',
     'It needs a clone of Nova; the series are applied to releases there.'),
    ('patches/upstream.rst', 'for patch in*', 'tox -e patches',
     'It needs a clone of Nova; the series are applied to releases there.'),
    ('patches/upstream.rst', 'git rebase*', 'tox -e patches',
     'It needs a clone of Nova; the series are applied to releases there.'),
    ('patches/upstream.rst', 'git cherry-pick*', '', _GERRIT),
    ('patches/upstream.rst', 'tox -e *', 'tox -e patches',
     'The environments are Nova\'s; its checks and tests are run there.'),
))


def find(page, command):
    """Return the first entry for a command, None if a test must run it."""
    return next((entry for entry in TABLE if entry.page == page
                 and fnmatch.fnmatchcase(command, entry.command)), None)
