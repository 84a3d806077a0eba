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

"""Where one of Nova's tests must see something else than with Nova's driver.

An entry is the last resort: first the plugin is to be made such that the
test does not notice it. Names that a release does not have are no matter; an
entry that makes no difference is an error like a difference without entry.
"""

from typing import NamedTuple


class Difference(NamedTuple):
    #: what the test comes to with our driver
    status: str
    #: why that is what the plugin is for
    reason: str


INTENDED: dict[str, Difference] = {
}
