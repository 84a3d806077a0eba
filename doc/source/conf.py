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

import functools
import itertools
import pathlib
import re
import sys

from nova_migfix.abi import disk as disk_abi
from nova_migfix.abi import vnic as vnic_abi
from nova_migfix.status import faults
from nova_migfix.status.faults import base as faults_base

SOURCE = pathlib.Path(__file__).parent
sys.path.insert(0, str(SOURCE.parents[1]))
from tools.patches import series    # noqa: E402 - of the checkout

extensions = [
    'openstackdocstheme',
    'oslo_config.sphinxconfiggen',
    'oslo_config.sphinxext',
    'reno.sphinxext',
    'sphinx.ext.autodoc',
    'sphinxarg.ext',
    'sphinxcontrib.svgbob',
]

project = 'nova-migfix'
copyright = 'nova-migfix contributors'

html_theme = 'openstackdocs'
openstackdocs_auto_name = False
openstackdocs_auto_version = False
openstackdocs_bug_project = ''
openstackdocs_repo_name = ''

config_generator_config_file = [
    ('../config-generator.conf', '_static/migfix'),
]

# Nova is not installed where the documentation is built.
autodoc_mock_imports = ['nova']


# -- tables, generated from the code that applies them ------------------------


def device_table(element, table):
    yield f'in ``<{element}>``', 'rule', 'why'
    for attribute in table.attributes:
        yield (f'``{attribute.path}``', attribute.rule.name.lower(),
               attribute.reason)


def text(sentences):
    """Return sentences of a fault as reStructuredText."""
    return re.sub('(--[a-z-]+)', r'``\1``',
                  sentences.replace('{thing}', '*(from the log)*'))


def phases_table():
    yield 'phase', 'the guest'
    yield from faults_base.PHASES.items()


def faults_table():
    yield 'fault', 'phase', 'log of', 'meaning', 'patterns'
    for fault in faults.FAULTS:
        yield (f'``{fault.name}``', fault.phase, fault.said_by,
               text(fault.meaning), ' and '.join(
                   f'``{pattern.strip()}``' for pattern in fault.patterns))


def fault_table(fault):
    """Yield the rows about one fault, for below its log lines."""
    yield '``explain``', f'``{fault.name}``'
    yield 'Phase', fault.phase
    yield 'Meaning', text(fault.meaning)
    yield 'What to do', text(fault.remedy)
    yield 'Releases', fault.releases
    yield 'Fix', f'``{fault.fix}``' if fault.fix else 'none'


def patches_table():
    subjects = {name: [series.subject(patch) for patch in series.read(name)]
                for name in series.SERIES}
    known = dict.fromkeys(itertools.chain(subjects['master'], *(
        subjects[name] for name in subjects)))
    yield 'patch', *subjects
    for subject in known:
        yield subject, *('yes' if subject in of_series else 'no'
                         for of_series in subjects.values())


TABLES = {
    'fixes/disk_table.rst': functools.partial(
        device_table, 'disk', disk_abi.DISK),
    'fixes/vnic_table.rst': functools.partial(
        device_table, 'interface', vnic_abi.VNIC),
    'patches/table.rst': patches_table,
    'status/faults_table.rst': faults_table,
    'status/phases_table.rst': phases_table,
    **{f'faults/table/{fault.name}.rst': functools.partial(fault_table, fault)
       for fault in faults.FAULTS},
}


def write_tables(app):
    for name, rows in TABLES.items():
        (SOURCE / name).parent.mkdir(exist_ok=True)
        (SOURCE / name).write_text(
            '.. list-table::\n   :header-rows: 1\n\n' + ''.join(
                '   * - ' + '\n     - '.join(row) + '\n' for row in rows()))


def setup(app):
    app.connect('builder-inited', write_tables)
