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


"""Two computes with real disks, on which qemu-img, mkfs, blkid and tar run.

Nova's functional tests replace the image backends and know one directory of
instances. Here the backends are Nova's own, and each compute has its own
directory, its own address and an ssh that leads to the other. Both computes
share the configuration of this process; its values depend on the driver whose
method reads them.
"""

import contextlib
import functools
import inspect
import io
import os
import pathlib
import shutil
import sys
import threading

import fixtures
from lxml import etree
from nova import context
from nova import objects
from nova import privsep
from nova.tests.fixtures import libvirt as fakelibvirt
from nova.virt.libvirt import driver
from nova.virt.libvirt import imagebackend
from nova.virt.libvirt import utils as libvirt_utils
from oslo_concurrency import processutils
from oslo_config import cfg
from oslo_serialization import jsonutils
from oslo_utils import uuidutils

from nova_migfix import peer
from nova_migfix.storage import disks
from nova_migfix.storage import image_file
from nova_migfix.tests.functional import base

#: the migration address of each compute
ADDRESSES = {'src': '192.0.2.11', 'dest': '192.0.2.12'}

# Nova's functions before its fixtures replace them.
_REAL = {
    f'nova.virt.libvirt.{module.__name__.rpartition(".")[2]}.{name}.{method}':
    inspect.getattr_static(getattr(module, name), method)
    for module, name, method in (
        (driver, 'LibvirtDriver', '_create_image'),
        (driver, 'LibvirtDriver', '_create_ephemeral'),
        (driver, 'LibvirtDriver', '_create_swap'),
        (imagebackend, 'Backend', 'backend'))}
_REAL.update({f'nova.virt.libvirt.utils.{fetch.__name__}': fetch for fetch in (
    libvirt_utils.fetch_image, libvirt_utils.fetch_raw_image)})


class Hosts(fixtures.Fixture):
    """A directory of instances for each compute, and the network.

    :ivar root: a directory with one for each host, by its name and address
    :param shared: both have one directory of instances
    """

    #: the migration address of each compute
    addresses = ADDRESSES

    SSH = """#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
echo "$*" | tr '\\n' ' ' >>"{root}/asked"
echo >>"{root}/asked"
host=$1
shift
there=$(echo "$*" | sed "s#{root}/[^/]*/#{root}/$host/#g")
[ -e "{root}/cut" ] || exec sh -c "$there"
read passing reason <"{root}/cut"
[ "$passing" = 0 ] || sh -c "$there" | \\
    dd status=none bs=4k iflag=count_bytes count="$passing"
echo "$reason" >&2
exit 255
"""

    #: In a real cloud both hosts have the same paths, so a path in a copied
    #: file is changed from that of the source to that of the destination.
    SCP = """#!{python}
import json, os, re, subprocess, sys

HOST = r'{root}/[^/]*/'

def place(name):
    host, colon, path = name.partition(':/')
    return re.sub(HOST, f'{root}/{{host}}/', f'/{{path}}') if colon else name

if os.path.exists('{root}/cut'):
    sys.exit('Connection refused')
source, target = (os.path.realpath(place(name)) for name in sys.argv[-2:])
if os.path.isdir(target):
    target = os.path.join(target, os.path.basename(source))
subprocess.check_call(['cp', '--sparse=always', source, target])
here = re.match(HOST, target)[0]
if target.endswith('.info'):
    with open(target, 'r+') as file:
        text = re.sub(HOST, here, file.read())
        file.seek(0)
        file.write(text)
        file.truncate()
    sys.exit()
info = json.loads(subprocess.check_output(
    ['qemu-img', 'info', '--force-share', '--output', 'json', target]))
if info.get('backing-filename'):
    subprocess.check_call([
        'qemu-img', 'rebase', '-u', '-F', info['backing-filename-format'],
        '-b', re.sub(HOST, here, info['backing-filename']), target])
"""

    def __init__(self, shared=False):
        self._shared = shared
        self._thread = threading.local()

    def _setUp(self):
        self.root = pathlib.Path(os.path.realpath(
            self.useFixture(fixtures.TempDir()).path))
        for host, announced in self.addresses.items():
            self.instances(host).mkdir(parents=True, exist_ok=True)
            if self._shared and not (self.root / host).exists():
                (self.root / host).symlink_to(self.storage(host))
            (self.root / announced).symlink_to(host)
        (self.root / 'bin').mkdir()
        for name, script in (('ssh', self.SSH), ('scp', self.SCP)):
            path = self.root / 'bin' / name
            path.write_text(script.format(
                root=self.root, python=sys.executable))
            path.chmod(0o755)
        self.useFixture(fixtures.EnvironmentVariable(
            'PATH', f'{self.root}/bin:/usr/bin:/bin:/usr/sbin:/sbin'))
        configured = cfg.ConfigOpts.__getattr__

        def of_the_host(conf, name):
            own = getattr(self._thread, 'own', {})
            return own[name] if name in own else configured(conf, name)
        self.useFixture(fixtures.MonkeyPatch(
            'oslo_config.cfg.ConfigOpts.__getattr__', of_the_host))

    def storage(self, host):
        """Return the name of the storage with the directory of instances."""
        return 'both' if self._shared else host

    def instances(self, host):
        return self.root / self.storage(host) / 'instances'

    @contextlib.contextmanager
    def on(self, host):
        """Run the code of this thread on that host."""
        before = getattr(self._thread, 'own', {})
        self._thread.own = {
            'host': host, 'instances_path': str(self.instances(host))}
        try:
            yield
        finally:
            self._thread.own = before

    def keep(self, host, its_driver):
        """Run the methods of this driver on that host."""
        for name in dir(its_driver):
            method = inspect.getattr_static(type(its_driver), name, None)
            if not name.startswith('__') and (
                    inspect.isfunction(method)
                    or isinstance(method, staticmethod)):
                setattr(its_driver, name, self._on(
                    host, getattr(its_driver, name)))
        its_driver.get_host_ip_addr = lambda: self.addresses[host]

    def _on(self, host, method):
        @functools.wraps(method)
        def there(*args, **kwargs):
            with self.on(host):
                return method(*args, **kwargs)
        return there

    @contextlib.contextmanager
    def failing(self, command, argument='', reason='No space left on device'):
        """Make a command fail on both hosts if its arguments begin so."""
        path = self.root / 'bin' / command
        path.write_text(f"""#!/bin/sh
case "$1" in {argument}*) echo '{reason}' >&2; exit 1;; esac
exec {shutil.which(command)} "$@"
""")
        path.chmod(0o755)
        try:
            yield
        finally:
            path.unlink()

    @contextlib.contextmanager
    def cut(self, reason='Connection refused', passing=0):
        """Break the ssh connections between hosts.

        :param passing: bytes that pass before the break
        """
        cut = self.root / 'cut'
        cut.write_text(f'{passing} {reason}\n')
        try:
            yield
        finally:
            cut.unlink()

    @property
    def pulled(self):
        """Return the ssh sessions that fetched files."""
        asked = self.root / 'asked'
        return [line for line in asked.read_text().splitlines()
                if '--create' in line] if asked.exists() else []


