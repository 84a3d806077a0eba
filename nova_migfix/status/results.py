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
"""Results of the checks of ``upgrade check``."""

from __future__ import annotations

from collections.abc import Iterable
import functools

from oslo_upgradecheck import upgradecheck

success = functools.partial(upgradecheck.Result, upgradecheck.Code.SUCCESS)
warning = functools.partial(upgradecheck.Result, upgradecheck.Code.WARNING)
failure = functools.partial(upgradecheck.Result, upgradecheck.Code.FAILURE)


def merged(problems: Iterable[upgradecheck.Result],
           otherwise: str) -> upgradecheck.Result:
    """Return one result: the worst code, and all texts.

    :param otherwise: text of the success if there is no problem
    """
    found = list(problems)
    if not found:
        return success(otherwise)
    return upgradecheck.Result(
        max(problem.code for problem in found),
        ' '.join(str(problem.details) for problem in found))
