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

"""Nova's own test suites, with the plugin's driver instead of Nova's.

``python -m nova_migfix.tests.compat`` runs the suites twice, with Nova's
driver and with the plugin's, and compares the results test by test.
"""

# This import prepares Nova for all its tests.
import nova_migfix.tests.functional  # noqa: F401
