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

"""Read and change a domain's XML."""

from __future__ import annotations

from collections.abc import Callable

from lxml import etree


def parse(xml: str) -> etree._Element:
    """Parse a domain's XML, without entities and without network access.

    :raises ValueError: the document is not well-formed, or has a DTD
    """
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        document = etree.fromstring(xml, parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f'Not a domain\'s XML: {error}') from error
    if document.getroottree().docinfo.internalDTD is not None:
        # libvirt writes none. It could only define entities.
        raise ValueError('Not a domain\'s XML: it has a document type')
    return document


def updated(xml: str, update: Callable[..., None],
            *arguments: object) -> str:
    """Return a domain's XML after a change.

    :param update: takes the document, which it changes in place, and the
        arguments
    :raises ValueError: see parse
    """
    document = parse(xml)
    update(document, *arguments)
    return str(etree.tostring(document, encoding='unicode'))
