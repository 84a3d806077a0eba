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

"""Fixtures for several test modules."""

import os
import pathlib
import shutil

import fixtures
from nova.objects import base
from nova.objects import migrate_data as nova_migrate_data
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_config import fixture as config_fixture
from oslo_serialization import jsonutils

from nova_migfix import peer


class PatchedMigrateData(fixtures.Fixture):
    """The plugin's migrate_data instead of Nova's, as in a patched service."""

    def _setUp(self):
        self.addCleanup(base.NovaObjectRegistry.register,
                        nova_migrate_data.LibvirtLiveMigrateData)
        peer.register()


class Instances(fixtures.Fixture):
    """An instances path with real files from qemu-img and mkfs."""

    GIB = 1 << 30

    def _setUp(self):
        self.path = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        self.base = self.path / '_base'
        self.base.mkdir()
        config = self.useFixture(config_fixture.Config(cfg.CONF))
        config.config(instances_path=str(self.path), host='compute1')

    def make_base(self, name='ephemeral_1_40d1d2c', size=GIB, mkfs='ext4'):
        """Make a backing file, and return its path.

        Without *mkfs*, it is as if mkfs had failed: only its first block,
        which qemu-img writes, is not a hole.
        """
        path = self.base / name
        processutils.execute(
            'qemu-img', 'create', '-f', 'raw', path, size)
        if mkfs:
            processutils.execute(f'/sbin/mkfs.{mkfs}', path)
        return path

    def make_disk(self, uuid, name, base, size=GIB, written=b''):
        """Make an overlay in the directory of an instance, like Nova."""
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


class FakeTar(fixtures.Fixture):
    """A tar that misbehaves when it makes an archive.

    :param complaint: an error message, after which it exits with 1
    :param dereference: whether it respects ``--dereference``
    :param before, after: shell commands to run before and after the real tar
    """

    SCRIPT = """#!/bin/sh
case "$*" in *--create*) ;; *) exec {tar} "$@" ;; esac
for argument; do
    shift
    [ "$argument" = "{without}" ] || set -- "$@" "$argument"
done
{before}
{tar} "$@" || exit
{after}
[ -z "{complaint}" ] || {{ echo "tar: {complaint}" >&2; exit 1; }}
"""

    def __init__(self, complaint='', dereference=True, before='', after=''):
        self._words = {
            'before': before, 'after': after,
            'complaint': complaint, 'tar': shutil.which('tar'),
            'without': '' if dereference else '--dereference'}

    def _setUp(self):
        directory = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        tar = directory / 'tar'
        tar.write_text(self.SCRIPT.format(**self._words))
        tar.chmod(0o755)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', f'{directory}:{os.environ["PATH"]}'))


class FakeSsh(fixtures.Fixture):
    """An ssh that runs commands on this host; *asked* records them."""

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
        """Return a line for each session, with the host and the command."""
        if not self._asked.exists():
            return []
        return self._asked.read_text().splitlines()
