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

"""Fake QEMU and libvirt below Nova's Guest, for block jobs.

QEMU keeps its files open if they are renamed or removed: hard links stand in
for open files here. The guest writes at each call of libvirt, so the tests
notice a step that loses a write. All state is in files and outlives a killed
nova-compute.
"""

import os
import pathlib

import fixtures
from lxml import etree
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import guest as libvirt_guest
from oslo_concurrency import processutils
from oslo_serialization import jsonutils

#: the steps of a completion in order; keys of Qemu.hooks
STEPS = ('copy asked', 'copy runs', 'pivot asked', 'pivoted', 'snapshot asked',
         'snapshot made', 'pull asked', 'pull runs', 'pull done')

_KILLED = 9

# Number of queries after which a job is complete.
_END = 2

_TYPES = {'pull': 1, 'copy': 2}

_COPY_FLAGS = (fakelibvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT
               | fakelibvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
               | 1 << 3)    # VIR_DOMAIN_BLOCK_COPY_SYNCHRONOUS_WRITES
_SNAPSHOT_FLAGS = (fakelibvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
                   | fakelibvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
                   | fakelibvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT)


def failure(message, code=fakelibvirt.VIR_ERR_OPERATION_INVALID):
    return fakelibvirt.make_libvirtError(
        fakelibvirt.libvirtError, message, error_code=code)


