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
"""What a destination has from the source before Nova prepares for the guest.

Nova makes on the destination what it thinks the guest has; this gets what the
guest really has, once for all fixes, and leaves only the rest to Nova.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import os
import re
import shutil
import threading
import time
from typing import Any
from typing import NamedTuple
from typing import TYPE_CHECKING

from nova import exception
from nova.i18n import _
from oslo_concurrency import processutils
from oslo_log import log as logging
from oslo_utils import excutils

from nova_migfix.storage import scratch
from nova_migfix.transport import transfer

if TYPE_CHECKING:
    from nova_migfix.fixes import base

LOG = logging.getLogger(__name__)

_thread = threading.local()

# What ssh, tar and rsync write besides the reason.
_SAYS_NOTHING = ('Warning: ', 'tar: Exiting with failure',
                 'tar: Error is not recoverable',
                 'tar: This does not look like a tar archive', 'rsync error: ',
                 'rsync: connection unexpectedly closed')
# Characters of an output that are looked at, and of a reason.
_LONGEST_OUTPUT = 1 << 16
_LONGEST_REASON = 240
# ECMA-48: a control sequence, such as one that sets a colour.
_ESCAPE = re.compile(r'\x1b\[[0-?]*[ -/]*[@-~]')


# What has become of the guest when something cannot be had: it is on the
# source of a live migration, at the destination of a cold one.
NOT_MOVED = _('The guest has not been moved.')
IS_OFF = _('The guest is off; its disks are left as they came, and on the '
           'source in %s_resize.')


class Wanted(NamedTuple):
    """A file of the source's."""

    #: its path there
    path: str
    #: names of the guest's files that are made of it, for the operator
    makes: tuple[str, ...]
    #: is called with the path of the copy, which is gone afterwards
    place: Callable[[str], None]


@contextlib.contextmanager
def preparation() -> Iterator[None]:
    """What this thread does meanwhile is for a guest that arrives."""
    _thread.preparing = True
    try:
        yield
    finally:
        _thread.preparing = False


def is_prepared() -> bool:
    """Say whether this thread is preparing for a guest."""
    return getattr(_thread, 'preparing', False)


@contextlib.contextmanager
def undone_if_it_fails(instance_dir: str) -> Iterator[None]:
    """Remove the instance's directory, unless it has been there before.

    Nova does so only when it rolls the migration back, and refuses another
    attempt until then.

    :param instance_dir: where its files will be, on this host
    """
    was_there = os.path.exists(instance_dir)
    try:
        yield
    except Exception:
        with excutils.save_and_reraise_exception():
            if not was_there:
                shutil.rmtree(instance_dir, ignore_errors=True)


def pull_disks(
    fixes: Iterable[base.Fix], instance: Any, instance_dir: str,
    disks: list[dict[str, Any]], host: str,
) -> None:
    """Pull what the fixes want; Nova makes what is not there afterwards."""
    pull(instance, instance_dir, [
        wanted for fix in fixes
        for wanted in fix.files_to_pull(instance, instance_dir, disks)], host)


def pull(instance: Any, instance_dir: str, wanted: Collection[Wanted],
         host: str, so: str = NOT_MOVED) -> None:
    """Have files from the source and put them to their use.

    :param instance: nova.objects.Instance
    :param instance_dir: its directory, which exists
    :param host: the source, a host name or an IP literal
    :param so: what has become of the guest if that fails
    :raises MigrationError: with instance, disks, host, reason and remedy
    """
    if not wanted:
        return
    begin = time.monotonic()
    # Beside the instance's own directory, which is looked into by Nova.
    with scratch.directory(instance_dir) as directory:
        try:
            transfer.pull(host, {file.path for file in wanted}, directory)
            for file in wanted:
                file.place(os.path.join(
                    directory, os.path.basename(file.path)))
        except (OSError, ValueError, processutils.ProcessExecutionError,
                exception.NovaException) as error:
            raise exception.MigrationError(reason=_(
                '%(disks)s of instance %(uuid)s cannot be had from %(host)s: '
                '%(error)s. %(so)s See that this host '
                'can log in there by ssh, that there is space, and that the '
                'files exist: %(paths)s.') % {
                    'disks': ', '.join(sum((f.makes for f in wanted), ())),
                    'uuid': instance.uuid, 'host': host,
                    'error': reason(error), 'so': so,
                    'paths': ', '.join(f.path for f in wanted)}) from error
    LOG.info('Pulled %(paths)s from %(host)s for %(disks)s in %(time).2f s',
             {'paths': ', '.join(f.path for f in wanted), 'host': host,
              'disks': ', '.join(sum((f.makes for f in wanted), ())),
              'time': time.monotonic() - begin}, instance=instance)


def reason(error: Exception) -> str:
    """Say it in a few words: an instance's action keeps 255 characters.

    A login may greet first; what ended it comes last. The other host may
    write whatever it likes: what a terminal would obey is left out.
    """
    text = str(getattr(error, 'stderr', None) or error)[-_LONGEST_OUTPUT:]
    said = dict.fromkeys(filter(None, (
        _printable(line).strip().rstrip('.') for line in text.splitlines()
        if not line.startswith(_SAYS_NOTHING))))
    found = '; '.join([*said][-2:]) or _printable(repr(error))
    return (found if len(found) <= _LONGEST_REASON
            else f'...{found[3 - _LONGEST_REASON:]}')


def _printable(line: str) -> str:
    """Return a line without escape sequences and control characters."""
    return ''.join(
        letter if letter.isprintable() else ' ' if letter == '\t' else ''
        for letter in _ESCAPE.sub('', line))
