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


"""migrate_data crosses RPC between services of three kinds.

Each release has unmodified Nova and Nova with the plugin, some also Nova with
the patch set. The newest also has the patches for review, in which the object
has another version. Registering the plugin's class changes Nova's object in
the whole process, so each service is a process in the environment of its
release: see rpc_peer. Three things hold for each mixture: no service fails; no
service requests a backport that services with unmodified Nova would not
request; and the fields arrive where both computes know them, by the plugin or
by the patches.
"""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import fixtures
from oslo_concurrency import lockutils
import testtools

from nova_migfix import nova_release
from nova_migfix.tests import environments
from tools.patches import series

ROOT = pathlib.Path(__file__).parents[3]
PEER = pathlib.Path(__file__).with_name('rpc_peer.py')

#: The directory of the environments, which are kept between runs.
ENVIRONMENTS = pathlib.Path(
    os.environ.get('OS_RPC_ENVIRONMENTS', ROOT / '.tox' / 'rpc'))

ADDRESS = '192.0.2.1'

#: the newest release with the series for review, in which the object has
#: the next version
MASTER = 35

#: releases of source, conductor and destination; the conductor is upgraded
#: before the computes
RELEASES = (
    (31, 31, 31),
    (34, 34, 34),
    (31, 34, 34),
    (34, 34, 31),
    (34, MASTER, 34),
    (MASTER, MASTER, MASTER),
    (34, MASTER, MASTER),
    (MASTER, MASTER, 34),
    (33, 33, 32),
    # the last Python that Nova 29 supports
    *([(29, 30, 30)] if sys.version_info < (3, 12) else []),
)

STOCK, PLUGIN, PATCHED = 'stock', 'plugin', 'patched'
KINDS = {29: (STOCK, PLUGIN), 30: (STOCK, PLUGIN),
         31: (STOCK, PLUGIN, PATCHED), 32: (STOCK, PLUGIN),
         33: (STOCK, PLUGIN), 34: (STOCK, PLUGIN, PATCHED),
         MASTER: (PATCHED,)}
ROLES = ('source', 'conductor', 'destination')

#: the second number of the object's version
VERSIONS = {29: 11, 30: 12, 31: 13, 32: 13, 33: 14, 34: 14, MASTER: 15}

#: the capabilities of each destination that is not stock
ANNOUNCED = {'max_tap_queues': '256', 'pulls_ephemeral_bases': 'yes'}

#: how to make the other kinds from unmodified Nova
DRIVERS = {PLUGIN: 'migfix.LibvirtDriver'}


class Service:
    """A process that answers requests.

    :param paths: the Python path with the plugin or another Nova
    """

    def __init__(self, python, paths, release, kind, role):
        self.name = f'{role}-{release}-{kind}'
        self.kind = kind
        self.directory = tempfile.TemporaryDirectory()
        nova_conf = pathlib.Path(self.directory.name, 'nova.conf')
        nova_conf.write_text(
            '[DEFAULT]\n'
            'compute_driver = '
            f'{DRIVERS.get(kind, "libvirt.LibvirtDriver")}\n'
            f'instances_path = {self.directory.name}\n'
            'vif_plugging_timeout = 0\n'
            '[libvirt]\n' + (
                f'live_migration_inbound_addr = {ADDRESS}\n'
                if role == 'source' else '') +
            '[migfix]\n'
            'enabled_fixes = ephemeral,source_address,vnic\n')
        environ = {name: value for name, value in os.environ.items()
                   if not name.startswith(('PYTHON', 'OS_'))}
        environ['PYTHONPATH'] = os.pathsep.join(map(str, paths))
        self.stderr = open(
            pathlib.Path(self.directory.name, 'stderr'), 'w+')
        self.process = subprocess.Popen(
            [python, '-P', PEER, nova_conf], env=environ, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr)

    def ask(self, method, conductor=None, **arguments):
        """Return the answer and the backports that it needed."""
        self._say({'method': method, **arguments})
        backports = []
        while 'call' in (heard := self._hear()):
            backports.append(heard['versions']['LibvirtLiveMigrateData'])
            primitive, _ = conductor.ask(
                'backport', objinst=heard['objinst'],
                versions=heard['versions'])
            self._say(primitive)
        if 'error' in heard:
            raise AssertionError(f'{self.name} {method}: {heard["error"]}')
        return heard['answer'], backports

    def _say(self, message):
        self.process.stdin.write(json.dumps(message) + '\n')
        self.process.stdin.flush()

    def _hear(self):
        line = self.process.stdout.readline()
        if not line:
            self.stderr.seek(0)
            raise AssertionError(f'{self.name} ended: {self.stderr.read()}')
        return json.loads(line)

    def stop(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.stderr.close()
        self.directory.cleanup()


def install_plugin(venvs, python, target):
    """Install the plugin of this checkout without other packages."""
    with tempfile.TemporaryDirectory() as directory:
        # setuptools would leave its build in the checkout
        copy = pathlib.Path(directory, 'checkout')
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(
            '.*', '*.egg-info', '__pycache__', 'build', 'dist'))
        # a copy has no git to derive the version from; any version will do
        venvs.install(python, '--no-deps', '--target', target, copy,
                      PBR_VERSION='0.0.1')


