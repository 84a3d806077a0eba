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

"""What the scenarios with ephemeral disks have in common."""

from nova_migfix.tests.lab import guest
from nova_migfix.tests.lab import process
from nova_migfix.tests.lab import scenario
from nova_migfix.tests.lab import topology

ONE_GB = (guest.Ephemeral(1),)

# Without the plugin it is a success for Nova, but not for who has the disk.
DAMAGES = scenario.Arrives(text='arrives, disk damaged')
KEEPS = scenario.Arrives(text='arrives, disk kept')

# Files are written, with their checksums, until there are enough.
_WRITE = '''
mkdir -p /disk && mount -t {type} /dev/{device} /disk && mkdir /disk/written
cd /disk/written || exit 1
(
    for number in $(seq 1 600); do
        head -c 65536 /dev/urandom >$number
        md5sum $number >>/disk/sums
        sync; sleep 0.1
    done
) >/dev/null 2>&1 &
echo $! >/writer
'''

# New directories come to lie in all allocation groups.
_USE = '''
for number in $(seq 1 16); do
    mkdir /disk/{directory}$number &&
        cp /init /disk/{directory}$number || exit 1
done
sync
'''

_VERIFY = '''
cd /disk/written && [ -s /disk/sums ] || exit 1
md5sum -c /disk/sums 2>&1 | grep -v ': OK'
[ $? = 1 ]
'''


def write(instance, kind, device='vdb'):
    """Mount a disk in the guest and write to it from now on."""
    instance.run(_WRITE.format(type=kind, device=device))


def use(instance, kind, device='vdb', directory='new'):
    """Use a disk in all ways after a migration; '' or what went wrong."""
    mount = f'mount -t {kind} /dev/{device} /disk'
    return _first_failure(instance, (
        'kill $(cat /writer); sleep 1; sync', _USE.format(
            directory=directory),
        'echo 3 >/proc/sys/vm/drop_caches', _VERIFY,
        'umount /disk', mount, _VERIFY,
        'umount /disk; sync'))


def verify(instance, kind, device='vdb'):
    """Read all that was written, after a boot; '' or what went wrong."""
    return _first_failure(instance, (
        f'mkdir -p /disk && mount -t {kind} /dev/{device} /disk', _VERIFY,
        'umount /disk; sync'))


def _first_failure(instance, scripts):
    try:
        for script in scripts:
            instance.run(script)
    except process.LabError as error:
        return f'{error}\n{_kernel_says(instance)}'
    return ''


def _kernel_says(instance):
    try:
        return instance.run('dmesg | tail -n 15')
    except process.LabError as error:
        return str(error)


def bases(run, host):
    """The bases of ephemeral disks in the image cache of *host*."""
    return list(run.instances(host).glob('_base/ephemeral_*'))


def forget_bases(run):
    """As if there had never been a guest with an ephemeral disk."""
    for host in topology.COMPUTES:
        for base in bases(run, host):
            base.unlink()


def cache_foreign_base(run, host=scenario.DESTINATION):
    """Leave a base on *host* that another guest was booted with."""
    with run.guest(host=host, ephemerals=ONE_GB):
        pass
    run.check('a base of that name on the destination',
              bases(run, host), [base.name for base in bases(run, host)])