class Qemu(fixtures.Fixture):
    """A running guest with the disks vda and vdb.

    :param path: overlay on a raw file, the disk vdb
    :ivar guest: Nova's Guest
    :ivar hooks: functions to call at one of STEPS, at 'abort asked' or at
        'looked at'
    :ivar asked: the steps that this process has reached, with their arguments
    :ivar stuck: whether jobs make no progress
    :ivar expected: raw image of the data that the guest must see
    """

    def __init__(self, path):
        self._path = str(path)
        self.hooks = {}
        self.asked = []
        self.stuck = False

    def _setUp(self):
        # Hard links need the file system of the disk.
        self._dir = pathlib.Path(self.useFixture(fixtures.TempDir(
            os.path.dirname(os.path.dirname(self._path)))).path)
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.guest.libvirt', fakelibvirt))
        self._save(looks=0, writes=0)
        self.restart()
        self.expected = self._dir / 'expected'
        self.execute('convert', '-O', 'raw', self.image, self.expected)
        self.guest = libvirt_guest.Guest(self)

    @staticmethod
    def execute(*command):
        processutils.execute('qemu-img', *command)

    @property
    def _state(self):
        return jsonutils.loads((self._dir / 'state').read_text())

    def _save(self, **changes):
        path = self._dir / 'state'
        known = self._state if path.exists() else {}
        path.write_text(jsonutils.dumps({**known, **changes}))

    def _hold(self, name, path):
        held = self._dir / name
        held.unlink(missing_ok=True)
        os.link(path, held)

    # -- the guest ------------------------------------------------------------

    @property
    def image(self):
        """The disk that the guest sees, as an argument of qemu-img."""
        form = self._state['backing']
        return self._node('source', 'qcow2', backing=form and {
            'driver': form, 'file': self._file('backing')})

    def _node(self, name, form, **options):
        return 'json:' + jsonutils.dumps(
            {'driver': form, 'file': self._file(name), **options})

    def _file(self, name):
        return {'driver': 'file', 'filename': str(self._dir / name)}

    @property
    def source(self):
        """The name of the file that the guest uses, in libvirt's XML."""
        return self._state['source']

    @property
    def job(self):
        """The running job: 'copy', 'pull' or None."""
        return self._state['job']

    def runs_on(self, path):
        """Return whether the guest writes to the file with that name."""
        return self.source == str(path) and os.path.samefile(
            path, self._dir / 'source')

    def restart(self):
        """Restart the guest: open the disk by its name, and end all jobs."""
        self._save(source=self._path, backing=None)
        self.end_job()
        self._hold('source', self._path)
        info = self._info(self._path)
        if 'full-backing-filename' in info:
            self._hold('backing', info['full-backing-filename'])
            self._save(backing=info['backing-filename-format'],
                       below=info['full-backing-filename'])

    @staticmethod
    def _info(path):
        found, _errors = processutils.execute(
            'qemu-img', 'info', '--output', 'json', path)
        return jsonutils.loads(found)

    def write(self):
        """Make the guest write, to a mirror as well."""
        count = self._state['writes'] + 1
        self._save(writes=count)
        nodes = [self.image, self._node('expected', 'raw')]
        if self._state['mirror']:
            nodes.append(self._node('mirror', 'qcow2'))
        for node in nodes:
            processutils.execute(
                'qemu-io', '-c', f'write -P {count} {count}M 64k', node)

    def end_job(self):
        """Make a job fail; libvirt then reports no job."""
        self._save(job=None, mirror=None)

    def kill_at(self, step, call, *args):
        """Call a function in a child process that is killed at a step.

        :raises AssertionError: the process did not reach the step
        """
        child = os.fork()
        if not child:
            self.hooks[step] = lambda: os._exit(_KILLED)
            try:
                call(*args)
            finally:
                os._exit(0)
        _pid, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != _KILLED:
            raise AssertionError(f'not reached: {step}')

    # -- libvirt's virDomain --------------------------------------------------

    def UUIDString(self):
        return os.path.basename(os.path.dirname(self._path))

    def XMLDesc(self, flags):
        self._at('looked at')
        state = self._state
        mirror = ''
        if state['mirror']:
            ready = " ready='yes'" if state['looks'] >= _END else ''
            mirror = (f"<mirror type='file' job='copy'{ready}><source "
                      f"file='{state['mirror']}'/></mirror>")
        backing = (f"<backingStore type='file'><source file='{state['below']}"
                   "'/></backingStore>" if state['backing'] else '')
        return f"""
<domain type='kvm'><devices>
  <disk type='file' device='disk'><source file='/root'/>
    <target dev='vda' bus='virtio'/></disk>
  <disk type='file' device='disk'><source file='{state['source']}'/>
    {backing}{mirror}
    <target dev='vdb' bus='virtio'/></disk>
</devices></domain>"""

    def blockCopy(self, disk, xml, params=None, flags=0):
        self._require(disk)
        self._at('copy asked', xml, params)
        if self.job:
            raise failure(f"disk '{disk}' already in active block job")
        target = etree.fromstring(xml)
        if flags != _COPY_FLAGS or target.find('driver').get('type') != (
                'qcow2'):
            raise failure('unsupported', fakelibvirt.VIR_ERR_INVALID_ARG)
        path = target.find('source').get('file')
        self.execute('convert', '-n', '--target-is-zero', '-O', 'qcow2',
                     self.image, path)
        self._hold('mirror', path)
        self._save(mirror=path, job='copy', looks=0)
        self.write()

    def blockRebase(self, disk, base, bandwidth, flags=0):
        self._require(disk)
        self._at('pull asked', bandwidth)
        if self.job:
            raise failure(f"disk '{disk}' already in active block job")
        self._save(job='pull', looks=0)
        self.write()

    def blockJobInfo(self, disk, flags=0):
        self._require(disk)
        if not self.job or disk == 'vda':
            return {}
        looks = self._state['looks'] + (not self.stuck)
        self._save(looks=looks)
        if looks <= 1:
            self._at(f'{self.job} runs')
        if self.job == 'pull' and looks > _END:
            self._pull()
        return {'type': _TYPES[self.job], 'bandwidth': 0,
                'cur': min(looks, _END), 'end': _END} if self.job else {}

    def blockJobAbort(self, disk, flags=0):
        pivot = flags & fakelibvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        self._require(disk)
        self._at('pivot asked' if pivot else 'abort asked')
        if not self.job:
            raise failure(f'disk {disk} does not have an active block job')
        if pivot:
            if self._state['looks'] < _END:
                raise failure(f"disk '{disk}' not ready for pivot yet")
            os.rename(self._dir / 'mirror', self._dir / 'source')
            self._save(source=self._state['mirror'], backing=None)
        self.end_job()
        self.write()
        if pivot:
            self._at('pivoted')

    def snapshotCreateXML(self, xml, flags=0):
        self._at('snapshot asked', xml)
        if flags != _SNAPSHOT_FLAGS:
            raise failure('unsupported', fakelibvirt.VIR_ERR_INVALID_ARG)
        wanted = {disk.get('name'): disk
                  for disk in etree.fromstring(xml).iter('disk')}
        if wanted['vda'].get('snapshot') != 'no':
            raise failure('vda would get an overlay of that name')
        path = wanted['vdb'].find('source').get('file')
        os.rename(self._dir / 'source', self._dir / 'backing')
        self._hold('source', path)
        self._save(source=path, backing='qcow2', below=self.source)
        self.write()
        self._at('snapshot made')

    def _pull(self):
        """Copy the backing file's data into the disk, in place."""
        made = self._dir / 'made'
        self.execute('convert', '-O', 'qcow2', self.image, made)
        processutils.execute('cp', made, self._dir / 'source')
        self._save(backing=None)
        self.end_job()
        self.write()
        self._at('pull done')

    def _require(self, disk):
        if disk not in ('vda', 'vdb', self.source):
            raise failure(f"invalid argument: disk '{disk}' not found",
                          fakelibvirt.VIR_ERR_INVALID_ARG)

    def _at(self, step, *details):
        if step in STEPS:
            self.asked.append((step, *details))
        hook = self.hooks.get(step)
        if hook:
            hook()
