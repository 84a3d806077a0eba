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

"""The base class of scenarios, and the class that runs one.

A scenario defines the setup, the steps, and the expected outcome with
unmodified Nova and with a fixed one, which has the plugin or the patches. It
calls the methods of `Run` for its steps: each of them does one thing and keeps
the evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import pathlib
import time
from typing import Any
from typing import TypeVar
from typing import Union

import fixtures

from lab import cloud
from lab import compute
from lab import configuration
from lab import disks
from lab import environments
from lab import evidence
from lab import fabric
from lab import guest
from lab import process
from lab import topology

T = TypeVar('T')
# Run.guest hides the module from the annotations of that class.
Guest = guest.Guest
Migration = guest.Migration
# By role of the host and key of LOGS.
Logs = Mapping[tuple[str, str], evidence.Marked]

SOURCE, DESTINATION = topology.COMPUTES
STOCK, FIXED = environments.STOCK, environments.FIXED

MAX_QUEUES = ('libvirt', 'max_queues')
TRANSPORT = ('libvirt', 'remote_filesystem_transport')
INBOUND_ADDRESS = ('libvirt', 'live_migration_inbound_addr')
CONFIG_DRIVE_FORMAT = ('DEFAULT', 'config_drive_format')
EPHEMERAL_FORMAT = ('DEFAULT', 'default_ephemeral_format')
BANDWIDTH = ('libvirt', 'live_migration_bandwidth')

# Seconds in which a migration that a fault hits has to come to an end, and
# seconds to wait if it is expected to come to none.
PATIENCE = 120
_NO_PATIENCE = 30

# The logs, below the directory of a host.
LOGS = {
    'nova-compute': 'log/nova-compute.log',
    'libvirtd': 'var/log/libvirt/libvirtd.log',
    'qemu': 'var/log/libvirt/qemu/{domain}.log',
}


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """The Nova, STOCK or FIXED, that runs on each compute host.

    :param column: of the table at the end: STOCK or FIXED
    """

    name: str
    column: str
    source: str
    destination: str


NEITHER = Arrangement('neither', STOCK, STOCK, STOCK)
SOURCE_ONLY = Arrangement('source only', FIXED, FIXED, STOCK)
BOTH = Arrangement('both', FIXED, FIXED, FIXED)
DESTINATION_ONLY = Arrangement('destination only', FIXED, STOCK, FIXED)

# In this order the fewest nova-compute services are replaced.
ARRANGEMENTS = (NEITHER, SOURCE_ONLY, BOTH, DESTINATION_ONLY)


def in_release(choices: Mapping[int, T], major: int) -> T:
    """Return the choice for a release of Nova.

    :param choices: ``{first release: choice from that release on}``
    """
    return choices[max(first for first in choices if first <= major)]


@dataclasses.dataclass(frozen=True)
class Said:
    """A line that must appear in a log.

    :param host: SOURCE or DESTINATION *of the migration*
    :param log: a key of LOGS
    :param pattern: a regular expression that the line matches
    :param since: the first major version of Nova in which it must appear
    :param patched_since: the same with the patch set, None: never
    """

    host: str
    log: str
    pattern: str
    since: int = 0
    patched_since: int | None = 0

    def must_appear(self, venvs: environments.Environments) -> bool:
        """Return whether the tested Nova must log the line."""
        if venvs.variant == environments.PLUGIN:
            return venvs.major >= self.since
        return self.patched_since is not None and venvs.major >= max(
            self.since, self.patched_since)


@dataclasses.dataclass(frozen=True)
class Arrives:
    """The migration completes and the guest runs on the destination.

    :param said: the lines that prove the reason
    """

    said: tuple[Said, ...] = ()
    text: str = 'arrives'


@dataclasses.dataclass(frozen=True)
class Fails:
    """The migration fails, for this reason, and leaves this state.

    :param said: the lines that prove the reason
    :param record: the possible final states of the migration record
    :param vm_state: of the instance, by the first release with that state
    :param survives: whether the guest keeps running, on the instance's host
    """

    said: tuple[Said, ...]
    record: tuple[str, ...] = ('failed', 'error')
    vm_state: Mapping[int, str] = dataclasses.field(
        default_factory=lambda: {0: 'ACTIVE'})
    text: str = 'fails'
    survives: bool = True

    def vm_state_in(self, major: int) -> str:
        return in_release(self.vm_state, major)


@dataclasses.dataclass(frozen=True)
class Leaves:
    """A fault hits the migration, and leaves the guest in this state.

    :param harm: keys of remains.RULES: the rules that unmodified Nova breaks;
        none: all rules hold, and the next migration arrives
    :param holds: keys of remains.RULES that hold in spite of the harm
    :param vm_state: the possible states of the instance; MIGRATING while it
        has that task
    :param host: the host that Nova names, SOURCE or DESTINATION; None: either
    :param record: the possible final states of the migration record
    :param allowed: keys of remains.RULES that need not hold
    :param reason: the pattern of the reason, which an event of the instance's
        action has; '': there need not be any
    :param said: the lines that prove the reason
    """

    text: str
    harm: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    vm_state: tuple[str, ...] = ('ACTIVE',)
    host: str | None = None
    record: tuple[str, ...] = ('failed', 'cancelled', 'completed', 'error')
    allowed: tuple[str, ...] = ()
    reason: str = ''
    said: tuple[Said, ...] = ()

    @property
    def patience(self) -> float:
        """Seconds to wait for the end of the migration."""
        endless = {'record', 'task'} & set(self.harm)
        return _NO_PATIENCE if endless else PATIENCE


Outcome = Union[Arrives, Fails, Leaves]
# For all releases, or by release as `in_release` expects it.
Expectation = Union[Outcome, Mapping[int, Outcome]]

# From 2025.2 on, Nova re-raises an exception after the rollback and puts the
# instance into ERROR, although its guest keeps running.
ERROR_SINCE_32 = {0: 'ACTIVE', 32: 'ERROR'}


class Scenario:
    """The base class of scenarios; each is a module of `scenarios`.

    :cvar name: on the command line
    :cvar title: in the report, one sentence
    :cvar expected: the outcome by Arrangement; where that depends on the
        release, a mapping for `in_release`
    :cvar variants: the variants of a fixed Nova that can run it
    :cvar options: of nova.conf on both hosts, ``{(section, option): value}``
    """

    name = ''
    title = ''
    expected: Mapping[Arrangement, Expectation] = {}
    variants: tuple[str, ...] = environments.VARIANTS
    options: configuration.Options = {}

    def expectation(self, arrangement: Arrangement, major: int) -> Outcome:
        """Return the expected outcome in a release of Nova."""
        expected = self.expected[arrangement]
        return (expected if isinstance(expected, (Arrives, Fails, Leaves))
                else in_release(expected, major))

    def impossible(self, major: int) -> str:
        """Return why this machine cannot run the scenario; '' if it can.

        :param major: of the release of Nova
        """
        return ''

    def run(self, run: Run) -> None:
        """Perform the steps of the scenario."""
        raise NotImplementedError


class Run(fixtures.Fixture):
    """One scenario in one arrangement, on a cloud that is up."""

    def __init__(self, cloud: cloud.Cloud, scenario: Scenario,
                 arrangement: Arrangement,
                 progress: Callable[[str], object]) -> None:
        self.cloud = cloud
        self.scenario = scenario
        self.arrangement = arrangement
        self.expected = scenario.expectation(arrangement, cloud.venvs.major)
        self.progress = progress
        self.result = evidence.Result(scenario, arrangement, self.expected)

    @property
    def fixed(self) -> bool:
        return self.arrangement is BOTH

    @property
    def protected(self) -> bool:
        """Whether any host has a fixed Nova."""
        return self.arrangement is not NEITHER

    def perform(self) -> evidence.Result:
        """Run the scenario; all errors go into the Result."""
        begin = time.monotonic()
        try:
            with self:
                self.scenario.run(self)
        except Exception as error:
            why = reason(error)
            self.result.error = str(why)
            if isinstance(why, guest.Silent):
                self.result.crashed += str(why)
        self.result.seconds = time.monotonic() - begin
        return self.result

    # Methods for the setup of a scenario.

    def configure(self, source: configuration.Options | None = None,
                  destination: configuration.Options | None = None,
                  both: configuration.Options | None = None,
                  tap_queue_limit: int | None = None,
                  arrangement: Arrangement | None = None) -> None:
        """(Re)start nova-compute where its options differ from these.

        :param source, destination, both: ``{(section, option): value}``
        :param tap_queue_limit: of the destination's kernel
        :param arrangement: instead of the run's own arrangement
        """
        self.progress('nova-compute')
        arrangement = arrangement or self.arrangement
        common = {**self.scenario.options, **(both or {})}
        settings = {
            SOURCE: compute.Settings(
                arrangement.source, {**common, **(source or {})}),
            DESTINATION: compute.Settings(
                arrangement.destination,
                {**common, **(destination or {})}, tap_queue_limit),
        }
        self.cloud.configure(settings)

    def guest(self, image: Any = None, host: str = SOURCE,
              **wanted: Any) -> Guest:
        """Return a guest for *host*; a `with` statement boots and deletes it.

        :param wanted: further arguments of guest.Guest
        """
        self.progress(f'guest on {host}')
        return guest.Guest(self.cloud, image or self.cloud.multiqueue, host,
                           **wanted)

    def boot(self, *arguments: Any, **wanted: Any) -> Guest:
        """Boot a guest and wait for its answer; the run's end deletes it."""
        return self.useFixture(self.guest(*arguments, **wanted))

    def instances(self, host: str) -> pathlib.Path:
        """Return the directory with the files of all guests on *host*."""
        return configuration.instances(self.cloud.hosts[host].root)

    def snapshot(self, instance: Guest, name: str) -> disks.Snapshot:
        """Copy a guest's disk, by the *name* of its file."""
        host = self.cloud.hosts[instance.host]
        return self.useFixture(
            disks.Snapshot(host, instance.disk(host.name, name)))

    def listen_ssh(self, *networks: topology.Network) -> None:
        """Make sshd of both hosts answer on these networks only."""
        for server in self.cloud.ssh.values():
            server.listen(networks)

    # Methods for the steps of a scenario.

    def migrate(self, instance: Guest, destination: str = DESTINATION,
                title: str = '', expected: Outcome | None = None,
                during: Callable[[], object] | None = None) -> bool:
        """Migrate a guest and check the expected outcome.

        :param expected: default: the scenario's
        :param during: called during the migration
        :returns: whether the guest has arrived
        """
        expected = expected or self.expected
        source = instance.host
        self.progress(f'{source} to {destination}')
        step = evidence.Step(title or f'{source} to {destination}')
        self.result.steps.append(step)
        step.before = instance.vm_state
        logs = self._mark(source, destination, instance)
        was = evidence.interfaces(instance.live_xml(source))
        with self._watched(step, instance):
            migration = step.migration = (
                instance.attempt(destination, during, expected.patience)
                if isinstance(expected, Leaves)
                else instance.migrate(destination, during))
            self._judge(step, migration, expected, logs)
            if isinstance(expected, Leaves):
                return migration.arrived
            if getattr(expected, 'survives', True):
                self._check_alive(instance, migration)
            else:
                self.check('guest does not answer any more',
                           not instance.answers())
        self._keep_xml(step, migration, instance, was, logs)
        return migration.arrived

    def _mark(self, source: str, destination: str, instance: Guest) -> Logs:
        """Return the logs of both hosts from now on, by (role, name)."""
        return {
            (role, log): evidence.Marked(
                host, self.cloud.hosts[host].root / path.format(
                    domain=instance.domain))
            for role, host in ((SOURCE, source), (DESTINATION, destination))
            for log, path in LOGS.items()}

    @contextlib.contextmanager
    def _watched(self, step: evidence.Step, instance: Guest) -> Iterator[None]:
        """Ping the guest and capture packets during the context."""
        with contextlib.ExitStack() as stack:
            captures = [stack.enter_context(fabric.Capture(
                self.cloud.controller, network))
                for network in (topology.MANAGEMENT, topology.MIGRATION)]
            step.pings = stack.enter_context(instance.pinged())
            yield
        step.wire = evidence.wire(captures)
        step.networks = {capture.network.name for capture in captures
                         if capture.connections}

    def _judge(self, step: evidence.Step, migration: Migration,
               expected: Outcome, logs: Logs) -> None:
        if isinstance(expected, Leaves):
            self.check('recorded: the migration', True, migration)
        elif isinstance(expected, Fails):
            state = expected.vm_state_in(self.cloud.venvs.major)
            self.check_in('migration record', migration.status,
                          expected.record)
            self.check_equal('state of the instance', migration.vm_state,
                             state)
        else:
            self.check_equal('migration record', migration.status,
                             'completed')
            self.check_equal('host of the instance', migration.host,
                             migration.destination)
            self.check_equal('state of the instance', migration.vm_state,
                             'ACTIVE')
        for said in expected.said:
            if said.must_appear(self.cloud.venvs):
                self._check_said(step, said, logs)

    def _check_said(self, step: evidence.Step, said: Said, logs: Logs) -> None:
        log = logs[said.host, said.log]
        line = log.find(said.pattern)
        if line:
            step.lines.append(line)
        role = 'source' if said.host == SOURCE else 'destination'
        self.check(f'{said.log} log of the {role} has /{said.pattern}/',
                   bool(line), line.short if line else 'nothing like it'
                   f'{process.tail(log.path, 5)}')

    def _check_alive(self, instance: Guest,
                     migration: Migration) -> None:
        """Check that the guest answers, on the instance's host only."""
        self.check_equal('hosts with the domain', instance.running_on(),
                         [migration.host])
        try:
            instance.wait_reachable()
        except guest.Silent as error:
            self.result.crashed += str(error)
            self.check('guest answers', False, str(error))
            return
        self.check('guest answers', True, f'from {migration.host}')
        boot_id, _ = instance.says(migration.host)
        words = instance.last_words(migration.host)
        self.result.crashed += words
        self.check(f'boot id of the guest: {instance.boot_id}',
                   boot_id == instance.boot_id, f'{boot_id} {words}')

    def _keep_xml(self, step: evidence.Step, migration: Migration,
                  instance: Guest, was: Sequence[str], logs: Logs) -> None:
        """Keep how the guest's interface differs from that on the source.

        Compared are the XML from Nova for the destination, and the guest's
        XML there.
        """
        others = {'the XML that Nova computed for the destination':
                  evidence.generated_interfaces(
                      logs[SOURCE, 'nova-compute'].text())}
        if migration.arrived:
            others['the guest on the destination'] = evidence.interfaces(
                instance.live_xml(migration.destination))
        step.xml = [(title, evidence.difference(was, other))
                    for title, other in others.items() if other]

    # Methods for the checks of a scenario.

    def check(self, statement: str, holds: object, found: object = '') -> None:
        self.result.checks.append(
            evidence.Check(statement, bool(holds), str(found)))

    def check_equal(self, what: str, found: object, expected: object) -> None:
        self.check(f'{what}: {expected}', found == expected, found)

    def check_kept(self, statement: str, holds: object,
                   found: object = '') -> None:
        """Check a statement that holds with a fixed Nova, and only then."""
        self.check(statement if self.protected else f'not so: {statement}',
                   bool(holds) == self.protected, found)

    def check_in(self, what: str, found: str, expected: Sequence[str]) -> None:
        self.check(f'{what}: {" or ".join(expected)}', found in expected,
                   found)

    def check_source_says(self, statement: str, pattern: str,
                          action: Callable[[], object]) -> None:
        """Check that the source's nova-compute logs *pattern* on an action."""
        log = evidence.Marked(SOURCE, self.cloud.compute[SOURCE].log)
        action()
        line = log.find(pattern)
        self.check(statement, line, line and line.short)

    def check_queues(self, instance: Guest, host: str, expected: int) -> None:
        """Check the guest's queue pairs, in the XML and in its kernel."""
        xml = instance.live_xml(host)
        self.check_equal(f'queues in the XML on {host}',
                         evidence.queues(xml), expected)
        self.check_equal(
            f'queues seen by the guest on {host}',
            sum(queue.startswith('rx') for queue in instance.says(host)[1]),
            expected)

    def check_wire(self, networks: Sequence[topology.Network]) -> None:
        """Check on which networks the last migration used port 22."""
        self.check_equal('ssh seen on', sorted(
            self.result.steps[-1].networks), sorted(
                network.name for network in networks))


def reason(error: BaseException) -> BaseException:
    """Return the first of the exceptions that fixtures have gathered."""
    while isinstance(error, fixtures.MultipleExceptions):
        _, error, _ = error.args[0]
    return error
