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
"""Live-migrate a guest with a config drive, with its disks.

libvirt does not copy read-only disks, and from 30.1 on Nova does not either:
it makes an empty file of the same size. A vfat config drive is a writable disk
and is never lost.
"""

from __future__ import annotations

import hashlib
import itertools

from lab import disks
from lab import guest
from lab import scenario
from lab import topology

FILE = 'disk.config'

# The formats, and how the guest mounts them.
ISO, VFAT = 'iso9660', 'vfat'
_MOUNT = {
    ISO: 'mount -o ro -t iso9660 /dev/sr0 /config',
    VFAT: 'mount -o ro -t vfat /dev/vdb /config',
}
_READ = '''
echo 3 >/proc/sys/vm/drop_caches
mkdir -p /config && {mount} || exit 1
grep -q {id} /config/openstack/latest/meta_data.json
status=$?
umount /config
exit $status
'''


class ConfigDrive(scenario.Scenario):
    name = 'config-drive'
    title = ('A config drive, ISO and vfat; fetched by ssh and by rsync, and '
             'one that was emptied before.')
    expected = {
        scenario.NEITHER: scenario.Arrives(text='arrives, ISO all zeros'),
        scenario.BOTH: scenario.Arrives(said=(scenario.Said(
            scenario.DESTINATION, 'nova-compute',
            r'Pulled .*/disk\.config.* from ', patched_since=30),),
            text='arrives, config drive kept'),
    }
    emptied = scenario.Arrives(said=(scenario.Said(
        scenario.SOURCE, 'nova-compute',
        r'WARNING .*(contains only zeros.* hard reboot the instance'
        '|has nothing but zeros; reboot)'),))
    # Older releases copy the ISO, from the source's host name.
    lost_since = 30

    def run(self, run: scenario.Run) -> None:
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        for config_format, transport in itertools.product(
                (ISO, VFAT), ('ssh', 'rsync')):
            run.configure(both={scenario.CONFIG_DRIVE_FORMAT: config_format,
                                scenario.TRANSPORT: transport})
            with run.guest(config_drive=True) as instance:
                self.migrate(run, instance, config_format, transport)
                if run.protected and (
                        config_format, transport) == (ISO, 'rsync'):
                    self.rebuild(run, instance)

    def migrate(self, run: scenario.Run, instance: guest.Guest,
                config_format: str, transport: str) -> None:
        """Check the file and the guest's view of it, before and after."""
        case = f'{config_format} by {transport}'
        before = sha256(run, instance)
        run.check(f'{case}: guest can read it', readable(
            instance, config_format))
        run.migrate(instance, title=case)
        after = sha256(run, instance)
        readings = {'after the migration': readable(instance, config_format)}
        run.progress('hard reboot')
        instance.hard_reboot()
        readings['after a hard reboot'] = readable(instance, config_format)
        keep = (run.check_kept if config_format == ISO and
                run.cloud.venvs.major >= self.lost_since else run.check)
        keep(f'{case}: disk.config equal on both hosts, sha256',
             before == after, f'{before} {after}')
        for when, works in readings.items():
            keep(f'{case}: guest can read it {when}', works)

    def rebuild(self, run: scenario.Run, instance: guest.Guest) -> None:
        """Check the warning about an emptied file, and that it is rebuilt."""
        disks.empty(instance.files(instance.host) / FILE)
        run.migrate(instance, scenario.SOURCE, title='an emptied one',
                    expected=self.emptied)
        run.check('an emptied one: guest cannot read it', not readable(
            instance, ISO))
        run.progress('hard reboot')
        instance.hard_reboot()
        run.check('an emptied one: guest can read it after a hard reboot',
                  readable(instance, ISO))


def sha256(run: scenario.Run, instance: guest.Guest) -> str:
    """Return the digest of the config drive on the guest's host."""
    path = instance.files(instance.host) / FILE
    return hashlib.sha256(path.read_bytes()).hexdigest()


def readable(instance: guest.Guest, config_format: str) -> bool:
    """Return whether the guest reads its own id from the config drive."""
    return instance.succeeds(_READ.format(
        mount=_MOUNT[config_format], id=instance.id))
