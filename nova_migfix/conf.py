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

"""Options of the ``[migfix]`` group in nova.conf."""

from __future__ import annotations

from oslo_config import cfg

GROUP = cfg.OptGroup(
    'migfix',
    title='nova_migfix options',
    help="""
Fixes for faults of Nova's libvirt driver that harm guests during a migration.
They are active on a compute host whose ``[DEFAULT] compute_driver`` is
``migfix.LibvirtDriver``.
""")

OPTS: list[cfg.Opt] = [
    cfg.ListOpt(
        'enabled_fixes',
        sample_default=['arrival', 'config_drive', 'ephemeral',
                        'iothread_pin', 'kernel_ramdisk', 'libvirt_events',
                        'nvram', 'outage', 'paused', 'post_copy',
                        'rbd_monitors', 'restart', 'rollback_state',
                        'serial_console', 'source_address', 'tls_rekey',
                        'vnic', 'volume'],
        help="""
Names of the fixes that are active on this host.

If unset, all registered fixes are active. nova-compute does not start with a
name that no installed package registers in the stevedore namespace
``nova_migfix.fixes``. A fix that the running release of Nova does not need is
inactive. nova-compute logs the state of each fix when it starts.

Possible values:

* A comma-separated list of names of fixes.
* An empty value: no fix is active, and Nova behaves as without the plugin.
"""),
    cfg.BoolOpt(
        'ephemeral_overlays',
        default=False,
        help="""
Make new ephemeral and swap disks as overlays on shared files, as Nova does.

By default each new disk is complete: it has its own file system, label and
UUID, and needs no file in the image cache. Nova creates an overlay faster, but
all overlays of one size on a host share the metadata of their file system, and
so its label and UUID. A migration of the guest completes the overlay.

The option has an effect only if ``[libvirt] images_type`` is ``qcow2``.

Related options:

* ``[migfix] enabled_fixes``, the fix ``ephemeral``
"""),
    cfg.BoolOpt(
        'refuse_unsafe_tls',
        default=False,
        help="""
Refuse a live migration that a change of TLS keys is likely to end.

Over TLS 1.3, GnuTLS before 3.8.11 kills QEMU on the source in a live migration
of a large or busy guest with ``[libvirt] live_migration_with_native_tls``. By
default the source logs a warning.

Related options:

* ``[libvirt] live_migration_with_native_tls``
* ``[migfix] enabled_fixes``, the fix ``tls_rekey``
"""),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the group and its options; repeated calls do no harm."""
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """Return the options for oslo.config's generators and validator."""
    return [(GROUP, OPTS)]
