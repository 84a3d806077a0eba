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

# Checks the patches to Nova against the releases that they are for.
#
# Usage: tools/run_patches.sh [SERIES...] [--ends]
#
# A series is a directory of patches/; default: all. Prints one table; the exit
# status is not 0 if anything is not as it should be. Nothing is fetched but
# from the package index and, where distribution packages are missing, apt.

set -eu -o pipefail
cd "$(dirname "$0")/.."

. tools/runner.sh

exec "$runner/bin/tox" run -e patches -- "$@"
