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
"""``nova-migfix-status``: what migrations do to the guests of this host.

Reads nova-compute's configuration, as nova-compute does, and is run beside it:
in its Python environment, on the hypervisor, by the user that it runs as. Only
``report`` is for elsewhere, and needs no Nova.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from typing import Any
import warnings

from oslo_config import cfg
from oslo_log import log as logging

from nova_migfix import conf
from nova_migfix import status

with contextlib.suppress(ImportError):
    # registers Nova's options
    importlib.import_module('nova.conf')

CONF = cfg.CONF     # Nova's, too

#: as oslo.upgradecheck's: neither success, warning nor failure
ERROR = 255


def _add_parsers(subparsers: Any) -> None:
    subparsers.required = True
    upgrade = subparsers.add_parser(
        'upgrade', help='check the configuration of this host')
    upgrade.add_argument('check', choices=['check'])
    _add_json(upgrade)
    preflight = subparsers.add_parser(
        'preflight', help='tell what a migration would do to the guests that '
        'run here')
    preflight.add_argument(
        '--instance', metavar='UUID', action='append', default=[],
        help='look at this one, and others so named, only')
    preflight.add_argument(
        '--dest', metavar='HOST', help='where guests are to be migrated to; '
        'is asked by ssh which fixes it has')
    _add_json(preflight.add_mutually_exclusive_group()).add_argument(
        '--csv', action='store_true',
        help='print CSV; the notes go to standard error')
    explain = subparsers.add_parser(
        'explain', help='tell why the last live migration of an instance has '
        'failed')
    explain.add_argument('uuid', metavar='UUID', help='of the instance')
    _add_json(explain)
    heal = subparsers.add_parser(
        'heal', help='make old ephemeral disks complete, so that they need no '
        'backing file')
    heal.add_argument(
        '--instance', metavar='UUID', action='append', default=[],
        help='complete the disks of this one, and others so named, only')
    heal.add_argument('--dry-run', action='store_true',
                      help='say what it would cost, and change nothing')
    heal.add_argument(
        '--bandwidth', metavar='MiB/s', type=int, default=100,
        help='most that is written; 0: no limit (default: %(default)s)')
    heal.add_argument('--yes', action='store_true', help='do not ask')
    report = subparsers.add_parser(
        'report', help='merge what many hosts have told into one report')
    report.add_argument(
        'directory', metavar='DIRECTORY', help='with a file HOST.json for '
        'each host: what ansible/report.yml has registered there')
    report.add_argument('--json', metavar='FILE', help='write it as JSON')
    report.add_argument('--html', metavar='FILE', help='write it as a page')


def _add_json(parser: Any) -> Any:
    parser.add_argument('--json', action='store_true',
                        help='print JSON instead of a table')
    return parser


COMMAND = cfg.SubCommandOpt(
    'command', title='Commands', handler=_add_parsers)


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands.

    :returns: 0: all is well; 1: a warning; 2: a failure; 255: it could not be
        found out
    """
    CONF.register_cli_opt(COMMAND)
    logging.register_options(CONF)
    conf.register_opts(CONF)
    try:
        CONF(sys.argv[1:] if argv is None else argv, project='nova',
             prog='nova-migfix-status')
        with warnings.catch_warnings():
            # of Nova's libraries, which say that they are deprecated
            warnings.simplefilter('ignore')
            return _run()
    except (cfg.Error, status.Error) as error:
        print(error, file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f'{error}: run this in the Python environment of nova-compute.',
              file=sys.stderr)
    except Exception:
        traceback.print_exc()
    return ERROR


def _run() -> int:
    # Some of Nova's modules look at the configuration when they are imported.
    command = importlib.import_module(
        f'nova_migfix.status.{CONF.command.name}')
    code: int = command.run(CONF.command)
    return code


if __name__ == '__main__':
    sys.exit(main())
