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
"""``upgrade check``: check whether this host is set up for the fixes.

:data:`CHECKS` has one function for each check. They inspect this host only,
and are read-only.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from collections.abc import Iterator
import functools
import os
import pathlib
import sys

import nova.conf
from nova import exception
from nova import version
from nova.virt.libvirt import vif
from oslo_privsep import daemon
from oslo_upgradecheck import upgradecheck
from stevedore import named

from nova_migfix.abi import tap
from nova_migfix import fixes
from nova_migfix import nova_release
from nova_migfix.status import endpoint
from nova_migfix.status import mkfs
from nova_migfix.status import privileges
from nova_migfix.status.results import failure
from nova_migfix.status.results import success
from nova_migfix.status.results import warning
from nova_migfix.storage import disks
from nova_migfix.tls import probe
from nova_migfix.tls import qmp

CONF = nova.conf.CONF

DRIVER = 'migfix.LibvirtDriver'

# Its fault is not in Nova, so that no release of Nova fixes it.
_NOT_OF_NOVA = frozenset(('tls_rekey',))

_PROC = pathlib.Path('/proc')
# Index of a field in /proc/PID/stat after the name; see proc_pid_stat(5).
_STARTTIME = 19
# Seconds by which the start may be later: the boot time has no fractions.
_UNCERTAINTY = 1


# -- the plugin and its Nova -------------------------------------------------

def is_active() -> bool:
    """Return whether nova-compute is configured to load the plugin."""
    return bool(CONF.compute_driver == DRIVER)


def covered_fixes() -> frozenset[str]:
    """Return the names of the fixes that are active here or that Nova has.

    Empty if [migfix] enabled_fixes is invalid: nova-compute does not start.
    """
    covered = {fixes.State.NOT_NEEDED} | (
        {fixes.State.ACTIVE} if is_active() else set())
    try:
        found = fixes.find(CONF.migfix.enabled_fixes)
    except exception.InvalidConfiguration:
        return frozenset()
    return frozenset(fix.name for fix in found if fix.state in covered)


def _plugin() -> upgradecheck.Result:
    if not is_active():
        return failure(
            f'compute_driver is {CONF.compute_driver}: guests are migrated '
            f'without the fixes. Set [DEFAULT] compute_driver = {DRIVER} and '
            'restart nova-compute.')
    if 'migfix' not in named.NamedExtensionManager(
            'os_vif', names=[]).entry_points_names():
        return failure(
            f'{DRIVER} cannot be loaded from this Python environment: run '
            '"pip install nova-migfix" in the environment of nova-compute.')
    changed = max(map(os.path.getmtime, CONF.config_file), default=0)
    for pid, begin in _computes():
        if begin + _UNCERTAINTY < changed:
            return warning(
                f'nova-compute (process {pid}) was started before the last '
                'change of its configuration: restart it.')
    return success(f'nova-compute is configured to load {DRIVER}.')


def _computes() -> Iterator[tuple[str, float]]:
    """Yield PID and start of each nova-compute of this environment.

    The start is in seconds since the epoch.
    """
    here = os.path.dirname(sys.executable)
    booted = next(float(line.split()[1]) for line in (
        _PROC / 'stat').read_text().splitlines() if line.startswith('btime'))
    for process in _PROC.glob('[0-9]*'):
        try:
            arguments = _text(process / 'cmdline').split('\0')
            # after the name, which may contain any character
            numbers = _text(process / 'stat').rpartition(')')[2].split()
        except OSError:
            continue
        if (os.path.dirname(arguments[0]) == here
                and 'nova-compute' in map(os.path.basename, arguments[:2])):
            yield process.name, booted + int(
                numbers[_STARTTIME]) / os.sysconf('SC_CLK_TCK')


def _text(path: pathlib.Path) -> str:
    """Read a file that any user may write, in any encoding."""
    return path.read_text(errors='replace')


def _release() -> upgradecheck.Result:
    try:
        nova_release.require_supported()
    except exception.InvalidConfiguration as error:
        return failure(str(error))
    return success(f'Nova {version.version_string()}.')


def _fix(found: fixes.Found) -> upgradecheck.Result:
    verdict = warning if found.state is fixes.State.OFF else success
    return verdict(str(found))


def _patched(found: list[fixes.Found]) -> upgradecheck.Result:
    needed = {fix.name for fix in found
              if fix.state is not fixes.State.NOT_NEEDED} - _NOT_OF_NOVA
    if not needed and is_active():
        return warning(
            'This Nova contains all fixes of the plugin but the check of TLS: '
            'set [DEFAULT] compute_driver = libvirt.LibvirtDriver, or keep '
            'the plugin until all hosts have such a Nova.')
    return success(f'This Nova needs {", ".join(sorted(needed)) or "none"}.')


# -- vNICs and disks of guests -----------------------------------------------

def _queues() -> upgradecheck.Result:
    wanted = vif.LibvirtGenericVIFDriver(None)._get_max_tap_queues()
    try:
        possible = privileges.call(tap.max_queues)
    except (OSError, daemon.FailedToDropPrivileges) as error:
        return warning(
            'The number of queues that a tap device supports could not be '
            f'determined: {error}. Run this command as root.')
    if wanted and wanted > possible:
        return failure(
            f'Nova gives a vNIC up to {wanted} queues, but the kernel opens '
            f'only {possible}: set [libvirt] max_queues = {possible}.')
    return success(
        f'The kernel opens {possible} queues of a tap device; Nova gives a '
        f'vNIC up to {wanted or "one for each vCPU"}.')


def _ephemeral_disks() -> upgradecheck.Result:
    worst = [failure(problem) for problem in mkfs.problems(_LABEL)]
    # LP 2061701: the label on the destination
    if not worst and nova_release.major() < 30 and (
            'ephemeral' not in covered_fixes()):
        worst = [failure(f'In a live migration: {problem}')
                 for problem in mkfs.problems(_BASE)]
    return worst[0] if worst else success(
        'File systems can be made and labelled: '
        f'{", ".join(mkfs.os_types())}.')


def _ephemeral_overlays() -> upgradecheck.Result:
    notes: list[str] = []
    found = list(disks.all_overlays(notes.append))
    missing = {disk.backing for _instance, disk in found
               if disks.lacks_backing_file(disk)}
    text = (f'{len(found)} disks of {len({name for name, _ in found})} '
            'instances need backing files that Nova made, of which '
            f'{len(missing)} are missing.')
    if notes or missing or (found and not CONF.migfix.ephemeral_overlays):
        return warning(' '.join((
            text, *notes, 'Run "nova-migfix-status heal --dry-run".')))
    return success(text)


#: Nova's name of the first disk, and of its backing file
_LABEL, _BASE = 'ephemeral0', 'ephemeral_100_40d1d2c'


# -- TLS ---------------------------------------------------------------------

def _tls() -> upgradecheck.Result:
    if not CONF.libvirt.live_migration_with_native_tls:
        return success('Not used: [libvirt] live_migration_with_native_tls.')
    try:
        answer = probe.probe(probe.find_qemu())
    except (OSError, qmp.QemuError) as error:
        return warning(
            f'The TLS that QEMU negotiates could not be determined: {error}. '
            'Run "nova-migfix-tls probe" where QEMU is installed; with Kolla '
            'in the container nova_libvirt.')
    verdict = {'safe': success, 'rekeys': warning, 'unknown': warning}.get(
        answer.verdict, failure)
    return verdict(' '.join(filter(None, (
        answer.version, answer.cipher, f'{answer.verdict}.',
        answer.doubt or answer.error or _TLS.get(answer.verdict, '')))))


_TLS = {
    'rekeys': 'Migrations of large guests fail if the source has a GnuTLS '
              'older than 3.8.11: see "nova-migfix-tls generate".',
}


#: checks that do not depend on the registered fixes
CHECKS: tuple[tuple[str, Callable[[], upgradecheck.Result]], ...] = (
    ('Plugin', _plugin),
    ('Release of Nova', _release),
    *endpoint.CHECKS,
    ('Queues of tap devices', _queues),
    ('Ephemeral disks', _ephemeral_disks),
    ('Ephemeral overlays', _ephemeral_overlays),
    ('TLS', _tls),
)


def _fix_checks() -> Iterator[tuple[str, Callable[[], upgradecheck.Result]]]:
    try:
        found = fixes.find(CONF.migfix.enabled_fixes)
    except exception.InvalidConfiguration as error:
        yield 'Fixes', functools.partial(failure, str(error))
        return
    for fix in found:
        yield f'Fix {fix.name}', functools.partial(_fix, fix)
    yield 'Patched Nova', functools.partial(_patched, found)


class Commands(upgradecheck.UpgradeCommands):

    display_title = 'nova_migfix on this host'

    @property
    def _upgrade_checks(self):  # type: ignore[no-untyped-def,override]
        return tuple((name, lambda _self, check=check: check())
                     for name, check in (*CHECKS, *_fix_checks()))


def run(args: argparse.Namespace) -> int:
    """Print the result of each check; return oslo.upgradecheck's code."""
    upgradecheck.CONF = CONF
    return int(Commands().check())
