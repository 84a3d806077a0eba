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

"""Nova's libvirt driver, extended with hooks for the enabled fixes.

The methods are in the order in which Nova calls them in a live migration, then
in a cold migration. Each calls Nova's method and one hook of the fixes.
Methods that stop or restart a guest, in a migration or not, are last.
:mod:`nova_migfix.fixes.base` documents the hooks.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading

from nova import exception
from nova.virt.libvirt import driver
from nova.virt.libvirt import utils as libvirt_utils
from oslo_config import cfg
from oslo_log import log as logging
from oslo_serialization import jsonutils

from nova_migfix.abi import domain as domain_xml
from nova_migfix import conf
from nova_migfix import fixes
from nova_migfix import migration as current_migration
from nova_migfix import nova_release
from nova_migfix import peer
from nova_migfix.storage import completion
from nova_migfix.storage import scratch
from nova_migfix.transport import fetch
from nova_migfix.transport import transfer

LOG = logging.getLogger(__name__)
CONF = cfg.CONF
_CREATE_IMAGE = inspect.signature(driver.LibvirtDriver._create_image)
_HARD_REBOOT = inspect.signature(driver.LibvirtDriver._hard_reboot)


def _with_signature_of(method):
    """Give an override the signature of Nova's method in this release."""
    def decorate(override):
        functools.update_wrapper(override, method)
        override.__signature__ = inspect.signature(method)
        return override
    return decorate


