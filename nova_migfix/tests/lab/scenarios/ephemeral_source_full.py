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

"""A source has no space to make a disk complete for an unmodified destination.

QEMU would fill the file system, and pause the guest with its next write.
Unmodified Nova makes nothing complete, so there is nothing to compare with.
"""

from nova_migfix.tests.lab import configuration
from nova_migfix.tests.lab import scenario
from nova_migfix.tests.lab.scenarios import ephemeral
from nova_migfix.tests.lab import topology


class EphemeralSourceFull(scenario.Scenario):
    name = 'ephemeral-source-full'
    title = 'No space on the source to make a disk complete beforehand.'
    expected = {scenario.SOURCE_ONLY: scenario.Fails(said=(scenario.Said(
        scenario.SOURCE, 'nova-compute',
        r'disk\.eph0 of instance \S+ cannot be made complete, .*: .*'
        r'has \d+ MiB, and \d+ MiB are free'),), text='fails, guest goes on')}

    def run(self, run):
        run.configure(both={scenario.EPHEMERAL_FORMAT: 'xfs'})
        run.listen_ssh(topology.MANAGEMENT, topology.MIGRATION)
        host = run.cloud.hosts[scenario.SOURCE]
        place = configuration.instances(host.own)
        host.run('mount', '-t', 'tmpfs', '-o', 'size=16g', 'tmpfs', place)
        try:
            self.migrate(run, host, place)
        finally:
            host.run('umount', '--lazy', place)

    @staticmethod
    def migrate(run, host, place):
        run.cloud.wait_for_space(scenario.SOURCE)
        ephemeral.cache_heavy_base(run)
        with run.guest(ephemerals=ephemeral.ONE_GB) as instance:
            ephemeral.write(instance, 'xfs')
            used = int(host.run(
                'df', '--output=used', '-B1', place).split()[1])
            size = used + ephemeral.HEAVY // 2
            host.run('mount', '-o', f'remount,size={size}', place)
            run.migrate(instance, title='no space')
            host.run('mount', '-o', 'remount,size=16g', place)
            failure = ephemeral.use(instance, 'xfs')
            run.check('guest can use the disk', not failure, failure)
