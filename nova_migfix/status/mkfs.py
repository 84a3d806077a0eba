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
"""Whether Nova's commands make and label file systems on this host."""

from __future__ import annotations

from collections.abc import Iterator
import os
import tempfile

import nova.conf
from nova.virt.disk import api as disk_api
from oslo_concurrency import processutils
from oslo_utils import units

from nova_migfix.storage import image_file

CONF = nova.conf.CONF


def os_types() -> list[str]:
    """Return the operating systems that have an mkfs command."""
    return ['default', *sorted(
        name for name in {command.partition('=')[0]
                          for command in CONF.virt_mkfs} - {'default', ''})]


def problems(label: str) -> Iterator[str]:
    """Make a file system for each operating system; yield the problems.

    :param label: of the file system
    """
    for os_type in os_types():
        with tempfile.TemporaryDirectory(prefix='migfix-status-') as place:
            path = os.path.join(place, 'disk')
            with open(path, 'wb') as file:
                file.truncate(units.Gi)
            try:
                disk_api.mkfs(os_type, label, path, run_as_root=False)
            except (OSError, processutils.ProcessExecutionError) as error:
                yield (f'No file system can be made ({os_type}, label '
                       f'{label}): {error}. See [DEFAULT] '
                       'default_ephemeral_format and virt_mkfs.')
                continue
            found = image_file.filesystem(path)
            if found is not None and found.get('LABEL') != label:
                yield (f'The file system ({os_type}) should have the label '
                       f'{label}, but has {found.get("LABEL", "no label")}. '
                       'See [DEFAULT] default_ephemeral_format and virt_mkfs.')
