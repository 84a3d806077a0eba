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

"""The command line of the lab; tools/run_lab.sh installs its requirements."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from collections.abc import Iterator
import contextlib
import signal
import sys
import time
import types
from typing import NoReturn

import fixtures
from rich import console

from lab import cloud
from lab import control_plane
from lab import environments
from lab import evidence
from lab import hypervisor
from lab import image
from lab import kept
from lab import process
from lab import report
from lab import runner
from lab import scenario
from lab import scenarios
from lab import workdir

DEFAULT_NOVA = '34.0.0'

PASSED, FAILED, BROKEN, INTERRUPTED = 0, 1, 2, 130


def parse(argv: list[str]) -> argparse.Namespace:
    width = max(map(len, scenarios.ALL)) + 1
    names = '\n'.join(f'  {item.name:{width}}{item.title}'
                      for item in scenarios.ALL.values())
    parser = argparse.ArgumentParser(
        prog='run_lab.sh', formatter_class=argparse.RawTextHelpFormatter,
        description='Live migrations between two real hypervisors, with '
                    'unmodified Nova and\nwith the plugin, or the patches, of '
                    'this checkout.',
        epilog=f'scenarios (default: all):\n{names}')
    parser.add_argument('scenario', nargs='*', metavar='SCENARIO')
    parser.add_argument('--keep', action='store_true',
                        help='leave the lab up and show how to log in')
    parser.add_argument('--down', action='store_true',
                        help='end a lab that was left up, and do nothing else')
    parser.add_argument('--nova', default=DEFAULT_NOVA, metavar='X.Y.Z',
                        help=f'release of Nova (default: {DEFAULT_NOVA})')
    parser.add_argument('--variant', choices=environments.VARIANTS,
                        default=environments.PLUGIN,
                        help='how Nova is fixed (default: plugin)')
    parser.add_argument('--only', choices=(environments.STOCK,
                                           environments.FIXED),
                        help='run with this Nova only (default: both)')
    arguments = parser.parse_intermixed_args(argv)
    unknown = set(arguments.scenario) - set(scenarios.ALL)
    if unknown:
        parser.error(f'no such scenario: {", ".join(sorted(unknown))}\n'
                     f'{parser.epilog}')
    return arguments


def chosen(names: Iterable[str]) -> list[scenario.Scenario]:
    return [item for name, item in scenarios.ALL.items()
            if not names or name in names]


def prepare(
    directories: workdir.WorkDir, version: str, variant: str,
    progress: runner.Progress,
) -> tuple[environments.Environments, image.GuestImage]:
    """Make the environments and the image, which are kept between runs."""
    directories.prepare()
    venvs = environments.Environments(version, directories, variant)
    venvs.make(progress)
    progress('kernel and disk image of the guest')
    disk = image.GuestImage(directories.cache)
    disk.make(directories.root / 'install.log')
    hypervisor.Tools(directories.cache).make()
    return venvs, disk


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore signals during the context, so that a cleanup completes."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    yield
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


def run(arguments: argparse.Namespace, directories: workdir.WorkDir,
        screen: console.Console) -> list[evidence.Result]:
    """Bring the lab up and run the scenarios; return all Results."""
    begin = time.monotonic()
    results: list[evidence.Result] = []
    with runner.Progress(screen) as progress:
        venvs, disk = prepare(directories, arguments.nova, arguments.variant,
                              progress)
        lab = cloud.Cloud(directories, venvs, disk, arguments.keep, progress)
        try:
            lab.setUp()
            progress.done('the lab is up')
            results += runner.perform(lab, chosen(arguments.scenario),
                                      progress, arguments.only)
        except BaseException:
            take_down(lab, progress)
            # Those that have ended before an interruption.
            report.write(directories.report, results, venvs,
                         time.monotonic() - begin)
            raise
        if arguments.keep:
            kept.remember(directories.kept, lab.hosts.values())
        else:
            take_down(lab, progress)
    report.write(directories.report, results, venvs,
                 time.monotonic() - begin)
    if arguments.keep:
        for line in control_plane.login_hint(lab.hosts, venvs.control):
            screen.print(line, soft_wrap=True, highlight=False)
        screen.print('tools/run_lab.sh --down ends it')
    return results


def take_down(lab: cloud.Cloud, progress: runner.Progress) -> None:
    with uninterrupted():
        progress.begin('')
        progress('taking the lab down')
        # If the setup has failed, fixtures have already cleaned up.
        if lab.hosts and getattr(lab, '_cleanups', None):
            lab.cleanUp(raise_first=False)


def interrupt(number: int, frame: types.FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    screen = console.Console()
    directories = workdir.WorkDir()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        directories.lock()
        ended = kept.end(directories.kept)
        if ended:
            screen.print(f'ended the lab left up: {", ".join(ended)}')
        if arguments.down:
            return PASSED
        directories.forget_run()
        results = run(arguments, directories, screen)
    except KeyboardInterrupt:
        screen.print('interrupted; the lab is down')
        return INTERRUPTED
    except (process.LabError, fixtures.MultipleExceptions) as error:
        screen.print(f'{scenario.reason(error)}', style='bold red',
                     markup=False, soft_wrap=True)
        return BROKEN
    screen.print(runner.make_table(results, arguments.variant))
    screen.print(f'report: {directories.report}', soft_wrap=True)
    as_expected = all(result.as_expected for result in results)
    return PASSED if as_expected else FAILED


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
