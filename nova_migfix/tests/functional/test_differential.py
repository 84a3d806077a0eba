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

"""Operations that succeed with Nova succeed with the plugin, and alike.

Each test performs one story on two guests of one configuration, one under
Nova's own driver and one under the plugin's, and compares the outcomes after
each operation: see :mod:`nova_migfix.tests.functional.differential`.
"""

import copy
import io
import itertools
import os
import re
import shutil
import threading
import time

import fixtures
from nova import context
from nova.tests.fixtures import glance as glance_fixtures
from nova.tests.functional.api import client
from nova import utils
from oslo_utils import uuidutils
import testtools

from nova_migfix.tests.functional import differential
from nova_migfix.tests.functional import storage

#: the words of the two outcomes
NOVA, OURS = 'nova', 'migfix'

#: [DEFAULT] compute_driver
DRIVERS = {NOVA: 'libvirt.LibvirtDriver', OURS: 'migfix.LibvirtDriver'}

#: the hosts of each driver
HOSTS = {NOVA: ('nova-src', 'nova-dest'), OURS: ('src', 'dest')}
DRIVER_OF = {host: name for name, hosts in HOSTS.items() for host in hosts}

# Seconds between two queries of a server, and until it must have settled.
POLL = 0.3
PATIENCE = 90

#: the states in which a server's task has ended
SETTLED = frozenset((
    'ACTIVE', 'ERROR', 'PAUSED', 'RESCUE', 'SHELVED', 'SHELVED_OFFLOADED',
    'SHUTOFF', 'SUSPENDED', 'VERIFY_RESIZE'))

#: the files of a host beside the instances
NOT_OF_INSTANCES = frozenset(('_base', 'locks', 'compute_nodes', 'nodes'))


class TwoClouds(storage.Hosts):
    """Two hosts under each driver; the two pairs share no files."""

    addresses = {
        host: f'192.0.2.{number}' for number, host in enumerate(
            itertools.chain(*HOSTS.values()), 11)}

    def storage(self, host):
        return f'both-{DRIVER_OF[host]}' if self._shared else host

    def _setUp(self):
        super()._setUp()
        # This avoids writing a GB of zeros.
        for command, option in (('mkfs.ntfs', '-Q'),
                                ('cp', '--sparse=always')):
            if real := shutil.which(command):
                path = self.root / 'bin' / command
                path.write_text(f'#!/bin/sh\nexec {real} {option} "$@"\n')
                path.chmod(0o755)


class Guest:
    """One of the two guests of a story.

    :ivar outcome: the outcome by subject and aspect
    """

    def __init__(self, driver):
        self.driver = driver
        self.server = None
        self.outcome = {}
        self.bytes = {}


