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

"""The real openstack client, in this process, and the API of Nova's cloud."""

import contextlib
import io
import json
import logging
import pathlib
import shlex
from typing import NamedTuple
from unittest import mock

import fixtures
from openstackclient import shell
from wsgi_intercept import interceptor

# Services that the client asks for the names of Nova's IDs.
_OTHERS = {'identity': 'v3', 'image': 'v2'}


class Ran(NamedTuple):
    code: int
    out: str
    err: str


class Client(fixtures.Fixture):
    """The command ``openstack``, for an administrator."""

    def __init__(self, api):
        """:param api: Nova's OSAPIFixture"""
        self._api = api

    def _setUp(self):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        config = directory / 'clouds.yaml'
        config.write_text(json.dumps({'clouds': {'here': self._cloud()}}))
        for name, value in (('OS_CLIENT_CONFIG_FILE', str(config)),
                            ('OS_CLOUD', 'here'), ('COLUMNS', '200')):
            self.useFixture(fixtures.EnvironmentVariable(name, value))
        for service, version in _OTHERS.items():
            self._serve(service, version)
        # Nova's fixture accepts any user who claims to be an administrator.
        self.useFixture(fixtures.MockPatch(
            'keystoneauth1.token_endpoint.Token.get_headers', autospec=True,
            return_value={
                'X-Auth-User': 'admin', 'X-User-Id': 'admin',
                'X-Roles': 'admin,member,reader',
                'X-Auth-Project-Id': self._api.project_id}))

    def _cloud(self):
        endpoints = {
            f'{service}_endpoint_override': f'http://{service}/{version}'
            for service, version in _OTHERS.items()}
        return {'auth_type': 'admin_token', 'identity_api_version': '3',
                'auth': {'token': 'none', 'endpoint': self._api.api.base_url},
                **endpoints}

    def _serve(self, service, version):
        """Answer with empty lists, in the only version of the API."""
        described = {'id': f'{version}.0', 'status': 'stable', 'links': [
            {'rel': 'self', 'href': f'http://{service}/{version}'}]}
        empty = {name: [] for name in ('images', 'projects', 'users')}

        def application(environ, start_response):
            start_response('200 OK', [('Content-Type', 'application/json')])
            return [json.dumps({
                'version': described, 'versions': [described], **empty,
            }).encode()]

        intercept = interceptor.RequestsInterceptor(
            lambda: application, url=f'http://{service}')
        intercept.install_intercept()
        self.addCleanup(intercept.uninstall_intercept)

    def run(self, command, answer=''):
        """Run a command as it is shown; return its result.

        :param answer: the answer to its question
        """
        program, *arguments = shlex.split(command)
        if program != 'openstack':
            raise ValueError(command)
        with contextlib.redirect_stdout(io.StringIO()) as out, \
                contextlib.redirect_stderr(io.StringIO()) as err, \
                mock.patch.object(logging.getLogger('nova'), 'propagate',
                                  False), \
                mock.patch('getpass.getpass', return_value=answer):
            # The client shows what is logged, and Nova logs here as well.
            application = shell.OpenStackShell()
            application.stdout = out
            code = application.run(arguments)
        return Ran(code, out.getvalue(), err.getvalue())
