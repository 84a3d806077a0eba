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

"""What has passed on a tree, kept between runs.

A tree of git has a name that follows from its content, so what has passed on
it in the same environment has not to be run again: before the first patch
that is the release itself, whose tests two series share.
"""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
import json
import pathlib

from nova_migfix.tests import suites


class Passed:
    """The statuses of modules of which nothing failed.

    :param directory: where they are kept
    :param environment: tells apart what the tests are run in
    """

    def __init__(self, directory: pathlib.Path, environment: str) -> None:
        self._directory = directory
        self._environment = environment

    def read(self, tree: str) -> dict[str, dict[str, str]]:
        """Return each module's statuses by the names of its tests.

        :param tree: git's name of it
        """
        file = self._file(tree)
        return json.loads(file.read_text()) if file.exists() else {}

    def add(self, tree: str,
            modules: Mapping[str, Mapping[str, str]]) -> None:
        """Keep the modules' statuses, unless one of them is bad."""
        good = {module: statuses for module, statuses in modules.items()
                if statuses and all(map(suites.is_good, statuses.values()))}
        self._directory.mkdir(parents=True, exist_ok=True)
        self._file(tree).write_text(json.dumps({**self.read(tree), **good}))

    def _file(self, tree: str) -> pathlib.Path:
        name = hashlib.sha256(f'{tree} {self._environment}'.encode())
        return self._directory / f'{name.hexdigest()}.json'