class DifferentialTestCase(storage.StorageTestCase):
    """Stories that combine every two values of the parameters."""

    HOSTS = TwoClouds

    # the plugin's own default
    overlays = False

    #: the row of each test, by its name
    rows = {}

    def setUp(self):
        self.row = self.rows[self._testMethodName]
        if self.row.needs_ntfs and not shutil.which('mkfs.ntfs'):
            self.skipTest('mkfs.ntfs is missing: see bindep.txt')
        self.shared = self.row.shared
        super().setUp()
        self.flags(default_ephemeral_format=self.row.default_format)
        self.guests = [Guest(NOVA), Guest(OURS)]
        self.observer = differential.Observer(self.hosts.root)
        self.written = itertools.count(1)
        self.reasons = set()
        port = self.neutron.port_2
        self.neutron._ports[port['id']] = copy.deepcopy(port)
        for host in HOSTS[NOVA]:
            self.start_compute(host)
        for driver, hosts in HOSTS.items():
            aggregate = self.api.post_aggregate({'aggregate': {
                'name': driver, 'availability_zone': driver}})
            for host in hosts:
                self.api.add_host_to_aggregate(aggregate['id'], host)
        self.useFixture(fixtures.MonkeyPatch(
            'nova.tests.fixtures.glance.GlanceFixture.update',
            self.keep_image()))
        self.useFixture(fixtures.MonkeyPatch(
            'nova.virt.libvirt.utils.file_open', open))

    def _setup_compute_service(self):
        super()._setup_compute_service()
        self.flags(preallocate_images=self.row.preallocate,
                   force_raw_images=self.row.force_raw,
                   resize_confirm_window=0)
        self.flags(images_type=self.row.images_type, group='libvirt')
        # the fake libvirt lacks it
        self.flags(disable_libvirt_livesnapshot=True, group='workarounds')
        if self.row.config_drive:
            self.flags(config_drive_format=self.row.config_drive)

    def start_compute(self, hostname, **kwargs):
        self.flags(compute_driver=DRIVERS[DRIVER_OF[hostname]])
        return super().start_compute(hostname, **kwargs)

    @staticmethod
    def keep_image():
        """Return a replacement of Glance's update that keeps the data."""
        real = glance_fixtures.GlanceFixture.update

        def update(glance, context, image_id, metadata, data=None,
                   purge_props=False):
            if data:
                glance._imagedata[image_id] = data.read()
            return real(glance, context, image_id, metadata, data,
                        purge_props)
        return update

    # -- for the operations of differential.py --------------------------------

    def send(self, action):
        self.api.post_server_action(self.guest.server['id'], action)

    def flavor(self, disk=1, more_ephemeral=0, swap=None, memory_mb=512):
        return self._create_flavor(
            memory_mb=memory_mb, vcpu=1, disk=disk,
            ephemeral=max(0, sum(self.row.ephemerals) + more_ephemeral),
            swap=swap if self.row.swap and swap else self.row.swap)

    def upload_image(self, os_type=None):
        """Upload a qcow2 image to Glance; return its id."""
        os_type = os_type or self.row.os_type
        path = self.hosts.root / 'image'
        storage.processutils.execute(
            'qemu-img', 'create', '-f', 'qcow2', path, '1M')
        storage.processutils.execute(
            'qemu-io', '-f', 'qcow2', '-c', 'write -P 9 0 64k', path)
        content = path.read_bytes()
        image_id = uuidutils.generate_uuid()
        self.glance.create(None, {
            'id': image_id, 'name': 'guest', 'size': len(content),
            'status': 'active', 'container_format': 'bare',
            'disk_format': 'qcow2', 'min_ram': 0, 'min_disk': 0,
            'visibility': 'public',
            'properties': {'os_type': os_type} if os_type else {},
        }, io.BytesIO(content))
        return image_id

    def create(self, host=None, image=None, disks=None):
        image = image or self.upload_image()
        swap = self.row.swap
        request = {
            **self._build_server(
                image_uuid=image, flavor_id=self.flavor(), networks='none',
                host=host or HOSTS[self.guest.driver][0],
                az=self.guest.driver),
            'config_drive': bool(self.row.config_drive),
            'block_device_mapping_v2': [
                {'boot_index': 0, 'uuid': image, 'source_type': 'image',
                 'destination_type': 'local', 'delete_on_termination': True},
                *({'boot_index': -1, 'source_type': 'blank',
                   'volume_size': size, 'destination_type': 'local',
                   'delete_on_termination': True,
                   **({'guest_format': form} if form else {})}
                  for size, form in disks or self.row.disks()),
                *([{'boot_index': -1, 'source_type': 'blank',
                    'volume_size': swap, 'destination_type': 'local',
                    'guest_format': 'swap', 'delete_on_termination': True}]
                  if swap else [])]}
        self.guest.server = self.api.post_server({'server': request})

    def create_neighbours(self):
        """Create a guest on each host, which makes backing files there."""
        image = self.upload_image(
            differential.OTHER_OS[self.row.os_type]
            if self.row.neighbour == 'os_type' else None)
        form = (differential.OTHER_FORMAT
                if self.row.neighbour == 'guest_format' else None)
        for driver, hosts in HOSTS.items():
            for host in hosts:
                self.guest = Guest(driver)
                self.create(host, image, [(1, form)])
                self.settle()
                self.assertEqual('ACTIVE', self.guest.server['status'])

    def write_disks(self):
        for name in ('disk', *self.ephemerals(), 'disk.swap'):
            path = self.instance_path(name)
            if path.exists():
                disk = self.observer.disk(path)
                storage.processutils.execute(
                    'qemu-io', '-f', disk['format'], '-c', 'write -P '
                    f'{next(self.written)} {disk["size"] // 2} 64k', path)

    def ephemerals(self):
        return [f'disk.eph{number}'
                for number in range(len(self.row.ephemerals))]

    def instance_path(self, *names):
        return self.hosts.instances(self.here()).joinpath(
            self.guest.server['id'], *names)

    def here(self):
        return self.guest.server['OS-EXT-SRV-ATTR:host']

    def evacuate(self):
        service, = self.api.get_services(
            host=self.here(), binary='nova-compute')
        self.api.put_service_force_down(service['id'], True)
        self.send({'evacuate': {}})

    def resize_on_same_host(self):
        elsewhere, = {*HOSTS[self.guest.driver]} - {self.here()}
        service, = self.api.get_services(
            host=elsewhere, binary='nova-compute')
        self.api.put_service(service['id'], {'status': 'disabled'})
        self.flags(allow_resize_to_same_host=True)
        self.send({'resize': {'flavorRef': self.flavor(disk=2)}})
        self.settle()
        self.flags(allow_resize_to_same_host=False)
        self.api.put_service(service['id'], {'status': 'enabled'})

    def port(self):
        return (self.neutron.port_1 if self.guest.driver == NOVA
                else self.neutron.port_2)['id']

    def unshelve(self):
        """Unshelve on the host on which the guest never was."""
        with utils.temporary_mutation(self.api, microversion='2.91'):
            self.send({'unshelve': {'host': HOSTS[self.guest.driver][1]}})

    def attach_port(self):
        self.api.attach_interface(self.guest.server['id'], {
            'interfaceAttachment': {'port_id': self.port()}})

    def detach_port(self):
        self.api.detach_interface(self.guest.server['id'], self.port())

    def age_image_cache(self):
        """Run the image cache manager after all files have become old."""
        for host in HOSTS[self.guest.driver]:
            for path in (self.hosts.instances(host) / '_base').glob('*'):
                os.utime(path, (0, 0))
            with self.hosts.on(host):
                self.computes[host].manager._run_image_cache_manager_pass(
                    context.get_admin_context())

    def delete(self):
        self.api.delete_server(self.guest.server['id'])

    # -- operations -----------------------------------------------------------

    def perform(self, name):
        """Perform an operation and record its outcome."""
        operation = differential.OPERATIONS[name]
        guest = self.guest
        if guest.server:
            self.take_place()
        answer = 'accepted'
        try:
            operation.perform(self)
        except client.OpenStackApiException as error:
            answer = error.response.status_code
        self.settle()
        guest.outcome = {('request', 'answer'): answer, **self.observe()}

    def take_place(self):
        """Make this guest the one on which libvirt acts."""
        here = self.here()
        if here in HOSTS[self.guest.driver]:
            there, = {*HOSTS[self.guest.driver]} - {here}
            self.src, self.dest = self.computes[here], self.computes[there]
        self.server = self.guest.server

    def settle(self):
        """Wait until no task of the guest is running."""
        deadline = time.monotonic() + PATIENCE
        while not self.has_settled():
            self.assertLess(time.monotonic(), deadline, self.guest.server)
            time.sleep(POLL)

    def has_settled(self):
        # A compute also writes after the end of a task: the host in an
        # evacuation. This is done when all events have ended.
        return self.is_idle() and (
            self.guest.server['status'] == 'DELETED'
            or self.have_ended(self.events()) and self.is_idle())

    def is_idle(self):
        try:
            self.guest.server = self.api.get_server(self.guest.server['id'])
        except client.OpenStackApiNotFoundException:
            self.guest.server['status'] = 'DELETED'
            return True
        return (self.guest.server['OS-EXT-STS:task_state'] is None
                and self.guest.server['status'] in SETTLED)

    def have_ended(self, events):
        """Return whether all events have ended.

        The API accepts some requests before a compute has an event.
        """
        return all(event['result'] for event in events) and (
            self.last_action()['action'] not in (
                'confirmResize', 'revertResize', 'detach_interface')
            or any(event['event'].startswith('compute_') for event in events))

    def last_action(self):
        return self.api.get_instance_actions(self.guest.server['id'])[0]

    def events(self):
        return self.api.get_instance_action_details(
            self.guest.server['id'],
            self.last_action()['request_id'])['events']

    # -- outcomes -------------------------------------------------------------

    def observe(self):
        """Return all aspects of the guest that the outcomes compare."""
        if self.guest.server['status'] == 'DELETED':
            return {('server', 'status'): 'DELETED', **self.left()}
        server = self.guest.server
        found = {
            ('server', 'status'): server['status'],
            ('server', 'power'): server['OS-EXT-STS:power_state'],
            ('server', 'host'): self.role(self.here()),
            ('server', 'fault'): server.get('fault', {}).get('code'),
            ('request', 'events'): sorted(
                (event['event'], event['result'], _raised(event['traceback']))
                for event in self.events()),
            **self.left()}
        for name, host in self.domains().items():
            found[name, 'domain'] = host
        if self.here() and self.instance_path().exists():
            self.observe_disks(found)
        return found

    def role(self, host):
        return host and host.removeprefix('nova-')

    def observe_disks(self, found):
        uuids = self.filesystems()
        for path in sorted(self.instance_path().glob('disk*')):
            if path.suffix == '.info':
                continue
            seen = self.observer.disk(path)
            name = path.name
            before = self.guest.bytes.get(name, seen['digest'])
            found.update({
                (name, aspect): seen[aspect] for aspect in (
                    'format', 'backing', 'size', 'reserved', 'filesystem',
                    'label')})
            found[name, 'uuid'] = seen['uuid'] and (
                'own' if uuids.count(seen['uuid']) == 1 else 'shared')
            found[name, 'bytes'] = (
                'kept' if seen['digest'] == before else 'changed')
            self.guest.bytes[name] = seen['digest']
            if name in ('disk', 'disk.rescue'):
                # the name of an image is its id
                found[name, 'backing'] = bool(seen['backing'])

    def filesystems(self):
        """Return the UUIDs of all ephemeral disks on the guest's host."""
        return [self.observer.disk(path)['uuid'] for path in sorted(
            self.hosts.instances(self.here()).glob('*-*/disk.eph*'))]

    def domains(self):
        """Return the domain of the guest on each host."""
        found = {}
        for host in HOSTS[self.guest.driver]:
            connection = self.computes[host].driver._host.get_connection()
            for domain in connection._vms.values():
                if domain.UUIDString() == self.guest.server['id']:
                    found[self.role(host)] = (
                        domain._state,
                        [(disk['target_dev'], disk['driver_type'],
                          os.path.basename(disk['source']))
                         for disk in domain._def['devices']['disks']],
                        len(domain._def['devices']['nics']))
        return found

    def left(self):
        """Return the files of the guest and half-made files on each host."""
        uuid = self.guest.server['id']
        found = {}
        for host in HOSTS[self.guest.driver]:
            root = self.hosts.instances(host)
            paths = [path.relative_to(root) for path in root.glob('**/*')]
            found[self.role(host), 'files'] = sorted(
                str(path).replace(uuid, 'guest') for path in paths
                if str(path).startswith(uuid) or 'migfix-' in str(path)
                or path.parts[0] == 'snapshots')
        return found

    # -- the stories ----------------------------------------------------------

    def tell(self, operations):
        """Perform each operation on both guests, and compare."""
        faults = []
        for number, name in enumerate(operations, 1):
            for guest in self.guests:
                self.guest = guest
                self.perform(name)
            faults += self.differences(f'{number} {name}')
            if self.have_parted():
                break
        return faults

    def differences(self, where):
        nova, ours = (guest.outcome for guest in self.guests)
        found = differential.compare(self.row, nova, ours)
        self.reasons.update(one.reason for one in found if one.reason)
        return [f'{where}: {one}' for one in found if not one.reason]

    def have_parted(self):
        """Return whether a further comparison would be meaningless."""
        nova, ours = (guest.outcome for guest in self.guests)
        return any(nova.get(('server', aspect)) != ours.get(
            ('server', aspect)) for aspect in ('status', 'host'))

    def tell_of_deletions(self, operations):
        """Delete both guests during each operation, and compare."""
        faults = []
        for name in operations:
            operation = differential.OPERATIONS[name]
            self.guests = [Guest(NOVA), Guest(OURS)]
            before = ('boot', 'write', *operation.after)
            faults += self.tell(() if name == 'boot' else before)
            for guest in self.guests:
                self.guest = guest
                self.delete_in(operation)
            faults += self.differences(f'deleted in {name}')
        return faults

    def delete_in(self, operation):
        if self.guest.server:
            self.take_place()
        with Held(self.computes[host].driver
                  for host in HOSTS[self.guest.driver]) as held:
            held.at(operation.held_in)
            sending = threading.Thread(
                target=self.send_quietly, args=(operation,))
            sending.start()
            held.wait()
            self.delete()
            held.release()
            sending.join(PATIENCE)
        self.wait_until_deleted()
        self.guest.outcome = self.observe()

    def send_quietly(self, operation):
        """Send a request that the API may refuse during a deletion."""
        try:
            operation.perform(self)
        except client.OpenStackApiException as error:
            self.addDetail('refused', testtools.content.text_content(
                str(error)))

    def wait_until_deleted(self):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if (self.is_idle() and self.guest.server['status'] == 'DELETED'
                    and not any(self.left().values())):
                return
            time.sleep(POLL)

    def compare_story(self):
        if self.row.neighbour:
            self.create_neighbours()
        story = differential.STORIES[self.row.story]
        faults = (self.tell_of_deletions(story)
                  if self.row.story in differential.DELETIONS
                  else self.tell(story))
        self.assertEqual([], faults, '\n'.join(faults))


