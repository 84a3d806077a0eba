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

"""Warn about, or refuse, live migrations that TLS rekeying would kill.

Over QEMU's native TLS 1.3, GnuTLS before 3.8.11 changes keys in a way that
kills QEMU on the source (in post-copy: the migration) as soon as a guest has
sent enough pages. Nova does not know this limit.
:mod:`nova_migfix.tls.rekey` predicts the outcome for a guest. The destination
decides which TLS version and cipher the two negotiate. In the precheck it
probes its QEMU, if it can, and sends the result to the source.

With the fix the source logs a warning before the migration of such a guest, or
refuses the migration with ``[migfix] refuse_unsafe_tls``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nova import exception
from nova.i18n import _
from oslo_config import cfg
from oslo_log import log as logging
from oslo_utils import units

from nova_migfix.fixes import base
from nova_migfix import peer
from nova_migfix.tls import audit
from nova_migfix.tls import probe
from nova_migfix.tls import rekey

LOG = logging.getLogger(__name__)
CONF = cfg.CONF

# A key of dest_capabilities, and its value if no TLS session with the
# destination changes keys.
TLS, SAFE = 'tls', 'safe'


class TlsRekey(base.Fix):
    name = 'tls_rekey'
    bug = 'a change of TLS keys kills large guests (GnuTLS before 3.8.11)'

    def dest_capabilities(self) -> Mapping[str, str]:
        if not CONF.libvirt.live_migration_with_native_tls:
            return {}
        try:
            answer = probe.probe(probe.find_qemu())
        except Exception as error:
            # With Kolla QEMU is in another container. By default the source
            # only warns about a destination without this capability.
            LOG.info('Cannot determine the TLS version and cipher that QEMU '
                     'negotiates on this host: %s', error)
            return {}
        if answer.doubt:
            LOG.info('The TLS that a guest\'s QEMU negotiates on this host is '
                     'unknown: %s', answer.doubt)
            return {}
        return {} if answer.error else {TLS: answer.verdict}

    def check_can_live_migrate_source(
        self, instance: Any, host: Any, migrate_data: Any,
    ) -> None:
        capabilities = peer.get(migrate_data, peer.DEST_CAPABILITIES) or {}
        if capabilities.get(TLS) == SAFE:
            return
        assessment = _assess(instance)
        if assessment.verdict is rekey.Verdict.SAFE:
            return
        problem = _(
            'Instance %(uuid)s: live migration over TLS %(verdict)s: '
            '%(reason)s. Give the destination a policy, see '
            '"nova-migfix-tls generate", and check it with "nova-migfix-tls '
            'probe".') % {
                'uuid': instance.uuid, 'verdict': assessment.verdict.value,
                'reason': assessment.reason}
        if CONF.migfix.refuse_unsafe_tls:
            raise exception.MigrationPreCheckError(reason=problem)
        LOG.warning(problem, instance=instance)


def _assess(instance: Any) -> rekey.Assessment:
    if not transport().live_migration_with_native_tls:
        return rekey.assess(transport(), None, '', 0)
    return assess(_running(instance), instance.memory_mb)


def assess(guest: audit.Guest | None, memory_mb: int) -> rekey.Assessment:
    """Predict the outcome of a live migration of a guest from this host.

    :param guest: None if nova-compute does not see the processes of the host
    :param memory_mb: memory of the flavor, in MiB; used if *guest* is None
    """
    library = guest.library if guest else None
    return rekey.assess(
        transport(), library.version if library else None,
        library.package if library else '',
        guest.memory if guest else memory_mb * units.Mi)


def _running(instance: Any) -> audit.Guest | None:
    """Return the guest's QEMU; None if its process cannot be inspected."""
    try:
        return audit.find(instance.uuid)
    except OSError as error:
        LOG.info('Cannot inspect the guest\'s QEMU process: %s', error,
                 instance=instance)
        return None


def transport() -> rekey.Transport:
    """Return Nova's options for the transport that this release has."""
    return rekey.Transport(**{
        name: CONF.libvirt[name] for name in rekey.Transport._fields
        if name in CONF.libvirt})
