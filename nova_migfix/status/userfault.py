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
"""Whether QEMU may handle page faults of the kernel, as post-copy needs.

See vm.unprivileged_userfaultfd in the kernel's documentation. QEMU 8.0 and
later prefer /dev/userfaultfd, if libvirt lets them open it.
"""

from __future__ import annotations

import pathlib

from nova_migfix.status import qemu

_SETTING = pathlib.Path('/proc/sys/vm/unprivileged_userfaultfd')
_DEVICE = pathlib.Path('/dev/userfaultfd')
_REMEDY = 'Set vm.unprivileged_userfaultfd = 1 with sysctl.'


def state() -> tuple[bool | None, str]:
    """Return whether QEMU may, None if that is not known, and the reason."""
    try:
        if _SETTING.read_text().strip() != '0':
            return True, 'vm.unprivileged_userfaultfd is 1.'
    except FileNotFoundError:
        return True, 'This kernel has no vm.unprivileged_userfaultfd.'
    except OSError as error:
        return None, f'Not checked: {error}.'
    user = qemu.user()
    if user is None:
        return None, ('vm.unprivileged_userfaultfd is 0, and the user of QEMU '
                      'is not known: post-copy fails unless it is root. '
                      f'{_REMEDY}')
    if user.uid == 0:
        return True, 'QEMU is root.'
    if _DEVICE.exists():
        return None, ('vm.unprivileged_userfaultfd is 0, and QEMU is not '
                      'root: post-copy fails unless QEMU is 8.0 or later and '
                      f'may open {_DEVICE}. {_REMEDY}')
    return False, ('vm.unprivileged_userfaultfd is 0, and QEMU is not root: '
                   f'live migrations with post-copy fail. {_REMEDY}')
