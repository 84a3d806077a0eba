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
"""Whether hosts share the disks of instances."""

from __future__ import annotations

import os
import pathlib

import nova.conf

CONF = nova.conf.CONF

# File systems that hosts share: a migration does not move disks on them.
FILE_SYSTEMS = frozenset((
    'beegfs', 'ceph', 'cifs', 'fuse.ceph', 'fuse.glusterfs', 'fuse.quobyte',
    'gfs2', 'gpfs', 'lustre', 'nfs', 'nfs4', 'ocfs2', 'smb3', 'virtiofs',
    'wekafs'))


def has_shared_disks() -> bool:
    """Return whether instances_path is on a file system that hosts share."""
    mounts = [line.split(' ') for line in
              pathlib.Path('/proc/self/mounts').read_text().splitlines()]
    place = os.path.realpath(CONF.instances_path)
    on = [words for words in mounts
          if os.path.commonpath((words[1], place)) == words[1]]
    return bool(on) and max(
        on, key=lambda words: len(words[1]))[2] in FILE_SYSTEMS
