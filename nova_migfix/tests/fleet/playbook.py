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

"""Run playbooks of ``ansible/`` with this machine as all hosts."""

import json
import os
import pathlib
import re
import subprocess
import sys

import fixtures

from nova_migfix.tests import pages

BIN = pathlib.Path(sys.executable).parent
PLAYBOOKS = pages.CHECKOUT / 'ansible'
_LIMIT = 300    # seconds

_RECAP = re.compile(r'^(\S+) +: ok=\d+ +changed=(\d+) .*failed=(\d+)',
                    re.MULTILINE)

# A fake container engine: the name of the container is that of a directory,
# which has the output and the exit code of a command.
_ENGINE = '''#!/bin/sh
[ "$1 $3" = "exec nova-migfix-status" ] || exit 125
cd "$CONTAINERS/$2" 2>/dev/null || {
    echo "Error response from daemon: No such container: $2" >&2; exit 1; }
cat "$4.json" && exit "$(cat "$4.code")"
'''


class Ran:
    """The result of a run.

    :ivar changed: the number of changed tasks, by host
    """

    def __init__(self, done):
        self.code, self.out = done.returncode, done.stdout
        self.changed = {host: int(changed)
                        for host, changed, _ in _RECAP.findall(done.stdout)}


class Site(fixtures.Fixture):
    """A machine that runs Ansible, with an inventory."""

    def _setUp(self):
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.containers = self.path / 'containers'
        self.bin = self.path / 'bin'
        self.temporary = self.path / 'tmp'
        for directory in (self.containers, self.bin, self.temporary):
            directory.mkdir()
        for engine in ('docker', 'podman'):
            self.program(engine, _ENGINE)

    def program(self, name, text):
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def write_inventory(self, **hosts):
        """Write hosts as for Kolla Ansible, each with its own variables."""
        path = self.path / 'multinode.json'
        path.write_text(json.dumps({'compute': {
            'hosts': hosts, 'vars': {
                'ansible_connection': 'local',
                'ansible_python_interpreter': sys.executable}}}))
        return path

    def container(self, name, upgrade=None, preflight=None):
        """Set the JSON that nova-migfix-status prints in a container."""
        place = self.containers / name
        place.mkdir()
        for command, printed in (('upgrade', upgrade),
                                 ('preflight', preflight)):
            (place / f'{command}.json').write_text(json.dumps(printed))
            (place / f'{command}.code').write_text('1')

    @property
    def environment(self):
        return {**os.environ, 'ANSIBLE_HOME': str(self.path / 'ansible'),
                'ANSIBLE_NOCOLOR': '1', 'CONTAINERS': str(self.containers),
                'PATH': f'{self.bin}:{BIN}:{os.environ["PATH"]}',
                'PWD': str(self.path), 'PYTHONPATH': str(pages.CHECKOUT),
                'TMPDIR': str(self.temporary)}

    def run(self, playbook, *arguments, within=(), **variables):
        """Run a playbook.

        :param within: the prefix of the command
        """
        return Ran(subprocess.run(
            [*within, BIN / 'ansible-playbook', '--inventory',
             self.path / 'multinode.json', '--extra-vars',
             json.dumps(variables), *arguments, PLAYBOOKS / playbook],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=_LIMIT, cwd=self.path, env=self.environment))
