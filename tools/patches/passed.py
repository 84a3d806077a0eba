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

"""The results of tests that have passed on a tree, kept between runs.

git names a tree by its content, so tests that have passed on it need not run
again in the same environment. Before the first patch the tree is the release
itself, whose results two series share.
"""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
import json
import pathlib

from nova_migfix.tests import suites


class Passed:
    """The statuses of test modules without a failure.

    :param directory: of the files with the statuses
    :param environment: a text that identifies the tests' environment
    """

    def __init__(self, directory: pathlib.Path, environment: str) -> None:
        self._directory = directory
        self._environment = environment

    def read(self, tree: str) -> dict[str, dict[str, str]]:
        """Return each module's statuses by the names of its tests.

        :param tree: the name that git gives to the tree
        """
        file = self._file(tree)
        return json.loads(file.read_text()) if file.exists() else {}

    def add(self, tree: str,
            modules: Mapping[str, Mapping[str, str]]) -> None:
        """Keep the statuses of modules without a failure."""
        good = {module: statuses for module, statuses in modules.items()
                if statuses and all(map(suites.is_good, statuses.values()))}
        self._directory.mkdir(parents=True, exist_ok=True)
        self._file(tree).write_text(json.dumps({**self.read(tree), **good}))

    def _file(self, tree: str) -> pathlib.Path:
        name = hashlib.sha256(f'{tree} {self._environment}'.encode())
        return self._directory / f'{name.hexdigest()}.json'
