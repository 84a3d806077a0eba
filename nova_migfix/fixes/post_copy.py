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


"""Resume a live migration that was interrupted in post-copy.

In the post-copy phase the guest runs on the destination, and gets memory that
it needs from the source. If the connection between the two QEMUs breaks, both
keep their part of the memory, and the guest stops as soon as it needs a page
of the other part. libvirt's call fails, the domain on the source is paused
with the reason POSTCOPY_FAILED, and the job of the migration stays. Nova never
resumes it.

The fix repeats the call with the flag POSTCOPY_RESUME until it succeeds. Nova
waits meanwhile: libvirt reports a running job, and Nova neither aborts nor
times out a migration in post-copy.

QEMU notices a connection that is silent, rather than closed, much later than
libvirt: libvirt's call fails after about 30 seconds, and TCP gives up after
about 15 minutes. If the network is back before that, QEMU goes on by itself
and libvirt completes the migration. As long as memory is sent, the fix only
waits. It does not make QEMU close the connection on the source: a destination
that waits for memory sends nothing, and so would not notice it.

Source of the rules: ``qemuMigrationSrcPerformJob``,
``qemuMigrationAnyCanResume`` and ``qemuMigrationDstPrepareResume`` in libvirt,
and tests with libvirt 9.0 and QEMU 7.2.
"""

from __future__ import annotations

from collections.abc import Callable
import math
import socket
import time
from typing import Any

from nova import exception
from nova.i18n import _
from nova.virt.libvirt import guest as libvirt_guest
from oslo_config import cfg
from oslo_log import log as logging

from nova_migfix.fixes import base
from nova_migfix import peer
from nova_migfix import place
from nova_migfix.transport import libvirt_uri

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

# Seconds between two attempts.
_INTERVAL = 5
# Seconds between two messages, and between two questions to the destination.
_LONG_INTERVAL = 60

# The first libvirt that can resume a migration.
_MIN_LIBVIRT = (8, 5, 0)
# VIR_MIGRATE_POSTCOPY_RESUME; the Python binding may be older than libvirt.
_RESUME = 1 << 19

# Errors of a destination that answers but does not resume: INVALID_ARG (its
# libvirt is older), OPERATION_FAILED, NO_DOMAIN and OPERATION_INVALID.
_REFUSALS = frozenset((8, 9, 42, 55))


class PostCopy(base.Fix):
    name = 'post_copy'
    bug = 'a live migration that is interrupted in post-copy is never resumed'

    def migrate_failed(
        self, driver: Any, context: Any, instance: Any, migrate_data: Any,
        uri: str, migrate: Callable[..., None],
    ) -> bool:
        return _Interruption(
            driver, context, instance, migrate_data, uri, migrate).resume()


def go_on(
    driver: Any, context: Any, instance: Any, migrate_data: Any,
) -> None:
    """Resume a migration that another process has begun, if need be.

    Returns when libvirt has ended the migration or cannot resume it, and at
    once if it is not in post-copy or the fix is not active.

    :param driver: the LibvirtDriver of the source
    :param instance: nova.objects.Instance
    :param migrate_data: with the address of the destination
    """
    fix = next((fix for fix in driver._fixes if isinstance(fix, PostCopy)),
               None)
    if fix is None:
        return
    # as Nova does
    address = peer.get(migrate_data, 'target_connect_addr')
    dest = address or migrate_data.migration.dest_compute
    uri = driver._live_migration_uri(dest)
    flags = (driver._block_migration_flags
             if peer.get(migrate_data, 'block_migration')
             else driver._live_migration_flags)

    def migrate(guest: Any, more_flags: int) -> None:
        guest.migrate(
            uri, flags=flags | more_flags,
            migrate_uri=driver._migrate_uri(dest) if address else None,
            bandwidth=CONF.libvirt.live_migration_bandwidth)

    fix.migrate_failed(driver, context, instance, migrate_data, uri, migrate)


def _is_reachable(uri: str) -> bool:
    """Return whether the host of libvirt responds, also if it refuses.

    A URI without a TCP port counts as reachable.

    :param uri: such as qemu+tls://host/system
    """
    where = libvirt_uri.server(uri)
    if where is None:
        return True
    try:
        socket.create_connection(where, _INTERVAL).close()
    except ConnectionRefusedError:
        pass
    except OSError:
        return False
    return True


