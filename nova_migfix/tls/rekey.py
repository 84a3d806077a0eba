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

"""Assess whether a migration over TLS survives the rekeys of its session.

Under TLS 1.3 GnuTLS rekeys a session (changes its keys) after 2^24 - 3 sent
records, unless the cipher is ChaCha20-Poly1305. With a return path or
post-copy, QEMU uses one session from two threads. With GnuTLS before 3.8.11
the rekey then breaks the session: in pre-copy QEMU on the source crashes at
the second rekey, in post-copy the migration fails at the first. With several
connections (multifd) each one is used from one thread.

The outcome depends on the GnuTLS that QEMU on the *source* has loaded, and on
the protocol version and cipher that the destination chooses.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

GIB = 1 << 30

#: bytes of pages that are not zero, per rekey: 2 records for 4 KiB
PER_REKEY = 32 * GIB

_FIXED = (3, 8, 11)
# Backports: "distribution's tag" -> (version, build, build of the update)
_BACKPORTS = {'el9': ((3, 8, 3), (6, 2)), 'el10': ((3, 8, 9), (14, 0))}
_RPM = re.compile(r'([\d.]+)-(\d+)\.(el\d+)(?:_\d+)?(?:\.(\d+))?')

# A busy guest's pages are sent more than once. Their number is not known until
# the dirty rate is measured; this is a cautious estimate.
_ROUNDS = 4


class Verdict(enum.Enum):
    SAFE = 'safe'
    AT_RISK = 'at risk'
    WILL_FAIL = 'will fail'


class Assessment(NamedTuple):
    """The outcome of a guest's migration.

    :param rekeys: likely number of rekeys; None: the migration does not
        converge
    """

    verdict: Verdict
    reason: str
    rekeys: int | None = 0


class Transport(NamedTuple):
    """Nova's options of migration in [libvirt], by their names."""

    live_migration_with_native_tls: bool = False
    live_migration_tunnelled: bool = False
    live_migration_permit_post_copy: bool = False
    live_migration_parallel_connections: int = 1

    def __str__(self) -> str:
        """Return the words for the sentence 'Nova migrates ...'."""
        if self.live_migration_tunnelled:
            return 'tunnelled through libvirt'
        tls = ('over' if self.live_migration_with_native_tls else 'without')
        post_copy = ('with' if self.live_migration_permit_post_copy
                     else 'without')
        return (f'{tls} native TLS, {post_copy} post-copy, parallel '
                f'connections: {self.live_migration_parallel_connections}')


def numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: (3, 8, 3) for '3.8.3-6.el9'.

    :raises ValueError: the text does not begin with a version
    """
    match = re.match(r'\d+(?:\.\d+)*', version)
    if not match:
        raise ValueError(f'not a version: {version!r}')
    return tuple(map(int, match[0].split('.')))


def is_fixed(version: str, package: str = '') -> bool:
    """Return whether a GnuTLS rekeys safely.

    :param version: of the library, '3.8.9'
    :param package: version of the distribution's package, '3.8.3-6.el9_6.2';
        '': not known
    """
    if numbers(version) >= _FIXED:
        return True
    match = _RPM.match(package)
    if not match or match[3] not in _BACKPORTS:
        return False
    fixed, build = _BACKPORTS[match[3]]
    return ((numbers(match[1]), (int(match[2]), int(match[4] or 0)))
            >= (fixed, build))


def bytes_sent(memory: int, dirty_rate: int | None = None,
               bandwidth: int | None = None) -> int | None:
    """Return the bytes that a pre-copy migration sends until it converges.

    Each round sends the pages that the guest wrote in the round before.

    :param memory: bytes that are not zero
    :param dirty_rate: bytes per second that the guest writes; None: not known
    :param bandwidth: bytes per second that the migration sends
    :returns: bytes; None: it does not converge
    """
    if dirty_rate is None or bandwidth is None:
        return memory
    if dirty_rate >= bandwidth:
        return None
    return memory * bandwidth // (bandwidth - dirty_rate)


def assess(transport: Transport, gnutls: str | None, package: str,
           memory: int, dirty_rate: int | None = None,
           bandwidth: int | None = None) -> Assessment:
    """Assess a migration to a destination that chooses TLS 1.3 with AES.

    :param gnutls: version that the guest's QEMU has loaded; None: not known
    :param package: see is_fixed
    :param memory: bytes in use
    :param dirty_rate, bandwidth: see bytes_sent
    """
    safe = _safe_anyway(transport, gnutls, package)
    if safe:
        return Assessment(Verdict.SAFE, safe)
    sent = bytes_sent(memory, dirty_rate, bandwidth)
    if sent is None and transport.live_migration_permit_post_copy:
        # A migration that does not converge switches to post-copy.
        dirty_rate, sent = None, memory
    how, end = _end(transport)
    verdict, reason = _judge(memory, dirty_rate, sent, end)
    if verdict is not Verdict.SAFE:
        reason = (f'GnuTLS {gnutls or "of unknown version"}: {how}, '
                  f'after {end // GIB} GiB; {reason}')
    return Assessment(verdict, reason,
                      None if sent is None else sent // PER_REKEY)


def _end(transport: Transport) -> tuple[str, int]:
    """Return how the migration ends, and after how many bytes."""
    if transport.live_migration_permit_post_copy:
        return 'fails at the first rekey (post-copy)', PER_REKEY
    return 'QEMU crashes at the second rekey', 2 * PER_REKEY


def _judge(memory: int, dirty_rate: int | None, sent: int | None,
           end: int) -> tuple[Verdict, str]:
    """Compare the bytes to send with the bytes at which the session breaks."""
    if memory >= end:
        return Verdict.WILL_FAIL, f'{memory / GIB:.1f} GiB are in use'
    if sent is None:
        return (Verdict.WILL_FAIL,
                'the guest writes faster than the migration sends')
    if sent >= end:
        return Verdict.WILL_FAIL, (
            f'{sent / GIB:.1f} GiB will be sent, as the guest writes '
            f'{(dirty_rate or 0) / GIB:.2f} GiB per second')
    if dirty_rate is None and _ROUNDS * memory >= end:
        return Verdict.AT_RISK, (
            f'{memory / GIB:.1f} GiB are in use and may be sent several '
            'times')
    return Verdict.SAFE, (
        f'about {sent / GIB:.1f} GiB will be sent; rekeys do harm from '
        f'{end // GIB} GiB on')


def _safe_anyway(transport: Transport, gnutls: str | None,
                 package: str) -> str:
    """Return why rekeys do no harm to any guest; '' if they may."""
    if transport.live_migration_tunnelled:
        return 'tunnelled through libvirt: QEMU does not use TLS'
    if not transport.live_migration_with_native_tls:
        return 'QEMU does not use TLS'
    if gnutls and is_fixed(gnutls, package):
        return f'GnuTLS {package or gnutls} rekeys safely'
    if (transport.live_migration_parallel_connections > 1
            and not transport.live_migration_permit_post_copy):
        return 'parallel connections, each used from one thread'
    return ''
