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

"""Tables of what a guest sees of a device, and their application.

Nova computes the devices of a guest for the destination, while the guest still
has those with which it booted. A :class:`Table` says for each attribute that
libvirt knows of a device whether the running guest or Nova decides. For a new
attribute of libvirt, add a row: the code reads, writes and logs it by its
path.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import copy
import dataclasses
import enum
import functools
import itertools
import re

from lxml import etree


class Rule(enum.Enum):
    KEEP = 'as in the running guest, absent if it is absent there'
    FOLLOW = 'as Nova computed it for the destination'


FEATURE = 'a virtio feature that the guest has negotiated'

#: rows for the options that libvirt has for each virtio device
VIRTIO = (
    ('driver/@packed', Rule.KEEP, FEATURE),
    ('driver/@iommu', Rule.KEEP, FEATURE),
    ('driver/@ats', Rule.KEEP, 'a PCI capability of the device'),
    ('driver/@page_per_vq', Rule.KEEP, 'layout of the notification area'),
    ('driver/@event_idx', Rule.KEEP, FEATURE),
)


@dataclasses.dataclass(frozen=True)
class Attribute:
    """One attribute of a device in libvirt's domain XML.

    :ivar path: XPath from the device's element to one XML attribute, or to
        an element with all its contents
    :ivar rule: which of the two documents decides
    :ivar reason: why
    """

    path: str
    rule: Rule
    reason: str

    @property
    def child(self) -> str:
        """The name of a child of the device; '' for its attributes."""
        return re.split(r'[/[@]', self.path)[0]

    @functools.cached_property
    def name(self) -> str:
        """The name of an attribute; '' for an element."""
        step = self.path.rpartition('/')[2]
        return step[1:] if step.startswith('@') else ''

    @functools.cached_property
    def _find(self) -> etree.XPath:
        return etree.XPath(self.path)

    def read(self, device: etree._Element) -> str | None:
        """Return the value, the canonical XML of an element, or None."""
        found = self._find(device)
        if not found:
            return None
        if isinstance(found[0], str):
            return str(found[0])
        return etree.canonicalize(
            etree.tostring(found[0], encoding='unicode', with_tail=False),
            strip_text=True)

    def copy(self, source: etree._Element, target: etree._Element) -> None:
        """Copy the value of *source* to *target*, or remove it there."""
        parent_path, _, step = self.path.rpartition('/')
        parent = target.find(parent_path) if parent_path else target
        if parent is None:
            parent = etree.SubElement(target, parent_path)
        if step.startswith('@'):
            value = self.read(source)
            parent.attrib.pop(step[1:], None)
            if value is not None:
                parent.set(step[1:], value)
        else:
            tag = step.partition('[')[0]
            for element in parent.findall(tag):
                parent.remove(element)
            parent.extend(copy.deepcopy(self._find(source)))
        if parent is not target and not parent.attrib and not len(parent):
            target.remove(parent)


@dataclasses.dataclass(frozen=True)
class Kept:
    """A value that Nova would have changed: for the log and for reports."""

    #: identifies the device, for an operator
    device: str
    path: str
    #: value in the running guest, None if it has none
    running: str | None
    #: value that Nova computed for the destination, None for none
    computed: str | None


class Table:
    """The attributes of one kind of device.

    :param rows: path, rule and reason of each attribute
    """

    def __init__(self, *rows: tuple[str, Rule, str]) -> None:
        self.attributes = tuple(itertools.starmap(Attribute, rows))
        # those to keep, by the child of the device that they belong to
        self._kept: dict[str, list[Attribute]] = collections.defaultdict(list)
        for attribute in self.attributes:
            if attribute.rule is Rule.KEEP:
                self._kept[attribute.child].append(attribute)

    def keep(self, name: str, running: etree._Element,
             computed: etree._Element) -> Iterator[Kept]:
        """Correct a device, and yield the values that were kept.

        :param name: identifies the device, for an operator
        :param running: the device of the running guest
        :param computed: the device as Nova computed it, changed in place
        """
        for attribute in self._may_differ(running, computed):
            change = Kept(name, attribute.path, attribute.read(running),
                          attribute.read(computed))
            if change.running != change.computed:
                attribute.copy(running, computed)
                yield change

    def _may_differ(self, running: etree._Element,
                    computed: etree._Element) -> list[Attribute]:
        """Return the attributes to keep, without those that are the same.

        This comparison is cheap, and in most migrations nothing differs.
        """
        ones, others = ({child.tag: child for child in device}
                        for device in (running, computed))
        # the attributes of the device itself
        ones[''], others[''] = running, computed
        found = []
        for tag, attributes in self._kept.items():
            one, other = ones.get(tag), others.get(tag)
            if one is None and other is None:
                continue
            mine, theirs = ({} if element is None else dict(element.items())
                            for element in (one, other))
            is_same = one is not None and other is not None and _same(
                one, other)
            found += [attribute for attribute in attributes if (
                mine.get(attribute.name) != theirs.get(attribute.name)
                if attribute.name else not is_same)]
        return found


def _same(one: etree._Element, other: etree._Element) -> bool:
    """Return whether two elements surely have the same canonical XML."""
    return (one.text == other.text and not len(one) and not len(other)
            and dict(one.items()) == dict(other.items()))
