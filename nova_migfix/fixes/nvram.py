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

"""Keep the UEFI variables of a guest in a cold migration or resize.

libvirt stores the variables (NVRAM) of a UEFI guest in a file of the host: the
boot entries, the machine owner's keys, enrolled Secure Boot keys, and those
that the guest's programs have set. libvirt creates the file from a template if
it is missing, and uses it if it exists. Nova moves the files of a virtual TPM
with the guest, but not this file. After a cold migration or resize the guest
has the variables of the template, or those of a former stay on the host, and
a confirmation deletes its own for good (LP 1633447). A live migration carries
the variables in memory, but leaves the file of the source behind.

With the fix the source of a cold migration or resize copies the file as soon
as the guest is off, and sends the copy to the instance's directory on the
destination as Nova sends the disks. The destination puts it in the place of
libvirt's file after libvirt knows the domain and before the guest starts. So
does the source when it gets the guest back. The name of the copy has the ID of
the migration: the copy of an aborted attempt is never used.

The source of a live migration removes its file after the guest has left, but
only from a file system that no other host shares.

If the variables cannot be carried, a warning names the reason, and the
migration does as Nova does.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import functools
import glob
import os
import stat
from typing import Any
from typing import NamedTuple

from nova import exception
from nova.virt import hardware
from nova.virt.libvirt import utils as libvirt_utils
from oslo_log import log as logging

from nova_migfix.abi import domain as domain_xml
from nova_migfix.fixes import base
from nova_migfix.storage import image_file
from nova_migfix.storage import nvram
from nova_migfix.transport import fetch

LOG = logging.getLogger(__name__)

# The copy in the instance's directory; the ID of the migration follows.
_COPY = 'nvram.'

# Ends of libvirt's names for the file of a domain, by the file's format.
_ENDS = ('_VARS.fd', '_VARS.qcow2')


class Nvram(base.Fix):
    name = 'nvram'
    bug = 'cold migration and resize lose UEFI variables (LP 1633447)'

    def extend_driver(self, driver: Any) -> None:
        driver.migrate_disk_and_power_off = _sending(
            driver, driver.migrate_disk_and_power_off)
        driver._create_guest = _restoring(driver, driver._create_guest)
        driver.post_live_migration_at_source = _removing(
            driver, driver.post_live_migration_at_source)


class Store(NamedTuple):
    """The file with the variables of a domain."""

    #: its name in nvram.DIRECTORY
    name: str
    #: 'raw' or 'qcow2'
    format: str
    #: path of the template, '' if libvirt does not name it
    template: str
    template_format: str


# -- cold migration and resize: source --------------------------------------

def _sending(driver: Any, migrate: Callable[..., str]) -> Callable[..., str]:
    @functools.wraps(migrate)
    def migrate_disk_and_power_off(
        context: Any, instance: Any, dest: str, *args: Any, **kwargs: Any,
    ) -> str:
        disk_info = migrate(context, instance, dest, *args, **kwargs)
        with _warned_of_failure(instance):
            _send(driver, instance, dest)
        return disk_info
    return migrate_disk_and_power_off


def _send(driver: Any, instance: Any, dest: str) -> None:
    """Copy the variables of a guest that is off to the destination.

    :param dest: address of the destination
    """
    store = _store(driver, instance)
    if store is None:
        return
    # Nova has renamed the directory.
    instance_dir = libvirt_utils.get_instance_path(instance)
    copy = _copy(f'{instance_dir}_resize', instance)
    nvram.save(store.name, copy, os.geteuid())
    # A new one is there if the destination is this host, or shares it.
    shared = os.path.isdir(instance_dir)
    libvirt_utils.copy_image(
        copy, instance_dir, host=None if shared else dest)


# -- cold migration, resize and revert: the new host ------------------------

def _restoring(driver: Any, create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def _create_guest(
        context: Any, xml: str, instance: Any, *args: Any, **kwargs: Any,
    ) -> Any:
        if copies := _copies(instance):
            kwargs['post_xml_callback'] = functools.partial(
                _defined, driver, instance, copies,
                kwargs.get('post_xml_callback'))
        return create(context, xml, instance, *args, **kwargs)
    return _create_guest


def _defined(driver: Any, instance: Any, copies: list[str],
             post_xml_callback: Callable[[], None] | None) -> None:
    """Restore the variables between definition and start of a domain.

    :param post_xml_callback: Nova's own
    """
    if post_xml_callback is not None:
        post_xml_callback()
    with _warned_of_failure(instance):
        _restore(driver, instance, copies)
    for path in copies:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _copies(instance: Any) -> list[str]:
    """Return the paths of copies, which may be of aborted migrations."""
    return glob.glob(os.path.join(glob.escape(
        libvirt_utils.get_instance_path(instance)), f'{_COPY}*'))


def _restore(driver: Any, instance: Any, copies: list[str]) -> None:
    """Give a domain that does not run yet the variables of its guest."""
    copy = _copy(libvirt_utils.get_instance_path(instance), instance)
    if copy not in copies:
        return
    store = _store(driver, instance)
    if store is None or not store.template:
        raise ValueError('libvirt names no template of the variables here')
    _require_fitting(copy, store, instance)
    nvram.restore(copy, store.name)
    LOG.info('Kept the UEFI variables of the guest where Nova would have '
             'left those of this host (%s)', Nvram.bug, instance=instance)


def _require_fitting(copy: str, store: Store, instance: Any) -> None:
    """Check that the guest can run with variables from another host.

    :raises ValueError: it cannot
    """
    if instance.old_flavor and len({
            hardware.get_secure_boot_constraint(flavor, instance.image_meta)
            for flavor in (instance.old_flavor, instance.flavor)}) > 1:
        raise ValueError('the new flavor changes Secure Boot')
    if not stat.S_ISREG(os.lstat(copy).st_mode):
        raise ValueError(f'{os.path.basename(copy)} is not a regular file')
    size = _size(copy, store.format)
    wanted = _size(store.template, store.template_format)
    if size != wanted:
        raise ValueError(
            f'they have {size} bytes, while those of {store.template} of '
            f'this host have {wanted}')


def _size(path: str, form: str) -> int:
    """Return the size of a file with variables as the guest sees it, in bytes.

    :raises ValueError: it is not complete without other files
    """
    if form != 'qcow2':
        return os.path.getsize(path)
    header = image_file.qcow2_header(path)
    if header is None or header.backing or header.has_data_file:
        raise ValueError(f'{path} is not a qcow2 image without other files')
    return header.size


# -- live migration: source -------------------------------------------------

def _removing(driver: Any, leave: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(leave)
    def post_live_migration_at_source(
        context: Any, instance: Any, network_info: Any,
    ) -> None:
        leave(context, instance, network_info)
        try:
            _remove(driver, instance)
        except Exception as error:
            LOG.warning('The UEFI variables that the guest has left in '
                        '%(directory)s could not be removed: %(error)s. '
                        'Remove the file that has the name of its domain.', {
                            'directory': nvram.DIRECTORY,
                            'error': fetch.reason(error)}, instance=instance)
    return post_live_migration_at_source


def _remove(driver: Any, instance: Any) -> None:
    """Remove the file of a guest that has arrived on another host."""
    try:
        driver._host.get_guest(instance)
    except exception.InstanceNotFound:
        for end in _ENDS:
            if nvram.remove(f'{instance.name}{end}'):
                LOG.info('Removed the UEFI variables that the guest has left '
                         'here (%s)', Nvram.bug, instance=instance)


# -- either host ------------------------------------------------------------

def _copy(directory: str, instance: Any) -> str:
    """Return the path of the copy that belongs to the present migration."""
    migration = instance.migration_context.migration_id
    return os.path.join(directory, f'{_COPY}{migration}')


def _store(driver: Any, instance: Any) -> Store | None:
    """Return the file that libvirt uses; None for a guest without variables.

    :raises ValueError: it is not where libvirt puts it
    """
    element = domain_xml.parse(driver._host.get_guest(
        instance).get_xml_desc()).find('./os/nvram')
    if element is None:
        return None
    directory, name = os.path.split((element.text or '').strip())
    if directory != nvram.DIRECTORY:
        raise ValueError(f'the file is not in {nvram.DIRECTORY}')
    form = element.get('format', 'raw')
    return Store(name, form, element.get('template', ''),
                 element.get('templateFormat', form))


@contextlib.contextmanager
def _warned_of_failure(instance: Any) -> Any:
    """Let the migration go on as with unmodified Nova."""
    try:
        yield
    except Exception as error:
        LOG.warning(
            'The UEFI variables (NVRAM) of the guest are not carried to the '
            'new host: %(error)s. The guest gets what Nova would have left it '
            '(%(bug)s). To keep them, revert the migration, and remove the '
            'reason before the next one.', {
                'error': fetch.reason(error), 'bug': Nvram.bug},
            instance=instance)
