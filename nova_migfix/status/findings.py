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
"""The kinds of findings of ``preflight``, and the fixes that cover them.

Each finding is one property of a guest that unmodified Nova would change, or
one reason why the migration would fail, if the guest were migrated now.
:data:`KINDS` has for each kind the fix that prevents it, and the host that
needs the fix.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from nova_migfix.fixes import base
from nova_migfix.fixes import config_drive
from nova_migfix.fixes import ephemeral
from nova_migfix.fixes import kernel_ramdisk
from nova_migfix.fixes import source_address
from nova_migfix.fixes import tls_rekey
from nova_migfix.fixes import vnic
from nova_migfix.fixes import volume
from nova_migfix.status import domain_rules
from nova_migfix.status import hypervisor
from nova_migfix.status import matching


class Where(enum.Enum):
    """The host on which a fix has to be active."""

    SOURCE = 'source'
    DESTINATION = 'destination'
    EITHER = 'either'
    BOTH = 'both'
    NOWHERE = 'nowhere: it warns only'
    UNKNOWN = 'nowhere: whether the migration fails is not known'
    REFUSED = 'nowhere: the destination cannot run the guest'


class Kind(NamedTuple):
    """A kind of finding."""

    #: None: no fix prevents it
    fix: type[base.Fix] | None
    where: Where
    #: whether guest or migration fails; False: the guest changes
    fails: bool
    #: remedy without the fix
    otherwise: str
    #: the fault, if it is not that of the fix
    reason: str = ''


_REBOOT = 'Hard-reboot the instance, when its owner agrees.'

KINDS: dict[str, Kind] = {
    'vnic': Kind(
        vnic.Vnic, Where.SOURCE, True,
        f'Restore the old nova.conf until the guest is gone; or: {_REBOOT}'),
    # the migration succeeds; the size changes at the guest's next reset
    'vnic-ring': Kind(vnic.Vnic, Where.SOURCE, False, _REBOOT),
    'volume-path': Kind(
        volume.Volume, Where.SOURCE, True,
        'Use cold migration: it takes the path from Cinder.'),
    # the guest flushes or not, as it saw at boot
    'volume': Kind(volume.Volume, Where.SOURCE, False, _REBOOT),
    'ephemeral': Kind(
        ephemeral.Ephemeral, Where.EITHER, True,
        'First make the disk complete: nova-migfix-status heal.'),
    'ephemeral-lost': Kind(
        ephemeral.Ephemeral, Where.SOURCE, True,
        'Do not stop the guest. Make the disk complete: nova-migfix-status '
        'heal.'),
    'config-drive': Kind(
        config_drive.ConfigDrive, Where.DESTINATION, True,
        'Copy the file to the destination after the migration.'),
    'config-drive-empty': Kind(
        config_drive.ConfigDrive, Where.SOURCE, False,
        'Let Nova build it again: remove the file and hard-reboot the '
        'instance.'),
    'kernel-ramdisk': Kind(
        kernel_ramdisk.KernelRamdisk, Where.DESTINATION, True,
        'Use cold migration.'),
    'image-lost': Kind(
        source_address.SourceAddress, Where.BOTH, False,
        'Make sure that the destination can log in on this host by ssh with '
        'its host name.'),
    'tls': Kind(
        tls_rekey.TlsRekey, Where.NOWHERE, True,
        'Give the destination a policy: nova-migfix-tls generate.'),
    'old-library': Kind(
        tls_rekey.TlsRekey, Where.NOWHERE, False,
        'Migrate the guest while it is small, or hard-reboot it: it uses the '
        'library that was installed when it was started.'),
    **{rule.kind: Kind(rule.fix, Where.SOURCE if rule.fix else Where.UNKNOWN,
                       True, f'{rule.remedy} See {domain_rules.PAGE}.',
                       rule.reason)
       for rule in domain_rules.RULES},
    **{name: Kind(None, Where.REFUSED, True, kind.remedy, kind.reason)
       for name, kind in matching.KINDS.items() if not kind.of_host},
}


class Found(NamedTuple):
    """The result of a finder for one guest."""

    kind: str
    device: str
    running: str | None     # value in the running guest
    #: value that unmodified Nova would give it, or that the destination has
    computed: str | None
    #: whether it is known that the migration fails
    is_known: bool = True


class Finding(NamedTuple):
    """A row; field names are those of JSON and CSV."""

    instance: str
    domain: str
    finding: str
    device: str
    running: str | None
    computed: str | None
    bug: str
    fix: str
    covered: str            # yes, no, or the host that needs the fix
    result: int             # oslo.upgradecheck's code: 0, 1, 2
    otherwise: str


def covered(kind: Kind, here: frozenset[str],
            there: frozenset[str] | None) -> str:
    """Return the value of ``covered``.

    :param here: fixes whose faults do not occur on this host
    :param there: the same of the destination; None: not known
    """
    name = kind.fix.name if kind.fix else ''
    elsewhere = ('if on the destination' if there is None
                 else 'yes' if name in there else 'no')
    return {
        Where.SOURCE: 'yes' if name in here else 'no',
        Where.DESTINATION: elsewhere,
        Where.EITHER: 'yes' if name in here else elsewhere,
        Where.BOTH: elsewhere if name in here else 'no',
        Where.NOWHERE: 'no',
        Where.UNKNOWN: 'not known',
        Where.REFUSED: 'no',
    }[kind.where]


def judge(domain: hypervisor.Domain, found: Found, here: frozenset[str],
          there: frozenset[str] | None) -> Finding:
    """Return the row of a finder's result; parameters as of covered()."""
    kind = KINDS[found.kind]
    verdict = covered(kind, here, there) if found.is_known else 'not known'
    result = {'yes': 0, 'no': 2 if kind.fails else 1}.get(verdict, 1)
    return Finding(
        domain.uuid, domain.name, found.kind, found.device, found.running,
        found.computed, kind.fix.bug if kind.fix else kind.reason,
        kind.fix.name if kind.fix else '', verdict, result,
        '' if verdict == 'yes' else kind.otherwise)
