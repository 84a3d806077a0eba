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

"""Local files with the data that the end of a live migration needs.

Nova keeps the migrate_data and the volume attachments of the source only in
the memory of the process that migrates the guest. A rollback or an arrival
needs both.

Each migration that leaves this host has a file in ``migfix`` of ``[DEFAULT]
state_path``. Its name contains the name of the host, as hosts may share the
directory. Only the user of nova-compute can read it, as the data of a volume
may contain credentials. The secret of a vTPM is not kept.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any
import urllib.parse

from nova import objects
from nova.objects import base as objects_base
from nova.objects import migrate_data as nova_migrate_data
from oslo_config import cfg
from oslo_log import log as logging
from oslo_serialization import jsonutils

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

_VERSION = 1
_DATA = 'nova_object.data'


@dataclasses.dataclass(frozen=True)
class Entry:
    """A live migration that leaves this host."""

    #: UUID of the instance
    instance: str
    #: id of the migration's record
    migration: int
    #: host name of the destination's nova-compute
    dest: str
    #: whether the destination has returned from ``pre_live_migration``
    is_prepared: bool
    #: LibvirtLiveMigrateData without its field ``migration``
    migrate_data: Any
    #: nova.objects.BlockDeviceMappingList of the source
    source_bdms: Any


def write(host: str, entry: Entry) -> None:
    """Write or replace the file of a migration; a crash leaves one of both.

    :param host: name of this host
    :raises OSError: the file could not be written
    """
    path = _path(host, entry.instance)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    content = jsonutils.dump_as_bytes({
        'version': _VERSION, 'host': host, 'instance': entry.instance,
        'migration': entry.migration, 'dest': entry.dest,
        'is_prepared': entry.is_prepared,
        'migrate_data': _primitive(entry.migrate_data),
        'source_bdms': entry.source_bdms.obj_to_primitive()})
    made = f'{path}.new'
    with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                      | os.O_NOFOLLOW, 0o600), 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(made, path)
    _flush_directory(path)


def read(host: str, instance: str, context: Any) -> Entry | None:
    """Return the entry of a migration, None without a valid file.

    :param host: name of this host
    :param instance: UUID of the instance
    :param context: of the objects in the entry
    """
    path = _path(host, instance)
    try:
        with open(path, 'rb') as file:
            found = jsonutils.loads(file.read())
        return _parse(found, host, instance, context)
    except FileNotFoundError:
        return None
    except Exception as error:
        LOG.warning('The file %(path)s of the live migration of instance '
                    '%(uuid)s is ignored: %(error)s', {
                        'path': path, 'uuid': instance, 'error': error})
        return None


def remove(host: str, instance: str) -> None:
    """Remove the file of a migration, if it exists."""
    path = _path(host, instance)
    try:
        os.unlink(path)
        _flush_directory(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        LOG.warning('The file %(path)s could not be removed: %(error)s',
                    {'path': path, 'error': error})


def instances(host: str) -> list[str]:
    """Return the UUIDs of the instances that this host has files of."""
    name = re.compile(re.escape(_prefix(host)) + r'([0-9a-f-]{36})\.json')
    try:
        found = os.listdir(_directory())
    except FileNotFoundError:
        return []
    return sorted(match[1] for match in map(name.fullmatch, found) if match)


def _directory() -> str:
    return os.path.join(CONF.state_path, 'migfix')


def _prefix(host: str) -> str:
    return f'{urllib.parse.quote(host, safe="")}_'


def _path(host: str, instance: str) -> str:
    return os.path.join(_directory(), f'{_prefix(host)}{instance}.json')


def _flush_directory(path: str) -> None:
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _primitive(migrate_data: Any) -> Any:
    primitive = migrate_data.obj_to_primitive()
    primitive[_DATA].pop('migration', None)
    if 'vtpm_secret_value' in primitive[_DATA]:
        # Nova needs to know only that there is one.
        primitive[_DATA]['vtpm_secret_value'] = None
    return primitive


def _parse(found: Any, host: str, instance: str, context: Any) -> Entry:
    """Check the content of a file.

    :raises ValueError: the file belongs to another host or migration, or a
        value is not valid; other exceptions mean the same
    """
    own = {'version': _VERSION, 'host': host, 'instance': instance}
    if {name: found[name] for name in own} != own:
        raise ValueError('it was not written for this host and instance')
    entry = Entry(
        instance=instance, migration=found['migration'], dest=found['dest'],
        is_prepared=found['is_prepared'],
        migrate_data=_object(found['migrate_data'], context),
        source_bdms=_object(found['source_bdms'], context))
    for value, kind in (
            (entry.migration, int), (entry.dest, str),
            (entry.is_prepared, bool),
            (entry.migrate_data, nova_migrate_data.LibvirtLiveMigrateData),
            (entry.source_bdms, objects.BlockDeviceMappingList)):
        if not isinstance(value, kind):
            raise ValueError(f'{value!r} is no {kind.__name__}')
    if {bdm.instance_uuid for bdm in entry.source_bdms} - {instance}:
        raise ValueError('its disks belong to another instance')
    return entry


def _object(primitive: Any, context: Any) -> Any:
    return objects_base.NovaObject.obj_from_primitive(primitive, context)
