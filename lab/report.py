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

"""The report: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import datetime
import pathlib
import platform

import jinja2

from lab import environments
from lab import evidence
from lab import process
from lab import runner
from lab import workdir

_VERSIONS = (
    ('libvirt', ('libvirtd', '--version')),
    ('QEMU', ('qemu-system-x86_64', '--version')),
    ('Open vSwitch', ('ovs-vswitchd', '--version')),
)


def versions(
    environments: environments.Environments,
) -> Iterator[tuple[str, str]]:
    """Yield the name and version of each tested program."""
    yield 'Nova', environments.version
    for package in ('keystone', 'glance', 'openstack_placement', 'neutron'):
        yield package, environments.control.version_of(package)
    for name, argv in _VERSIONS:
        yield name, process.run(argv).splitlines()[0]
    yield 'Python', environments.nova['stock'].python_version()
    yield 'kernel', platform.release()


def write(path: pathlib.Path, results: Sequence[evidence.Result],
          environments: environments.Environments, seconds: float) -> None:
    """Write the report of all *results* to *path*.

    :param seconds: the duration of the whole run
    """
    loader = jinja2.FileSystemLoader(workdir.DATA)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template('report.html.j2').render(
        results=results, rows=list(runner.rows(results)),
        versions=list(versions(environments)), seconds=seconds,
        variant=environments.variant,
        failed=[result for result in results if not result.as_expected],
        now=datetime.datetime.now(datetime.timezone.utc))
    path.write_text(text)
