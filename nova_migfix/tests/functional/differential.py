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

"""Operations on a guest, configurations, and allowed differences.

Three tables: the stories, each a sequence of operations; the configurations;
and the reasons for which the plugin's outcome may differ from that of Nova's
own driver. No other difference is allowed: operations that succeed with Nova
succeed with the plugin.

Source of the first two: the operations of Nova's API that reach the libvirt
driver, and the options and image properties that its image backends read.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
import hashlib
import itertools
import os
import pathlib
import re
import tempfile
from typing import Any
from typing import NamedTuple

from allpairspy import AllPairs
from oslo_concurrency import processutils
from oslo_serialization import jsonutils

from nova_migfix import nova_release

#: environment variable: 'all' has every two values meet, 'whole' has each
#: value meet each story as well
EXTENT = 'NOVA_MIGFIX_DIFFERENTIAL'

# -- configurations ----------------------------------------------------------

#: the values of each parameter, by their words in the name of a test
PARAMETERS: dict[str, dict[str, Any]] = {
    # [DEFAULT] default_ephemeral_format
    'default_format': {
        'unset': None, 'default_ext4': 'ext4', 'default_xfs': 'xfs'},
    # of the image
    'os_type': {'no_os': None, 'linux': 'linux', 'windows': 'windows'},
    # of each ephemeral disk; the last one also of all further disks
    'guest_formats': {
        'as_default': (None,), 'ext4': ('ext4',), 'xfs': ('xfs',),
        'ext4_then_xfs': ('ext4', 'xfs')},
    # size in GB of each
    'ephemerals': {'one_disk': (1,), 'two_disks': (1, 1)},
    'swap': {'no_swap': 0, 'swap': 64},
    # [DEFAULT] config_drive_format, if the guest has one
    'config_drive': {'no_drive': None, 'iso9660': 'iso9660', 'vfat': 'vfat'},
    # [libvirt] images_type
    'images_type': {'qcow2': 'qcow2', 'raw': 'raw', 'flat': 'flat'},
    # [DEFAULT] preallocate_images
    'preallocate': {'sparse': 'none', 'preallocated': 'space'},
    # [DEFAULT] force_raw_images
    'force_raw': {'force_raw': True, 'as_uploaded': False},
    # instances_path
    'shared': {'own_path': False, 'shared_path': True},
    # a guest that was on both hosts before
    'neighbour': {
        'alone': None, 'after_other_os': 'os_type',
        'after_other_format': 'guest_format'},
}

#: an image of another os_type
OTHER_OS = {None: 'linux', 'linux': 'windows', 'windows': 'linux'}
#: a file system that no parameter requests
OTHER_FORMAT = 'ext3'

# The defaults of Nova by os_type; see nova.privsep.fs.
_BY_OS_TYPE = {None: 'vfat', 'linux': 'ext4', 'windows': 'ntfs'}


class Row(NamedTuple):
    """One story under one configuration.

    :ivar words: of the story and of each parameter
    """

    story: str
    words: tuple[str, ...]

    def __getattr__(self, parameter: str) -> Any:
        try:
            place = list(PARAMETERS).index(parameter)
        except ValueError:
            raise AttributeError(parameter) from None
        return PARAMETERS[parameter][self.words[place]]

    @property
    def name(self) -> str:
        return '__'.join((self.story, *self.words))

    def disks(self) -> tuple[tuple[int, str | None], ...]:
        """Return size in GB and file system of each ephemeral disk."""
        return tuple(itertools.zip_longest(
            self.ephemerals, self.guest_formats[:len(self.ephemerals)],
            fillvalue=self.guest_formats[-1]))

    def filesystem(self, number: int) -> str:
        """Return the file system that the tenant requests for a disk."""
        _size, asked = self.disks()[number]
        return asked or self.default_format or _BY_OS_TYPE[self.os_type]

    @property
    def needs_ntfs(self) -> bool:
        found = {self.filesystem(number)
                 for number in range(len(self.ephemerals))}
        if self.neighbour == 'os_type' and not self.default_format:
            found.add(_BY_OS_TYPE[OTHER_OS[self.os_type]])
        return 'ntfs' in found


def _is_possible(words: list[str]) -> bool:
    """Return whether the words chosen so far can be combined."""
    chosen = dict(zip(PARAMETERS, words[1:]))
    return (chosen.get('guest_formats') != 'ext4_then_xfs'
            or chosen.get('ephemerals', 'two_disks') == 'two_disks')


def rows() -> list[Row]:
    """Have every two values meet, in as few rows as possible.

    The stories take turns. By default there are half of the rows, without
    deletions, which take minutes each. The same rows each time.
    """
    extent = os.environ.get(EXTENT)
    stories = list(STORIES)
    turns = itertools.cycle(stories)
    found = [
        Row(story or next(turns), tuple(words))
        for story, *words in AllPairs(
            [stories if extent == 'whole' else [''],
             *map(list, PARAMETERS.values())], filter_func=_is_possible)]
    return found if extent else [
        row for row in found[::2] if row.story not in DELETIONS]


# -- operations --------------------------------------------------------------

class Operation(NamedTuple):
    """One request of a tenant or an operator.

    :ivar perform: takes the cloud (the test) and sends the request
    :ivar held_in: the method of the driver during which a deletion occurs
    :ivar after: the operations that bring the guest into its state
    :ivar renews: whether it creates new disks, with other bytes
    """

    perform: Callable[[Any], None]
    held_in: str = ''
    after: tuple[str, ...] = ()
    renews: bool = False


def _act(**action: Any) -> Callable[[Any], None]:
    """Return a function that sends an action; a callable gets the cloud."""
    (name, body), = action.items()

    def perform(cloud: Any) -> None:
        cloud.send({name: body(cloud) if callable(body) else body})
    return perform


def _resize(**flavor: Any) -> Callable[[Any], None]:
    return _act(resize=lambda cloud: {'flavorRef': cloud.flavor(**flavor)})


OPERATIONS = {
    'boot': Operation(lambda cloud: cloud.create(), '_create_guest'),
    'write': Operation(lambda cloud: cloud.write_disks()),
    'stop': Operation(_act(**{'os-stop': None}), 'power_off'),
    'start': Operation(
        _act(**{'os-start': None}), '_create_guest', ('stop',)),
    'soft reboot': Operation(
        _act(reboot={'type': 'SOFT'}), '_soft_reboot'),
    'hard reboot': Operation(
        _act(reboot={'type': 'HARD'}), '_create_guest'),
    'suspend': Operation(_act(suspend=None), 'suspend'),
    'resume': Operation(_act(resume=None), 'resume', ('suspend',)),
    'rescue': Operation(_act(rescue={}), '_create_guest'),
    'unrescue': Operation(_act(unrescue=None), 'unrescue', ('rescue',)),
    'snapshot': Operation(_act(createImage={'name': 'snapshot'}), 'snapshot'),
    'shelve': Operation(_act(shelve=None), 'snapshot'),
    'unshelve': Operation(
        lambda cloud: cloud.unshelve(), '_create_guest', ('shelve',),
        renews=True),
    'rebuild': Operation(
        _act(rebuild=lambda cloud: {'imageRef': cloud.upload_image()}),
        '_create_guest', renews=True),
    'evacuate': Operation(
        lambda cloud: cloud.evacuate(), '_create_guest', renews=True),
    'cold migration': Operation(
        _act(migrate=None), '_get_instance_disk_info'),
    'larger': Operation(
        _resize(disk=2, more_ephemeral=1, swap=128), 'finish_migration'),
    'smaller': Operation(_resize(memory_mb=256), 'finish_migration'),
    'smaller disks': Operation(_resize(more_ephemeral=-1)),
    'same host': Operation(
        lambda cloud: cloud.resize_on_same_host(), 'finish_migration'),
    'confirm': Operation(_act(confirmResize=None)),
    'revert': Operation(_act(revertResize=None)),
    'live migration': Operation(
        _act(**{'os-migrateLive': {'host': None, 'block_migration': 'auto'}}),
        'pre_live_migration'),
    'attach port': Operation(
        lambda cloud: cloud.attach_port(), 'attach_interface'),
    'detach port': Operation(
        lambda cloud: cloud.detach_port(), 'detach_interface',
        ('attach port',)),
    'image cache': Operation(lambda cloud: cloud.age_image_cache()),
    'delete': Operation(lambda cloud: cloud.delete()),
}

#: the operations of each story, by the first word of a test's name
STORIES = {
    'power': (
        'boot', 'write', 'stop', 'start', 'soft reboot', 'suspend', 'resume',
        'hard reboot', 'rescue', 'unrescue', 'delete'),
    'image': (
        'boot', 'write', 'attach port', 'detach port', 'snapshot', 'rebuild',
        'write', 'shelve', 'unshelve', 'write', 'hard reboot', 'delete'),
    'cold': (
        'boot', 'write', 'cold migration', 'confirm', 'smaller disks',
        'larger', 'revert', 'larger', 'confirm', 'write', 'stop',
        'cold migration', 'confirm', 'start', 'smaller', 'confirm', 'delete'),
    'same_host': (
        'boot', 'write', 'same host', 'revert', 'same host', 'confirm',
        'hard reboot', 'image cache', 'stop', 'start', 'delete'),
    'live': (
        'boot', 'write', 'live migration', 'hard reboot', 'write',
        # The fake libvirt has no domain after a live migration.
        'live migration', 'hard reboot', 'cold migration', 'confirm',
        'image cache', 'stop', 'start', 'delete'),
    'evacuation': (
        'boot', 'write', 'evacuate', 'hard reboot', 'write', 'rebuild',
        'delete'),
}

#: the operations during which a deletion occurs, each with its own guest
DELETIONS = {
    'deleted_in_power': (
        'boot', 'stop', 'start', 'soft reboot', 'hard reboot', 'suspend',
        'resume', 'rescue', 'unrescue'),
    'deleted_in_image': (
        'snapshot', 'shelve', 'unshelve', 'rebuild', 'attach port',
        'detach port'),
    'deleted_in_move': (
        'cold migration', 'larger', 'smaller', 'same host', 'live migration',
        'evacuate'),
}
STORIES.update(DELETIONS)


# -- the content of the disks ------------------------------------------------

#: a disk and one of its aspects, or another subject and its aspect
Aspect = tuple[str, str]

_EPHEMERAL = re.compile(r'disk\.(?:local|eph(\d+))')

# Bytes of one read.
_BLOCK = 1 << 20
_ZEROS = bytes(_BLOCK)


class Observer:
    """Inspect disks, again only after they have changed.

    :param directory: for temporary files
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._seen: dict[Any, dict[str, Any]] = {}

    def disk(self, path: pathlib.Path) -> dict[str, Any]:
        """Return the aspects of a disk for the guest and for the host."""
        key = _state(path)
        if key not in self._seen or self._seen[key]['backing state'] != (
                _backing_state(self._seen[key]['backing path'])):
            found = jsonutils.loads(_execute(
                'qemu-img', 'info', '--force-share', '--output', 'json',
                path))
            backing = found.get('full-backing-filename')
            self._seen[key] = {
                'backing path': backing,
                'backing state': _backing_state(backing),
                'format': found['format'],
                'backing': backing and os.path.basename(backing),
                'size': found['virtual-size'],
                'reserved': path.stat().st_blocks * 512
                >= found['virtual-size'],
                **self._content(path, found['format'], backing)}
        return self._seen[key]

    def _content(self, path: pathlib.Path, form: str,
                 backing: str | None) -> dict[str, Any]:
        if backing and not os.path.exists(backing):
            return {'filesystem': None, 'label': None, 'uuid': None,
                    'digest': 'unreadable'}
        if form == 'raw':
            return _content(path)
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            image = pathlib.Path(directory, 'image')
            _execute('qemu-img', 'convert', '--force-share', '-O', 'raw',
                     path, image)
            return _content(image)


