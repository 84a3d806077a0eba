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
# Usage: tools/run_tests.sh [ENVIRONMENT...]
#
# The environments are those of tox.ini ("tox list"). The last line printed
# is the sum of all test runs; the exit status is not 0 if anything failed.

set -eu -o pipefail
cd "$(dirname "$0")/.."

if [ $# -eq 0 ]; then
    # style, types, documents, images and both ends of the supported releases
    set -- pep8 docs releasenotes kolla nova-29-quick nova-34-quick
fi

install_packages() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "Missing on this machine, please install: $*" >&2
        exit 1
    fi
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --no-install-recommends "$@" >/dev/null
}

# -- what runs the environments ---------------------------------------------

runner=.tox/.runner
python3 -c 'import ensurepip' 2>/dev/null ||
    install_packages python3 python3-venv
"$runner/bin/python" -c '' 2>/dev/null || python3 -m venv --clear "$runner"
"$runner/bin/python" -m pip install -qq \
    'tox>=4.21,<5' 'tox-uv>=1.16,<2' 'stestr>=4,<5' bindep

missing=$("$runner/bin/bindep" -b) || install_packages $missing

# -- the environments -------------------------------------------------------

# uv trusts the machine's certificates, as pip does, and not its own list; it
# does not read pip's variables
export UV_SYSTEM_CERTS=1
if [ -n "${PIP_INDEX_URL:-}" ]; then
    export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
fi

results=("${@/#/.tox/}")
rm -rf "${results[@]/%//.stestr}"
status=0
"$runner/bin/tox" run -e "$(IFS=,; echo "$*")" || status=$?
"$runner/bin/python" -m nova_migfix.tests.results "${results[@]}"
exit "$status"