class Migration:
    """The migrate_data of a live migration between three services.

    :ivar capabilities: the destination's capabilities that the source got
    :ivar fetched_from: the host that the destination fetched from
    :ivar backports: each method with the versions that it asked the conductor
        for
    """

    OURS = ('source_connect_addr', 'dest_capabilities')

    def __init__(self, source, conductor, destination):
        self.conductor = conductor
        self.backports = []
        data = self.ask(destination, 'check_destination')
        data = self.ask(source, 'check_source', migrate_data=data)
        self.capabilities = data['nova_object.data'].get('dest_capabilities')
        data = self.ask(destination, 'hand_on', migrate_data=data)
        data = self.ask(conductor, 'hand_on', migrate_data=data)
        data = self.ask(source, 'depart', migrate_data=data)
        data = self.ask(destination, 'arrive', migrate_data=data)
        self.fetched_from, _ = destination.ask('fetched_from')
        self.ask(source, 'hand_on', migrate_data=data)

    def ask(self, service, method, **arguments):
        data, backports = service.ask(method, self.conductor, **arguments)
        self.backports.append((method, backports))
        if service.kind == STOCK and any(
                name in data['nova_object.data'] for name in self.OURS):
            raise AssertionError(f'{service.name} says more than it knows')
        return data


class RpcMatrixTestCase(testtools.TestCase):

    def setUp(self):
        super().setUp()
        if nova_release.major() != nova_release.NEWEST:
            # Each run would be the same: the environments are its own.
            self.skipTest('runs with the newest Nova')
        try:
            installed = self.make_environments()
        except environments.IndexUnreachable as error:
            self.skipTest(f'the package index cannot be reached: {error}')
        # all at once: each takes some seconds to import Nova
        self.services = {
            (role, release, kind): Service(
                python, paths[kind], release, kind, role)
            for place, role in enumerate(ROLES)
            for release in {releases[place] for releases in RELEASES}
            for python, paths in [installed[release]]
            for kind in paths}
        for service in self.services.values():
            self.addCleanup(service.stop)

    def make_environments(self):
        """Return, by release, the interpreter and each kind's paths."""
        venvs = environments.Environments(ENVIRONMENTS)
        with lockutils.lock(
                'environments', external=True, lock_path=str(ENVIRONMENTS)):
            pythons = {release: venvs.python(min(release, nova_release.NEWEST))
                       for release in set(itertools.chain(*RELEASES))}
        plugin = self.useFixture(fixtures.TempDir()).path
        install_plugin(venvs, pythons[nova_release.NEWEST], plugin)
        where = {STOCK: lambda *_: (), PLUGIN: lambda *_: (plugin,),
                 PATCHED: self.patch}
        return {release: (python, {
            kind: where[kind](release, python) for kind in KINDS[release]})
            for release, python in pythons.items()}

    def patch(self, release, python):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        series.copy_patched(
            'master' if release == MASTER else series.of_nova(release),
            environments.site_packages(python), directory)
        return (directory,)

    # One test, as the start of the services takes longer than the requests.
    def test_rpc_between_every_mixture_of_services(self):
        for service in self.services.values():
            self.assertEqual(service.kind, service.ask('kind')[0],
                             service.name)
        for releases in RELEASES:
            migrations = {
                kinds: self.migrate(releases, kinds)
                for kinds in itertools.product(*(
                    KINDS[release] for release in releases))}
            stock = migrations.get((STOCK,) * 3)
            for kinds, migration in migrations.items():
                which = f'releases {releases}, {kinds}'
                self.assert_told(which, releases, kinds, migration)
                if stock:
                    self.assertEqual(
                        stock.backports, migration.backports, which)

    def migrate(self, releases, kinds):
        return Migration(*(
            self.services[role, release, kind]
            for role, release, kind in zip(ROLES, releases, kinds)))

    def assert_told(self, which, releases, kinds, migration):
        source, conductor, destination = kinds
        both = STOCK not in (source, destination)
        self.assertEqual(
            ADDRESS if both else 'src', migration.fetched_from, which)
        # An older source requests a backport of the object of the first leg.
        # A conductor without the fields drops them. A conductor with the next
        # version of the object drops them for all older versions.
        dropped = VERSIONS[releases[0]] < VERSIONS[releases[2]] and (
            conductor == STOCK or releases[2] == MASTER)
        announced = migration.capabilities or {}
        self.assertEqual(ANNOUNCED if both and not dropped else {}, {
            name: announced[name] for name in ANNOUNCED
            if name in announced}, which)
