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
"""Running ``nova-migfix-status`` within a test."""

import contextlib
import io
import pathlib
from typing import NamedTuple

import fixtures
import nova.conf
from oslo_log import log as logging

from nova_migfix.cmd import status

CONF = nova.conf.CONF


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Command(fixtures.Fixture):
    """The command with a nova.conf; the configuration is as before after."""

    def __init__(self, config):
        self._config = config

    def _setUp(self):
        self.directory = pathlib.Path(
            self.useFixture(fixtures.TempDir()).path)
        self.write(self._config)
        self.addCleanup(self._forget)
        self._forget()

    def _forget(self):
        CONF.reset()
        CONF.unregister_opt(status.COMMAND)

    def write(self, config):
        self.path = self.directory / 'nova.conf'
        self.path.write_text(config)

    def run(self, *arguments):
        self._forget()
        with contextlib.redirect_stdout(io.StringIO()) as out, \
                contextlib.redirect_stderr(io.StringIO()) as err:
            code = status.main(['--config-file', str(self.path), *arguments])
        return Ran(code, out.getvalue(), err.getvalue())


logging.register_options(CONF)
