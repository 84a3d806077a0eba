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

"""Where one of Nova's tests must see something else than with Nova's driver.

An entry is the last resort: first the plugin is to be made such that the
test does not notice it. Names that a release does not have are no matter; an
entry that makes no difference is an error like a difference without entry.
"""

from __future__ import annotations

from typing import NamedTuple

from nova_migfix import nova_release


class Difference(NamedTuple):
    #: what the test comes to with our driver
    status: str
    #: why that is what the plugin is for
    reason: str
    #: the oldest release in which it does
    since: int = nova_release.OLDEST


_DRIVER = 'nova.tests.unit.virt.libvirt.test_driver.LibvirtConnTestCase.'

_TELLS_MORE = Difference('fail', (
    'The test compares all that the destination answers with a literal; ours '
    'also tells dest_capabilities, of os-vif from 33 on.'), since=33)
_OUR_OBJECT = Difference('fail', (
    'The test makes the object by its module\'s name and asks for the class '
    'by the registry\'s, where ours is. Nova itself makes it by the latter.'))
_READS_XML = Difference('fail', (
    'The test keeps Nova from reading the running guest\'s XML and has none '
    'for the driver, which reads it where Nova did not.'))

INTENDED = {
    _DRIVER + name: difference
    for difference, names in {
        _TELLS_MORE: (
            'test_check_can_live_migrate_dest_all_pass_no_block_migration',
            'test_check_can_live_migrate_dest_all_pass_with_block_migration',
            'test_check_can_live_migrate_dest_all_pass_with_over_commit',
            'test_check_can_live_migrate_dest_no_instance_cpu_info',
            'test_check_can_live_migrate_guest_cpu_none_model',
        ),
        _OUR_OBJECT: (
            'test_pre_live_migration_image_not_created_with_shared_storage',
            'test_pre_live_migration_with_not_shared_instance_path',
        ),
        _READS_XML: (
            'test_live_migration_update_vifs_xml',
        ),
    }.items() for name in names
}


def intended(name: str) -> Difference | None:
    """Return what is intended of a test in the running release, if anything.

    :param name: the full name of the test
    """
    difference = INTENDED.get(name)
    if difference and nova_release.major() >= difference.since:
        return difference
    return None