class _Interruption:
    """A live migration that may have been interrupted in post-copy."""

    def __init__(self, driver: Any, context: Any, instance: Any,
                 migrate_data: Any, uri: str,
                 migrate: Callable[..., None]) -> None:
        self._driver = driver
        self._context = context
        self._instance = instance
        self._dest = migrate_data.migration.dest_compute
        self._uri = uri
        self._migrate = migrate
        # Nova sets the status as it begins post-copy, a virsh command does not
        self._is_in_post_copy = (
            migrate_data.migration.status == 'running (post-copy)')
        # bytes of memory that QEMU had sent at the last look
        self._sent: int | None = None
        self._logged_at = -math.inf
        self._asked_at = -math.inf
        self._runs_on_dest: bool | None = None

    def resume(self) -> bool:
        """Resume the migration until libvirt has ended it, if need be.

        :returns: whether the guest has arrived; False too if the migration is
            not in post-copy or cannot be resumed
        """
        while True:
            try:
                has_arrived = self._attempt()
                if has_arrived is not None:
                    return has_arrived
            except exception.InstanceNotFound:
                return False
            except (libvirt_guest.libvirt.libvirtError,
                    exception.NovaException) as error:
                if not self._is_in_post_copy or self._is_lost(error):
                    return False
                self._log(str(error))
            time.sleep(_INTERVAL)

    def _attempt(self) -> bool | None:
        """Resume the migration if that is possible now.

        :returns: whether the guest has arrived; None: try again
        """
        host = self._driver._host
        guest = host.get_guest(self._instance)
        libvirt = libvirt_guest.libvirt
        state, reason = guest._domain.state()
        if (state, reason) == (libvirt.VIR_DOMAIN_SHUTOFF, place.MIGRATED):
            return self._is_in_post_copy and self._log_arrival()
        if state != libvirt.VIR_DOMAIN_PAUSED or reason not in (
                place.POST_COPY, place.POST_COPY_FAILED):
            return False
        self._is_in_post_copy = True
        # libvirt would start the guest here after an attempt to resume a
        # migration that has not failed.
        if reason == place.POST_COPY or self._is_sending(guest):
            self._log(_('QEMU may still send memory'))
            return None
        if not host.has_min_version(lv_ver=_MIN_LIBVIRT):
            LOG.error('The live migration is interrupted in post-copy, and '
                      'libvirt before 8.5 cannot resume it (%s)',
                      PostCopy.bug, instance=self._instance)
            return False
        # libvirt misses the end of a migration that QEMU completes while
        # libvirt connects to the destination.
        if not _is_reachable(self._uri):
            self._log(_('%s does not respond') % self._uri)
            return None
        self._migrate(guest, _RESUME)
        return self._log_arrival()

    def _is_sending(self, guest: Any) -> bool:
        """Return whether QEMU has sent memory since the last look."""
        before, self._sent = self._sent, guest.get_job_info().memory_processed
        return before != self._sent

    def _is_lost(self, error: Exception) -> bool:
        """Return whether the guest no longer runs on the destination.

        It has to be so at two times: a guest can be paused for a moment.

        :param error: of the last attempt
        """
        now = time.monotonic()
        if (not isinstance(error, libvirt_guest.libvirt.libvirtError)
                or error.get_error_code() not in _REFUSALS
                or now - self._asked_at < _LONG_INTERVAL):
            return False
        self._asked_at = now
        before, self._runs_on_dest = self._runs_on_dest, place.runs_on(
            self._driver, self._context, self._instance, self._dest)
        if before is not False or self._runs_on_dest is not False:
            return False
        LOG.error('The live migration is interrupted in post-copy and cannot '
                  'be resumed, as the guest does not run on %(dest)s: '
                  '%(error)s', {'dest': self._dest, 'error': error},
                  instance=self._instance)
        return True

    def _log(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._logged_at >= _LONG_INTERVAL:
            self._logged_at = now
            LOG.warning(
                'The live migration to %(dest)s is interrupted in post-copy, '
                'and not resumed yet: %(reason)s', {
                    'dest': self._dest, 'reason': reason},
                instance=self._instance)
        else:
            LOG.debug('The live migration is not resumed yet: %s', reason,
                      instance=self._instance)

    def _log_arrival(self) -> bool:
        LOG.info('The live migration, interrupted in post-copy, is completed '
                 'on %(dest)s (%(bug)s)', {
                     'dest': self._dest, 'bug': PostCopy.bug},
                 instance=self._instance)
        return True
