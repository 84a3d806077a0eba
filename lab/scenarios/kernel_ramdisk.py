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
"""Migrate a guest whose image has a kernel and a ramdisk.

Nova fetches both from Glance again and then inspects them for the format of a
disk. If they are deleted from Glance it copies them from the source's host
name, where sshd need not answer.
"""

from __future__ import annotations

import hashlib
from typing import Any

from lab import guest
from lab import image
from lab import scenario
from lab import topology


def _fails(pattern: str) -> scenario.Fails:
    return scenario.Fails(said=(scenario.Said(
        scenario.DESTINATION, 'nova-compute', pattern),))


class KernelRamdisk(scenario.Scenario):
    name = 'kernel-ramdisk'
    title = ('An image with kernel_id and ramdisk_id, which are in Glance or '
             'deleted.')
    unacceptable = _fails(r'ImageUnacceptable|does not pass safety check')
    gone = _fails(r'ssh: connect to host compute\d port 22: Connection refuse')
    expected = {scenario.NEITHER: unacceptable,
                scenario.BOTH: scenario.Arrives(said=(scenario.Said(
                    scenario.DESTINATION, 'nova-compute',
                    r'kernel taken from the source', patched_since=None),))}

    # Older releases inspect images themselves and take a kernel for a raw
    # disk; oslo.utils finds a boot sector in it.
    inspected_since = 30

    def run(self, run: scenario.Run) -> None:
        run.configure()
        run.listen_ssh(topology.MIGRATION)
        parts = upload_parts(run)
        disk = run.cloud.upload(
            'with-kernel', **{f'{kind}_id': part.id
                              for kind, part in parts.items()},
            os_command_line=image.COMMAND_LINE)
        instance = run.boot(disk)
        digests = sha256(instance)
        if run.migrate(instance, title='kernel and ramdisk in Glance',
                       expected=self.in_glance(run)):
            check_same(run, instance, digests)
        for part in parts.values():
            run.cloud.api.image.delete_image(part)
        destination, = set(topology.COMPUTES) - {instance.host}
        if run.migrate(instance, destination,
                       title='kernel and ramdisk deleted',
                       expected=None if run.protected else self.gone):
            check_same(run, instance, digests)
            run.progress('hard reboot')
            instance.hard_reboot()
            check_same(run, instance, digests)

    def in_glance(self, run: scenario.Run) -> scenario.Outcome | None:
        """Return the expected outcome, None for the scenario's."""
        inspected = run.cloud.venvs.major >= self.inspected_since
        return None if inspected or run.protected else scenario.Arrives()


def upload_parts(run: scenario.Run) -> dict[str, Any]:
    """Upload the guest's kernel and ramdisk as images of their own."""
    files = run.cloud.image
    return {
        'kernel': run.cloud.upload('kernel', files.kernel, 'aki', 'aki'),
        'ramdisk': run.cloud.upload('ramdisk', files.initramfs, 'ari', 'ari'),
    }


def sha256(instance: guest.Guest) -> dict[str, str]:
    """Return the digests of both files on the guest's host."""
    directory = instance.files(instance.host)
    return {name: hashlib.sha256((directory / name).read_bytes()).hexdigest()
            for name in ('kernel', 'ramdisk')}


def check_same(run: scenario.Run, instance: guest.Guest,
               digests: dict[str, str]) -> None:
    run.check_equal(f'kernel and ramdisk on {instance.host}, sha256',
                    sha256(instance), digests)