class Held:
    """Hold a method of the drivers until it is released."""

    def __init__(self, drivers):
        self._drivers = list(drivers)
        self._reached = threading.Event()
        self._released = threading.Event()
        self._ended = threading.Event()

    def __enter__(self):
        return self

    def at(self, name):
        self._name = name
        self._methods = [getattr(driver, name) for driver in self._drivers]
        for driver, method in zip(self._drivers, self._methods):
            setattr(driver, name, self._held(method))

    def _held(self, method):
        def held(*args, **kwargs):
            self._reached.set()
            self._released.wait(PATIENCE)
            try:
                return method(*args, **kwargs)
            finally:
                self._ended.set()
        return held

    def wait(self):
        if not self._reached.wait(PATIENCE):
            raise AssertionError(f'{self._name} has not been called')

    def release(self):
        self._released.set()
        self._ended.wait(PATIENCE)

    def __exit__(self, *exc_info):
        self._released.set()
        for driver, method in zip(self._drivers, self._methods):
            setattr(driver, self._name, method)


def _raised(traceback):
    """Return the class of the exception that was raised last, if known."""
    return re.findall(r'raise (?:exception\.)?(\w+)', traceback or '')[-1:]


def _named(row):
    def test(self):
        self.compare_story()
    test.__name__ = f'test_{row.name}'
    return test


for _row in differential.rows():
    _test = _named(_row)
    DifferentialTestCase.rows[_test.__name__] = _row
    setattr(DifferentialTestCase, _test.__name__, _test)