def _execute(*command: Any) -> str:
    found: str = processutils.execute(*command)[0]
    return found


def _state(path: Any) -> Any:
    status = os.stat(path)
    return (str(path), status.st_ino, status.st_mtime_ns, status.st_size,
            status.st_blocks)


def _backing_state(path: str | None) -> Any:
    return _state(path) if path and os.path.exists(path) else None


def _content(image: pathlib.Path) -> dict[str, Any]:
    found = dict(line.split('=', 1) for line in processutils.execute(
        'blkid', '--probe', '--output', 'export', image,
        check_exit_code=[0, 2])[0].splitlines())
    return {'filesystem': found.get('TYPE'), 'label': found.get('LABEL'),
            'uuid': found.get('UUID'), 'digest': _digest(image)}


def _digest(image: pathlib.Path) -> str:
    """Return a digest of the bytes, independent of holes."""
    digest = hashlib.sha256()
    with open(image, 'rb') as file:
        for offset in _data(file.fileno()):
            block = os.pread(file.fileno(), _BLOCK, offset)
            if block != _ZEROS[:len(block)]:
                digest.update(b'%d' % offset + block.rstrip(b'\0'))
    return digest.hexdigest()


def _data(descriptor: int) -> Iterator[int]:
    """Yield the offset of each block that is not entirely a hole."""
    end, offset = os.fstat(descriptor).st_size, 0
    while offset < end:
        try:
            data = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:
            return      # only a hole up to the end
        offset = data - data % _BLOCK
        yield offset
        offset += _BLOCK