class LibvirtDriver(driver.LibvirtDriver):
    """``[DEFAULT] compute_driver = migfix.LibvirtDriver``"""

    def __init__(self, virtapi, read_only=False):
        nova_release.require_supported()
        super().__init__(virtapi, read_only)
        conf.register_opts(CONF)
        peer.register()
        self._fixes = fixes.load(CONF.migfix.enabled_fixes)
        self._remotefs = transfer.RemoteFilesystem()
        self._capabilities = {}
        # by the UUID of the instance, as Nova's active_migrations
        self._operations = {}
        for fix in self._fixes:
            fix.extend_driver(self)
        peer.wrap_pre_live_migration(
            self.virtapi, self._set_source_fields, self._can_retry)

    def init_host(self, host):
        super().init_host(host)
        self._tidy_up_in_background()
        self._update_capabilities()

    def _tidy_up_in_background(self):
        # Storage may not respond, and a block pull takes long.
        for tidy_up in (scratch.sweep,
                        functools.partial(completion.go_on, self._host)):
            threading.Thread(target=tidy_up, daemon=True).start()

    def _update_capabilities(self):
        # Replace the dictionary: another thread may be reading the old one.
        self._capabilities = {
            name: value for fix in self._fixes
            for name, value in fix.dest_capabilities().items()}

    # -- precheck: destination, then source ---------------------------------

    def check_can_live_migrate_destination(self, context, instance,
                                           src_compute_info, dst_compute_info,
                                           block_migration=False,
                                           disk_over_commit=False):
        data = super().check_can_live_migrate_destination(
            context, instance, src_compute_info, dst_compute_info,
            block_migration, disk_over_commit)
        if self._capabilities:
            # An operator may have added or removed a TLS policy since.
            self._update_capabilities()
        peer.add_capabilities(data, self._capabilities)
        return data

    def check_can_live_migrate_source(self, context, instance,
                                      dest_check_data,
                                      block_device_info=None):
        data = super().check_can_live_migrate_source(
            context, instance, dest_check_data, block_device_info)
        for fix in self._fixes:
            fix.check_can_live_migrate_source(instance, self._host, data)
        return data

    # -- source: prepare, before each call of the destination ---------------

    def get_instance_disk_info(self, instance, block_device_info=None):
        # Nova calls this only at the start of a block migration.
        for fix in self._fixes:
            fix.prepare_disks(instance, self._host)
        return super().get_instance_disk_info(instance, block_device_info)

    def _set_source_fields(self, migrate_data, disk_info):
        disks = jsonutils.loads(disk_info or '[]')
        for fix in self._fixes:
            fix.set_source_fields(migrate_data, disks)
        return disk_info and jsonutils.dumps(disks)

    def _can_retry(self, instance):
        # Each fix prepares its disks.
        return any([
            fix.prepare_disks(instance, self._host, has_failed=True)
            for fix in self._fixes])

    # -- destination: prepare for the guest ---------------------------------

    def pre_live_migration(self, context, instance, block_device_info,
                           network_info, disk_info, migrate_data):
        instance_dir = libvirt_utils.get_instance_path_at_destination(
            instance, migrate_data)
        with fetch.directory_removed_on_failure(instance_dir), \
                current_migration.incoming(self._source_address(
                    instance, migrate_data), is_live=True):
            return super().pre_live_migration(
                context, instance, block_device_info, network_info, disk_info,
                migrate_data)

    def _source_address(self, instance, migrate_data, disks=()):
        return next(filter(None, (
            fix.source_address(instance, migrate_data, disks)
            for fix in self._fixes)), None)

    def _create_images_and_backing(self, context, instance, instance_dir,
                                   disk_info, fallback_from_host=None):
        source = current_migration.source(fallback_from_host)
        # A hard reboot calls this too.
        if current_migration.is_live():
            peer.check_disks(disk_info or [])
            fetch.fetch(instance, instance_dir, [
                request for fix in self._fixes for request in
                fix.files_to_fetch(instance, instance_dir, disk_info or [])],
                source)
        super()._create_images_and_backing(
            context, instance, instance_dir, disk_info, source)
        for fix in self._fixes:
            fix.images_created(self, instance, instance_dir, disk_info or [])

    def _try_fetch_image_cache(self, image, fetch_func, context, filename,
                               image_id, instance, size,
                               fallback_from_host=None):
        super()._try_fetch_image_cache(
            image, fetch_func, context, filename, image_id, instance, size,
            current_migration.source(fallback_from_host))

    def _fetch_instance_kernel_ramdisk(self, context, instance,
                                       fallback_from_host=None):
        super()._fetch_instance_kernel_ramdisk(
            context, instance, current_migration.source(fallback_from_host))

    # -- source: migrate the guest in a thread, and monitor it --------------

    def _live_migration(self, context, instance, dest, post_method,
                        recover_method, block_migration,
                        migrate_data):
        operation = current_migration.Operation()
        self._operations[instance.uuid] = operation
        try:
            super()._live_migration(
                context, instance, dest, post_method, recover_method,
                block_migration, migrate_data)
        except Exception as error:
            if not any(fix.live_migration_failed(
                    context, instance, self._host, migrate_data, error,
                    operation) for fix in self._fixes):
                raise
        finally:
            del self._operations[instance.uuid]

    def _live_migration_operation(self, context, instance, dest,
                                  block_migration, migrate_data, guest,
                                  device_names):
        operation = self._operations.get(
            instance.uuid, current_migration.Operation())
        migrating = _MigratingGuest(
            guest, operation,
            functools.partial(self._update_running_xml, migrate_data),
            functools.partial(self._update_destination_xml, instance,
                              migrate_data),
            functools.partial(self._migrate_failed, context, instance,
                              migrate_data))
        with operation.recorded():
            super()._live_migration_operation(
                context, instance, dest, block_migration, migrate_data,
                migrating, device_names)

    def _update_running_xml(self, migrate_data, running):
        for fix in self._fixes:
            fix.update_running_xml(migrate_data, running)

    def _update_destination_xml(self, instance, migrate_data, destination,
                                running):
        for fix in self._fixes:
            fix.update_destination_xml(
                self, instance, migrate_data, destination, running)

    def _migrate_failed(self, context, instance, migrate_data, uri, migrate):
        return any(fix.migrate_failed(
            self, context, instance, migrate_data, uri, migrate)
            for fix in self._fixes)

    @_with_signature_of(driver.LibvirtDriver._live_migration_monitor)
    def _live_migration_monitor(self, context, instance, guest, dest,
                                post_method, recover_method, block_migration,
                                migrate_data, *args, **kwargs):
        monitor = super()._live_migration_monitor
        outgoing = current_migration.Outgoing(
            context, instance, dest, migrate_data, guest, post_method,
            recover_method, self._operations.get(instance.uuid),
            lambda: monitor(
                context, instance, outgoing.guest, dest, outgoing.post_method,
                outgoing.recover_method, block_migration, migrate_data, *args,
                **kwargs))
        for fix in self._fixes:
            fix.live_migration_monitor(self, outgoing)
        outgoing.monitor()

    # -- cold migration and resize: source, then destination ----------------

    def migrate_disk_and_power_off(self, context, instance, dest,
                                   flavor, network_info,
                                   block_device_info=None,
                                   timeout=0, retry_interval=0):
        with _instance_state_kept():
            for fix in self._fixes:
                fix.migrate_disk_and_power_off(
                    self, instance, dest, block_device_info)
        return self._set_source_fields(
            None, super().migrate_disk_and_power_off(
                context, instance, dest, flavor, network_info,
                block_device_info, timeout, retry_interval))

    @_with_signature_of(driver.LibvirtDriver.finish_migration)
    def finish_migration(self, context, migration, instance, disk_info,
                         *args, **kwargs):
        address = self._source_address(
            instance, None, jsonutils.loads(disk_info))
        with current_migration.incoming(address, is_live=False):
            super().finish_migration(
                context, migration, instance, disk_info, *args, **kwargs)

    @_with_signature_of(driver.LibvirtDriver._create_image)
    def _create_image(self, context, instance, *args, **kwargs):
        arguments = _CREATE_IMAGE.bind(
            self, context, instance, *args, **kwargs).arguments
        # Only a cold migration or resize has a source. A Nova with the
        # patches passes the source's migration address itself.
        if source := current_migration.source(
                arguments.get('fallback_from_host')):
            self._complete_disks(instance, source)
        return super()._create_image(context, instance, *args, **kwargs)

    def _complete_disks(self, instance, source):
        instance_dir = libvirt_utils.get_instance_path(instance)
        # If the source's renamed directory is here, the hosts share it.
        if not os.path.exists(f'{instance_dir}_resize'):
            for fix in self._fixes:
                fix.finish_migration(instance, instance_dir, source)

    # -- either host: stop or restart the guest -----------------------------

    def power_off(self, instance, timeout=0, retry_interval=0):
        for fix in self._fixes:
            fix.power_off(instance, self._host)
        super().power_off(instance, timeout, retry_interval)

    @_with_signature_of(driver.LibvirtDriver._hard_reboot)
    def _hard_reboot(self, context, instance, network_info, *args, **kwargs):
        arguments = _HARD_REBOOT.bind(
            self, context, instance, network_info, *args, **kwargs).arguments
        for fix in self._fixes:
            fix.hard_reboot(self, context, instance, network_info,
                            arguments.get('block_device_info'))
        super()._hard_reboot(context, instance, network_info, *args, **kwargs)


