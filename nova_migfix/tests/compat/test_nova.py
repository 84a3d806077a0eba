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

"""Nova's tests around the migrations of the libvirt driver.

The environment variable ``MIGFIX_COMPAT_MODULES`` names other modules, and
``MIGFIX_COMPAT_DRIVER`` the driver.
"""

import faulthandler
import importlib
import os
import unittest

from nova import test

from nova_migfix.tests.compat import substitute

MODULES = (
    'nova.tests.unit.virt.libvirt.test_driver',
    'nova.tests.unit.virt.libvirt.test_migration',
    'nova.tests.unit.virt.libvirt.test_vif',
    'nova.tests.functional.libvirt.test_live_migration',
    'nova.tests.functional.libvirt.test_migration_addr',
    'nova.tests.functional.libvirt.test_numa_live_migration',
)


# Seconds after which a process ends if its test has not: under eventlet Nova's
# own limit does not end a test whose greenlets wait for one another.
BOUND = 400

_run = test.TestCase.run


def bounded_run(self, result=None):
    faulthandler.dump_traceback_later(BOUND, exit=True)
    return _run(self, result)


class Unimportable(unittest.TestCase):
    """A failing test with the name of a module that cannot be imported."""

    def __init__(self, module, error):
        super().__init__('fail_to_import')
        self._module, self._error = module, error

    def id(self):
        return self._module

    def fail_to_import(self):
        raise self._error


def load_module(loader, name):
    try:
        return loader.loadTestsFromModule(importlib.import_module(name))
    except Exception as error:
        return Unimportable(name, error)


def load_tests(loader, tests, pattern):
    """Load Nova's tests, with their own names, for one of two drivers."""
    test.TestCase.run = bounded_run
    if os.environ.get('MIGFIX_COMPAT_DRIVER') == 'migfix':
        substitute.install()
    modules = os.environ.get('MIGFIX_COMPAT_MODULES')
    return unittest.TestSuite(
        load_module(loader, name)
        for name in (modules.split() if modules else MODULES))
