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

# Prepares this machine for tox; sourced, in the root of the checkout.
#
# Missing distribution packages are installed, as root on Debian or Ubuntu.
# $runner is then an environment with tox.

install_packages() {
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "Missing on this machine, please install: $*" >&2
        exit 1
    fi
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --no-install-recommends \
            --option DPkg::Lock::Timeout=300 "$@" >/dev/null
}

runner=.tox/.runner
python3 -c 'import ensurepip' 2>/dev/null ||
    install_packages python3 python3-venv
"$runner/bin/python" -c '' 2>/dev/null || python3 -m venv --clear "$runner"
"$runner/bin/python" -m pip install -qq \
    'tox>=4.21,<5' 'tox-uv>=1.16,<2' 'stestr>=4,<5' bindep

missing=$("$runner/bin/bindep" -b) || install_packages $missing

# uv trusts the machine's certificates, as pip does, and not its own list; it
# does not read pip's variables
export UV_SYSTEM_CERTS=1
if [ -n "${PIP_INDEX_URL:-}" ]; then
    export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"
fi