@contextlib.contextmanager
def _instance_state_kept():
    """Make Nova keep the state of the instance when a fix raises."""
    try:
        yield
    except Exception as error:
        raise exception.InstanceFaultRollback(error) from error


class _MigratingGuest:
    """A proxy for Nova's Guest: ``migrate`` passes the fixes' XML to libvirt.

    Nova reads the running guest's XML, computes the destination's XML from it
    and calls ``migrate``, all in one long method. Only this object sees both
    XML documents in every release. Everything else goes to Nova's Guest.
    """

    def __init__(self, guest, operation, update_running_xml,
                 update_destination_xml, migrate_failed):
        self._guest = guest
        self._operation = operation
        self._update_running_xml = update_running_xml
        self._update_destination_xml = update_destination_xml
        self._migrate_failed = migrate_failed
        self._running_xml = None

    def __getattr__(self, name):
        return getattr(self._guest, name)

    def __eq__(self, other):
        return self._guest == other

    def __hash__(self):
        return hash(self._guest)

    def get_xml_desc(self, *args, **kwargs):
        xml = self._guest.get_xml_desc(*args, **kwargs)
        if kwargs.get('dump_migratable'):
            self._running_xml = xml
            xml = domain_xml.updated(xml, self._update_running_xml)
        return xml

    def migrate(self, uri, *args, destination_xml=None, flags=0, **kwargs):
        if destination_xml and self._running_xml:
            destination_xml = domain_xml.updated(
                destination_xml, self._update_destination_xml,
                domain_xml.parse(self._running_xml))
        # libvirt refuses a guest that is off.
        self._operation.has_started = self._guest.is_active()

        def migrate(guest, more_flags=0):
            guest.migrate(uri, *args, destination_xml=destination_xml,
                          flags=flags | more_flags, **kwargs)
        try:
            migrate(self._guest)
        except Exception:
            if not self._migrate_failed(uri, migrate):
                raise