class BlockJobs(fixtures.Fixture):
    """libvirt's block pull, which completes at once.

    QEMU still has removed files open.

    :ivar held: the paths of the bytes of such files, by their former path
    :ivar pulled: paths of the disks
    :ivar failing: the error of a pull that fails, or ''
    """

    def _setUp(self):
        self.held = {}
        self.pulled = []
        self.failing = ''

        failure = functools.partial(fakelibvirt.make_libvirtError,
                                    fakelibvirt.libvirtError)

        def rebase(domain, disk, base, bandwidth, flags):
            if self.failing:
                raise failure(self.failing,
                              fakelibvirt.VIR_ERR_OPERATION_FAILED)
            if not domain.isActive():
                raise failure('domain is not running',
                              fakelibvirt.VIR_ERR_OPERATION_INVALID)
            if disk not in domain.XMLDesc(0):
                raise failure(f'no disk {disk}',
                              fakelibvirt.VIR_ERR_INVALID_ARG)
            backing, = (overlay.backing for overlay in
                        disks.overlays(os.path.dirname(disk))
                        if overlay.path == disk)
            image_file.flatten(disk, 'qcow2', disk,
                          backing=self.held.get(backing, backing))
            self.pulled.append(disk)
        for name, replacement in (
                ('blockRebase', rebase),
                ('blockJobInfo', lambda domain, disk, flags: {})):
            self.useFixture(fixtures.MonkeyPatch(
                f'nova.tests.fixtures.libvirt.Domain.{name}', replacement))


def _with_token(hard_reboot):
    """Call for a user; without a token Nova makes no backing files."""
    @functools.wraps(hard_reboot)
    def by_a_user(context, *args, **kwargs):
        context.auth_token = 'token'
        hard_reboot(context, *args, **kwargs)
    return by_a_user


