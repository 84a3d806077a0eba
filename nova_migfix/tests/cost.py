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

"""Compare what an action costs for inputs of different sizes."""

import time


def ratio(action, small, large):
    """Return how much more processor time the second input takes.

    Other load makes a run slower, never faster: the fastest counts.
    """
    return min(_spent(action, large) for _ in range(5)) / min(
        _spent(action, small) for _ in range(5))


def _spent(action, argument):
    before = time.process_time()
    action(argument)
    return time.process_time() - before
