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

"""Fixtures that several tests share."""

import pathlib

import fixtures
from nova.objects import base
from nova.objects import migrate_data as nova_migrate_data
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_serialization import jsonutils

from nova_migfix import migrate_data


class PatchedMigrateData(fixtures.Fixture):
    """Our migrate_data in the place of Nova's, as in a patched service."""

    def _setUp(self):
        self.addCleanup(base.NovaObjectRegistry.register,
                        nova_migrate_data.LibvirtLiveMigrateData)
        migrate_data.register()


class Instances(fixtures.Fixture):
    """An instances path with real files, as qemu-img and mkfs make them."""

    GIB = 1 << 30

    def _setUp(self):
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.base = self.path / '_base'
        self.base.mkdir()
        config = self.useFixture(config_fixture.Config(cfg.CONF))
        config.config(instances_path=str(self.path), host='compute1')

    def make_base(self, name='ephemeral_1_40d1d2c', size=GIB, mkfs='ext4'):
        """A backing file, empty where *mkfs* is None."""
        path = self.base / name
        with open(path, 'wb') as file:
            file.truncate(size)
        if mkfs:
            processutils.execute(f'/sbin/mkfs.{mkfs}', path)
        return path

    def make_disk(self, uuid, name, base, size=GIB, written=b''):
        """An overlay in the directory of an instance, as Nova makes it."""
        path = self.path / uuid / name
        path.parent.mkdir(exist_ok=True)
        processutils.execute('qemu-img', 'create', '-f', 'qcow2', '-F', 'raw',
                             '-b', base, path, size)
        if written:
            pattern = f'write -P {written[0]} 512M {len(written)}'
            processutils.execute('qemu-io', '-c', pattern, path)
        record = path.parent / 'disk.info'
        known = jsonutils.loads(record.read_text()) if record.exists() else {}
        record.write_text(jsonutils.dumps({**known, str(path): 'qcow2'}))
        return path


class FakeSsh(fixtures.Fixture):
    """An ssh that leads nowhere else; what it was asked is in *asked*."""

    SCRIPT = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
echo "$*" >>"{asked}"
[ "$1" = cut ] && {{ echo 'Connection refused' >&2; exit 255; }}
shift
exec sh -c "$*"
"""

    def _setUp(self):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self._asked = directory / 'asked'
        ssh = directory / 'ssh'
        ssh.write_text(self.SCRIPT.format(asked=self._asked))
        ssh.chmod(0o755)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', f'{directory}:/usr/bin:/bin:/usr/sbin:/sbin'))

    @property
    def asked(self):
        """A line for each session: the host and the command."""
        if not self._asked.exists():
            return []
        return self._asked.read_text().splitlines()