class StorageTestCase(base.MigrationTestCase):
    """A guest with real disks on 'src'."""

    #: the class of the hosts
    HOSTS = Hosts

    #: both hosts have one directory of instances
    shared = False

    #: [migfix] enabled_fixes of hosts with another value
    enabled_on = {}

    #: [migfix] ephemeral_overlays: disks are overlays, as with Nova
    overlays = True

    def setUp(self):
        self.hosts = self.useFixture(self.HOSTS(self.shared))
        super().setUp()
        self.flags(default_ephemeral_format='ext4',
                   max_local_block_devices=-1)
        self.flags(ephemeral_overlays=self.overlays, group='migfix')
        # privileged functions run in this process, with its rights
        privsep.sys_admin_pctxt.set_client_mode(False)
        self.addCleanup(privsep.sys_admin_pctxt.set_client_mode, True)
        # Nova fills a vfat config drive through a loop device: here it has
        # only its file system.
        for name in ('mount', 'umount'):
            self.useFixture(fixtures.MockPatch(
                f'nova.privsep.fs.{name}', return_value=('', '')))
        self.jobs = self.useFixture(BlockJobs())

    def start_compute(self, hostname, *args, **kwargs):
        for where, method in _REAL.items():
            self.useFixture(fixtures.MonkeyPatch(where, method))
        self.flags(enabled_fixes=self.enabled_on.get(
            hostname, self.enabled_fixes), group='migfix')
        with self.hosts.on(hostname):
            super().start_compute(hostname, *args, **kwargs)
        its_driver = self.computes[hostname].driver
        self.hosts.keep(hostname, its_driver)
        its_driver._hard_reboot = _with_token(its_driver._hard_reboot)
        if hasattr(its_driver, '_set_source_fields'):
            # The manager holds the methods from before hosts.keep().
            peer.wrap_pre_live_migration(
                its_driver.virtapi, its_driver._set_source_fields,
                its_driver._can_retry)
        return hostname

    # -- the tenant -----------------------------------------------------------

    def upload(self, disk_format='raw', **properties):
        """Upload an image to Glance; return its id."""
        image_id = uuidutils.generate_uuid()
        content = f'{disk_format} {image_id}'.encode().ljust(1 << 20)
        if disk_format == 'aki':
            # The first sector of a kernel has the signature of a boot sector.
            content = content[:510] + b'\x55\xaa' + content[512:]
        self.glance.create(None, {
            'id': image_id, 'name': 'guest', 'size': 1 << 20,
            'status': 'active', 'container_format': 'bare',
            'disk_format': disk_format, 'min_ram': 0, 'min_disk': 0,
            'visibility': 'public', 'properties': properties,
        }, io.BytesIO(content))
        return image_id

    def boot(self, *ephemerals, state='ACTIVE', image=None, swap=0, **wanted):
        """Create a guest on the source.

        :param ephemerals: size in GB, or size and file system of each disk
        :param state: the final state of the server
        :param image: an image to use instead of a newly uploaded one
        :param swap: size in MB of a swap disk
        """
        image = image or self.upload()
        disks_wanted = [disk if isinstance(disk, tuple) else (disk, None)
                        for disk in ephemerals]
        flavor = self._create_flavor(disk=1, swap=swap, ephemeral=sum(
            size for size, _form in disks_wanted))
        request = self._build_server(
            image_uuid=image, flavor_id=flavor, networks='none',
            host='src')
        request['block_device_mapping_v2'] = [
            {'boot_index': 0, 'uuid': image, 'source_type': 'image',
             'destination_type': 'local', 'delete_on_termination': True},
            *({'boot_index': -1, 'source_type': 'blank', 'volume_size': size,
               'destination_type': 'local', 'delete_on_termination': True,
               **({'guest_format': form} if form else {})}
              for size, form in disks_wanted),
            *([{'boot_index': -1, 'source_type': 'blank',
                'volume_size': swap, 'destination_type': 'local',
                'guest_format': 'swap', 'delete_on_termination': True}]
              if swap else [])]
        self.server = self._wait_for_state_change(
            self.api.post_server({'server': {**request, **wanted}}), state)

    def write(self, name='disk.eph0', host='src', size='64k'):
        """Write to a disk as the guest does."""
        processutils.execute(
            'qemu-io', '-c', f'write -P 7 512M {size}', self.path(name, host))

    def act(self, fails=False, **action):
        """Send an action to the API, and wait until a compute has finished it.

        :param fails: wait until it has failed, possibly on the other compute
        :param action: the name of the action in the API, and its parameters
        :returns: the failures that a user sees
        """
        name, = action
        self.api.post_server_action(self.server['id'], action)
        failures = []

        def ended():
            path = f'/servers/{self.server["id"]}/os-instance-actions'
            last = self.api.api_get(path).body['instanceActions'][0]
            self.assertIn(last['action'].lower(), name.lower())
            events = [
                event for event in self.api.api_get(
                    f'{path}/{last["request_id"]}'
                ).body['instanceAction']['events']
                if event['event'] != 'compute_prep_resize'
                and event['event'].startswith('compute_')]
            self.assertNotEqual([], events)
            for event in events:
                self.assertIsNotNone(event['result'], event)
            failures[:] = [event['details'] for event in events
                           if event['details']]
            self.assertTrue(failures or not fails, events)
        self._wait_for_assert(ended, max_retries=120)
        self.server = self._wait_for_server_parameter(
            self.server, {'OS-EXT-STS:task_state': None}, max_retries=120)
        return failures

    def move(self, **action):
        """Cold migrate or resize, without a confirmation."""
        self.act(**action)
        self.server = self._wait_for_state_change(
            self.server, 'VERIFY_RESIZE')

    def refused(self, **action):
        """Send an action that fails to the API; return the reason."""
        return self.act(fails=True, **action)[0]

    def fault(self):
        """Return the last fault message that Nova recorded, shown or not."""
        with context.target_cell(
                context.get_admin_context(),
                self.cell_mappings['cell1']) as cell:
            return objects.InstanceFault.get_latest_for_instance(
                cell, self.server['id']).message

    def log(self):
        return self.stdlog.logger.output

    # -- the hosts ------------------------------------------------------------

    def directory(self, host='src'):
        return self.hosts.instances(host) / self.server['id']

    def path(self, name='disk.eph0', host='src'):
        return self.directory(host) / name

    def bases(self, host='src'):
        """Return the paths of the bases that Nova made on a host."""
        return sorted((self.hosts.instances(host) / '_base').glob(
            'ephemeral_*'))

    def backing(self, name='disk.eph0', host='src'):
        """Return the path of a disk's backing file, or None."""
        info, _errors = processutils.execute(
            'qemu-img', 'info', '--force-share', '--output', 'json',
            self.path(name, host))
        return jsonutils.loads(info).get('backing-filename')

    def lose_base(self, name='disk.eph0'):
        """Remove a disk's backing file; a running guest still has it open."""
        path = self.backing(name)
        self.jobs.held[path] = str(self.hosts.root / 'held')
        shutil.move(path, self.hosts.root / 'held')

    def replace_base(self, name='disk.eph0'):
        """Replace a base by one made for another guest."""
        base = pathlib.Path(self.backing(name))
        self.lose_base(name)
        self.have_base(base.name, 'src')

    def have_base(self, name, host='dest'):
        """Make another base of this name on a host; return its path."""
        path = self.hosts.instances(host) / '_base' / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.truncate(path, 1 << 30)
        processutils.execute('mkfs.ext4', '-q', path)
        return path

    def image(self, name='disk.eph0', host='src'):
        """Return the path of a raw image with the current bytes of a disk."""
        path = self.hosts.root / uuidutils.generate_uuid()
        processutils.execute(
            'qemu-img', 'convert', '-O', 'raw', self.path(name, host), path)
        return path

    def assert_kept(self, image, name='disk.eph0', host='dest'):
        """Assert that the disk has those bytes and no backing file."""
        processutils.execute(
            'qemu-img', 'compare', image, self.path(name, host))
        self.assertIsNone(self.backing(name, host))

    def turn_round(self):
        """Let the next live migration go in the other direction."""
        self.src, self.dest = self.dest, self.src

    def assert_has(self, kind, label, name='disk.eph0', host='src'):
        found = image_file.filesystem(str(self.image(name, host)))
        self.assertEqual(
            (kind, label), (found.get('TYPE'), found.get('LABEL')))

    def assert_nothing_left(self, host='dest'):
        """Assert that no files of the instance or half-made files are left."""
        def gone():
            self.assertEqual([], [
                path for path in self.hosts.instances(host).glob('**/*')
                if self.server['id'] in str(path)
                or path.name.startswith('migfix-')])
        self._wait_for_assert(gone, max_retries=60)

    def assert_no_base_made(self, host='dest'):
        """Assert that Nova made no base for ephemeral and swap disks."""
        self.assertEqual([], [
            path.name
            for path in (self.hosts.instances(host) / '_base').glob('*')
            if disks.has_local_base_name(path.name)])

    # -- libvirt --------------------------------------------------------------

    def _migrate_stub(self, domain, destination, params, flags):
        """Copy the guest's writes to the disks of the destination."""
        here, there = (str(self.hosts.instances(compute.host))
                       for compute in (self.src, self.dest))
        for disk in () if self.shared else etree.fromstring(
                domain.XMLDesc(0)).iterfind('./devices/disk[source]'):
            path = disk.find('source').get('file')
            target = pathlib.Path(path.replace(here, there))
            form = disk.find('driver').get('type')
            if form == 'raw' and target.name != 'disk.config':
                processutils.execute('cp', '--sparse=always', path, target)
            elif form == 'qcow2' and target.exists():
                copy = shutil.copy(path, self.hosts.root / 'mirrored')
                for command in (
                        ('rebase', '-u', '-F', 'qcow2', '-b', target, copy),
                        ('commit', copy)):
                    processutils.execute('qemu-img', *command)
        # both hosts have the same paths in a real cloud
        super()._migrate_stub(domain, destination, {
            **params, 'destination_xml': params['destination_xml'].replace(
                here, there)}, flags)
