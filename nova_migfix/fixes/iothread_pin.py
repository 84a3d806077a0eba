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

"""Let Nova 33 migrate guests that an older release has started.

Since Nova 33 (2026.1) a guest has an I/O thread. In a migration with NUMA
topology, CPU pinning or huge pages, Nova 33 updates the CPUs of that thread,
and fails with "'NoneType' object has no attribute 'set'" for a guest without
one (LP 2152697). Nova 34 skips such a guest.

The fix gives Nova an empty ``<iothreadpin>`` to update, and removes it again
before libvirt gets the XML.
"""

from __future__ import annotations

from typing import Any

from lxml import etree

from nova_migfix.fixes import base
from nova_migfix import nova_release

_TAG = 'iothreadpin'


class IothreadPin(base.Fix):
    name = 'iothread_pin'
    bug = 'guests without an I/O thread do not migrate (LP 2152697)'

    @classmethod
    def not_needed(cls) -> str | None:
        return None if nova_release.major() == 33 else 'only Nova 33 needs it'

    def update_running_xml(
        self, migrate_data: Any, running: etree._Element,
    ) -> None:
        tuning = running.find('./cputune')
        if tuning is not None and tuning.find(_TAG) is None:
            etree.SubElement(tuning, _TAG)

    def update_destination_xml(
        self, driver: Any, instance: Any, migrate_data: Any,
        destination: etree._Element, running: etree._Element,
    ) -> None:
        # A pin of an I/O thread names the thread.
        for pin in destination.xpath(f'./cputune/{_TAG}[not(@iothread)]'):
            pin.getparent().remove(pin)
