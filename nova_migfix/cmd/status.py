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
"""``nova-migfix-status``: check this host and its guests before migrations.

Run it beside nova-compute: on the hypervisor, in nova-compute's Python
environment, as nova-compute's user. It reads nova-compute's configuration.
Only ``report`` runs elsewhere, and does not need Nova.
"""

from __future__ import annotations

import argparse
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
from nova_migfix.status import terminal

with contextlib.suppress(ImportError):
    # registers Nova's options
    importlib.import_module('nova.conf')

CONF = cfg.CONF     # also Nova's

PROGRAM = 'nova-migfix-status'
_DESCRIPTION = 'Check this host and its guests before migrations.'

# Commands that draw on the terminal themselves.
_DRAWING = frozenset(('heal',))

#: oslo.upgradecheck's code: neither success, warning nor failure
ERROR = 255


def parser() -> argparse.ArgumentParser:
    """Return a parser of the commands, for their documentation.

    The command itself parses its arguments by oslo.config, which adds its own
    options, such as ``--config-file``.
    """
    found = argparse.ArgumentParser(prog=PROGRAM, description=_DESCRIPTION)
    _add_parsers(found.add_subparsers(dest='command', metavar='COMMAND'))
    return found


def _add_parsers(subparsers: Any) -> None:
    subparsers.required = True
    upgrade = _add_command(
        subparsers, 'upgrade', 'check the configuration of this host')
    upgrade.add_argument('check', choices=['check'])
    _add_json(upgrade)
    preflight = _add_command(
        subparsers, 'preflight',
        'predict the effects of a migration on the guests of this host')
    preflight.add_argument(
        '--instance', metavar='UUID', action='append', default=[],
        help='check only this instance; may be repeated')
    preflight.add_argument(
        '--dest', metavar='HOST', help='destination of the migrations, by '
        'its name, or without ssh its live_migration_inbound_addr: ask it by '
        'ssh and through libvirt')
    _add_json(preflight.add_mutually_exclusive_group()).add_argument(
        '--csv', action='store_true',
        help='print CSV on standard output, and notes on standard error')
    explain = _add_command(
        subparsers, 'explain',
        'explain why a live migration of an instance failed')
    explain.add_argument('uuid', metavar='UUID', help='of the instance')
    explain.add_argument(
        '--request', metavar='ID', default='', help='explain the migration '
        'with this request ID (default: the last migration)')
    explain.add_argument(
        '--qemu-log', metavar='FILE', default='', help='log of the guest\'s '
        'QEMU; -: standard input (default: search /var/log/libvirt/qemu)')
    explain.add_argument(
        '--libvirt-log', metavar='FILE', default='', help='log or journal of '
        'libvirt; -: standard input (default: libvirtd.log, if it exists)')
    _add_json(explain)
    heal = _add_command(
        subparsers, 'heal',
        'make old ephemeral disks independent of their backing files')
    heal.add_argument(
        '--instance', metavar='UUID', action='append', default=[],
        help='complete only the disks of this instance; may be repeated')
    heal.add_argument('--dry-run', action='store_true',
                      help='print the cost, and change nothing')
    heal.add_argument(
        '--bandwidth', metavar='MiB/s', type=int, default=100,
        help='limit of the write rate; 0: no limit (default: %(default)s)')
    heal.add_argument('--yes', action='store_true',
                      help='do not ask for confirmation')
    report = _add_command(
        subparsers, 'report',
        'merge the answers of many hosts into one report')
    report.add_argument(
        'directory', metavar='DIRECTORY', help='directory with a file '
        'HOST.json for each host, as ansible/report.yml writes it')
    report.add_argument('--json', metavar='FILE',
                        help='write the report as JSON to this file')
    report.add_argument('--html', metavar='FILE',
                        help='write the report as an HTML page to this file')


def _add_command(subparsers: Any, name: str, text: str) -> Any:
    return subparsers.add_parser(
        name, help=text, description=f'{text[0].upper()}{text[1:]}.')


def _add_json(command: Any) -> Any:
    command.add_argument('--json', action='store_true',
                         help='print JSON instead of a table')
    return command


COMMAND = cfg.SubCommandOpt(
    'command', title='Commands', handler=_add_parsers)


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands.

    :returns: 0: success; 1: a warning; 2: a failure; 255: the command could
        not do its work
    """
    with contextlib.redirect_stderr(terminal.Printable(sys.stderr)):
        return _main(argv)


def _main(argv: list[str] | None) -> int:
    CONF.register_cli_opt(COMMAND)
    logging.register_options(CONF)
    conf.register_opts(CONF)
    try:
        CONF(sys.argv[1:] if argv is None else argv, project='nova',
             prog=PROGRAM, description=_DESCRIPTION)
        with warnings.catch_warnings():
            # hide deprecation warnings of Nova's libraries
            warnings.simplefilter('ignore')
            return _run()
    except (cfg.Error, status.Error) as error:
        print(error, file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f'{error}: run this command in the Python environment of '
              'nova-compute.', file=sys.stderr)
    except Exception:
        traceback.print_exc()
    return ERROR


def _run() -> int:
    # Some of Nova's modules read the configuration at import.
    command = importlib.import_module(
        f'nova_migfix.status.{CONF.command.name}')
    output = contextlib.nullcontext() if CONF.command.name in _DRAWING else (
        contextlib.redirect_stdout(terminal.Printable(sys.stdout)))
    with output:
        code: int = command.run(CONF.command)
    return code


if __name__ == '__main__':
    sys.exit(main())
