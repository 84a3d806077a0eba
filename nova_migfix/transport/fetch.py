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
"""Fetch files of a guest from the source before Nova prepares its disks.

Nova makes new files on the destination, although the guest has its own on the
source. The fixes fetch those first, all in one session; Nova makes the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
import contextlib
import os
import re
import shutil
import time
from typing import Any
from typing import NamedTuple

from nova import exception
from nova.i18n import _
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import excutils

from nova_migfix.status import terminal
from nova_migfix.storage import scratch
from nova_migfix.transport import transfer

LOG = logging.getLogger(__name__)

# Beginnings of lines from ssh, tar and rsync that do not say the reason.
_NOISE = ('Warning: ', 'tar: Exiting with failure',
          'tar: Error is not recoverable',
          'tar: This does not look like a tar archive', 'rsync error: ',
          'rsync: connection unexpectedly closed')
# Limits in characters: of the part of an output to search, and of a reason.
_LONGEST_OUTPUT = 1 << 16
_LONGEST_REASON = 240
# ECMA-48: a control sequence, such as one that sets a colour.
_ESCAPE = re.compile(r'\x1b\[[0-?]*[ -/]*[@-~]')


# The guest's state when a fetch fails, in a live and in a cold migration.
NOT_MOVED = _('The guest has not been moved.')
IS_OFF = _('The guest is off; its disks remain as they arrived, and on the '
           'source in %s_resize.')


class FileRequest(NamedTuple):
    """A file to fetch from the source."""

    #: its path on the source
    path: str
    #: names of the guest's files that need it, for the operator
    used_for: tuple[str, ...]
    #: called with the path of the fetched copy, which is removed afterwards
    on_fetched: Callable[[str], None]


@contextlib.contextmanager
def directory_removed_on_failure(instance_dir: str) -> Iterator[None]:
    """Remove the instance's directory on failure, unless it existed before.

    Nova removes it only when it rolls the migration back, and refuses another
    attempt until then.

    :param instance_dir: path of the directory on this host
    """
    was_there = os.path.exists(instance_dir)
    try:
        yield
    except Exception:
        with excutils.save_and_reraise_exception():
            if not was_there:
                shutil.rmtree(instance_dir, ignore_errors=True)


def fetch(instance: Any, instance_dir: str, wanted: Collection[FileRequest],
         host: str, guest_state: str = NOT_MOVED) -> None:
    """Fetch files from the source, in one session.

    :param instance: nova.objects.Instance
    :param instance_dir: its directory, which exists
    :param host: the source, a host name or an IP literal
    :param guest_state: the guest's state if the fetch fails, for the operator
    :raises MigrationError: the files could not be fetched; names the instance,
        disks, host, reason and remedy
    """
    if not wanted:
        return
    begin = time.monotonic()
    # Beside the instance's directory, because Nova looks into that.
    with scratch.directory(instance_dir) as directory:
        try:
            transfer.fetch(host, {file.path for file in wanted}, directory)
            for file in wanted:
                file.on_fetched(os.path.join(
                    directory, os.path.basename(file.path)))
        except (OSError, ValueError, processutils.ProcessExecutionError,
                exception.NovaException) as error:
            raise exception.MigrationError(reason=_(
                '%(disks)s of instance %(uuid)s could not be fetched from '
                '%(host)s: %(error)s. %(guest_state)s Check that this host '
                'can log in there by ssh, that there is enough space, and '
                'that the files exist: %(paths)s.') % {
                    'disks': ', '.join(sum((f.used_for for f in wanted), ())),
                    'uuid': instance.uuid, 'host': host,
                    'error': reason(error),
                    'guest_state': guest_state,
                    'paths': ', '.join(f.path for f in wanted)}) from error
    LOG.info('Pulled %(paths)s from %(host)s for %(disks)s in %(time).2f s',
             {'paths': ', '.join(f.path for f in wanted), 'host': host,
              'disks': ', '.join(sum((f.used_for for f in wanted), ())),
              'time': time.monotonic() - begin}, instance=instance)


def reason(error: Exception) -> str:
    """Return the reason of an error in at most 240 characters.

    The record of an instance action keeps 255 characters. A login may print a
    greeting first; the reason comes last. Omit escape sequences and control
    characters: the peer may send some that a terminal would execute.
    """
    text = str(getattr(error, 'stderr', None) or error)[-_LONGEST_OUTPUT:]
    lines = dict.fromkeys(filter(None, (
        ' '.join(terminal.printable(_ESCAPE.sub('', line)).split()).rstrip('.')
        for line in text.splitlines()
        if not line.startswith(_NOISE))))
    found = '; '.join([*lines][-2:]) or terminal.printable(repr(error))
    return (found if len(found) <= _LONGEST_REASON
            else f'...{found[3 - _LONGEST_REASON:]}')
