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

"""``nova-migfix-tls``: check and configure TLS of migrations on a hypervisor.

It does not need Nova, and runs where libvirt runs.
"""

from __future__ import annotations

import argparse
import sys

from nova_migfix.tls import audit
from nova_migfix.tls import lint
from nova_migfix.tls import policy
from nova_migfix.tls import probe

_COMMANDS = {
    'generate': (policy, 'print a policy that prevents rekeys'),
    'lint': (lint, 'find settings of a policy file that have no effect'),
    'probe': (probe, 'show the TLS that QEMU of this host negotiates'),
    'audit': (audit, 'list the running guests that TLS rekeys would harm'),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog='nova-migfix-tls',
        description='Check and configure TLS of migrations on a hypervisor.')
    commands = found.add_subparsers(required=True, metavar='COMMAND')
    for name, (module, text) in _COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=f'{text[0].upper()}{text[1:]}.')
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands; return its exit status."""
    args = parser().parse_args(argv)
    status: int = args.run(args)
    return status


if __name__ == '__main__':
    sys.exit(main())