# -- comparison --------------------------------------------------------------

class Reason(NamedTuple):
    """Why the plugin's outcome may differ from Nova's, and be better.

    :ivar aspect: the aspect that may differ
    :ivar holds: takes the row, the disk's name, both outcomes, Nova's first
    """

    aspect: str
    holds: Callable[[Row, str, Any, Any], bool]


def _number(disk: str) -> int | None:
    match = _EPHEMERAL.fullmatch(disk)
    return int(match[1] or 0) if match else None


def _is_asked_for(row: Row, disk: str, ours: Any) -> bool:
    number = _number(disk)
    return (number is not None and number < len(row.ephemerals)
            and ours == row.filesystem(number))


REASONS = {
    'no-backing-file': Reason('backing', lambda row, disk, nova, ours: (
        ours is None and str(nova).startswith(('ephemeral_', 'swap_')))),
    'filesystem-as-asked': Reason('filesystem', lambda row, disk, nova, ours: (
        _is_asked_for(row, disk, ours))),
    'label-kept': Reason('label', lambda row, disk, nova, ours: (
        ours == f'ephemeral{_number(disk)}')),
    'uuid-of-its-own': Reason('uuid', lambda row, disk, nova, ours: (
        (nova, ours) == ('shared', 'own'))),
    'bytes-kept': Reason('bytes', lambda row, disk, nova, ours: (
        disk != 'disk.config' and (nova, ours) == ('changed', 'kept'))),
    'config-drive-kept': Reason('bytes', lambda row, disk, nova, ours: (
        disk == 'disk.config' and (nova, ours) == ('changed', 'kept'))),
    # With Nova the destination keeps files of a guest that was deleted.
    'nothing-left': Reason('files', lambda row, disk, nova, ours: (
        row.story in DELETIONS and nova and not ours)),
    'space-reserved': Reason('reserved', lambda row, disk, nova, ours: (
        row.preallocate == 'space' and ours)),
}

