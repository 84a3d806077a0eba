#!/bin/bash
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

# Checks and tests everything that needs no hypervisor, from a fresh Debian or
# Ubuntu on.
#
# Usage: tools/run_tests.sh [--all] [ENVIRONMENT...]
#
# The environments are those of tox.ini ("tox list"). --all adds what takes
# long: images of Kolla, many hosts, the documented commands and the tests of
# disks on the oldest release, and every row of the differential test. The last line printed is
# the sum of all test runs; the exit status is not 0 if anything failed.

set -eu -o pipefail
cd "$(dirname "$0")/.."

more=
oldest=nova-29-brief
if [ "${1:-}" = --all ]; then
    shift
    more='docs-commands-oldest kolla fleet'
    oldest=nova-29-quick
    export NOVA_MIGFIX_DIFFERENTIAL="${NOVA_MIGFIX_DIFFERENTIAL:-all}"
fi
if [ $# -eq 0 ]; then
    # style, types, documents and both ends of the supported releases
    # shellcheck disable=SC2086
    set -- pep8 docs releasenotes docs-commands $more $oldest nova-34-quick
fi

. tools/runner.sh
export OS_FUNCTIONAL_WORKERS="${OS_FUNCTIONAL_WORKERS:-$(($(nproc) * 2))}"

results=("${@/#/.tox/}")
rm -rf "${results[@]/%//.stestr}"
status=0
"$runner/bin/tox" run -e "$(IFS=,; echo "$*")" || status=$?
"$runner/bin/python" -m nova_migfix.tests.results "${results[@]}"
exit "$status"
