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

"""Read libvirt's qemu.conf."""

from __future__ import annotations

import re


def value(name: str, text: str) -> str | None:
    """Return a number or a string in the text of qemu.conf.

    :returns: the first value, as libvirt, without quotation marks; None:
        unset
    """
    found = re.search(
        rf'^[ \t]*{re.escape(name)}[ \t]*=[ \t]*'
        r'(?:"([^"\n]*)"|\'([^\'\n]*)\'|(\d+))', text, re.MULTILINE)
    return next(filter(None, found.groups()), '') if found else None