#: reasons why all aspects may differ; each takes both outcomes, Nova's first
FAILURES: dict[str, Callable[
    [dict[Aspect, Any], dict[Aspect, Any]], bool]] = {
    # The destination of Nova 29 formats with the name of the backing file as
    # the label, which is too long for XFS and vfat: LP 2061701.
    'migrates-without-label': lambda nova, ours: (
        nova_release.major() == 29
        and ('compute_pre_live_migration', 'Error',
             ['ProcessExecutionError']) in _events(nova)
        and all(result == 'Success'
                for _event, result, _raised in _events(ours))),
}


def _events(outcome: dict[Aspect, Any]) -> list[tuple[str, str, list[str]]]:
    found: list[tuple[str, str, list[str]]] = outcome.get(
        ('request', 'events'), [])
    return found


class Difference(NamedTuple):
    """One aspect in which the outcomes differ.

    :ivar reason: a name in REASONS or FAILURES, '' for a fault
    """

    subject: str
    aspect: str
    nova: Any
    ours: Any
    reason: str

    def __str__(self) -> str:
        return (f'{self.subject}: {self.aspect} is {self.nova!r} with Nova, '
                f'{self.ours!r} with the plugin'
                + (f' ({self.reason})' if self.reason else ''))


def compare(row: Row, nova: dict[Aspect, Any],
            ours: dict[Aspect, Any]) -> list[Difference]:
    """Return all differences of the outcomes, each with its reason."""
    failure = next((name for name, holds in FAILURES.items()
                    if holds(nova, ours)), '')
    return [
        Difference(subject, aspect, before, after,
                   failure or _reason(row, subject, aspect, before, after))
        for subject, aspect in sorted({*nova, *ours})
        if (before := nova.get((subject, aspect))) != (
            after := ours.get((subject, aspect)))]


def _reason(row: Row, subject: str, aspect: str, nova: Any, ours: Any) -> str:
    return next((name for name, reason in REASONS.items()
                 if reason.aspect == aspect
                 and reason.holds(row, subject, nova, ours)), '')
