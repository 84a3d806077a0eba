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
Fixes for faults of Nova's libvirt driver that harm guests when they are
migrated. They are in force on a compute host whose ``[DEFAULT]
compute_driver`` is ``migfix.LibvirtDriver``.
""")

OPTS: list[cfg.Opt] = [
    cfg.ListOpt(
        'enabled_fixes',
        sample_default=['config_drive', 'ephemeral', 'kernel_ramdisk',
                        'rollback_state', 'source_address', 'tls_rekey',
                        'vnic'],
        help="""
Names of the fixes that are in force on this host.

When unset, every registered fix is. A name that no installed package
registers (in the stevedore namespace ``nova_migfix.fixes``) stops
nova-compute. A fix that the running release of Nova does not need steps aside
by itself. What became of each fix is logged when nova-compute starts.

Possible values:

* A comma-separated list of names of fixes.
* An empty value: no fix, which leaves Nova's own behaviour.
"""),
    cfg.BoolOpt(
        'ephemeral_overlays',
        default=False,
        help="""
Make new ephemeral and swap disks as overlays on shared files, as Nova does.

By default each new disk is complete: it has its own file system, label and
UUID, and needs no file in the image cache. An overlay is made faster, and
shares the metadata of its file system with all disks of its size on the host,
also their label and UUID. It becomes complete when the guest is migrated.

The option matters where ``[libvirt] images_type`` is ``qcow2``.

Related options:

* ``[migfix] enabled_fixes``, the fix ``ephemeral``
"""),
    cfg.BoolOpt(
        'refuse_unsafe_tls',
        default=False,
        help="""
Refuse a live migration that a change of TLS keys is likely to end.

Over TLS 1.3 GnuTLS before 3.8.11 kills QEMU on the source when a large or
busy guest is migrated with ``[libvirt] live_migration_with_native_tls``. By
default there is a warning in the log of the source.

Related options:

* ``[libvirt] live_migration_with_native_tls``
* ``[migfix] enabled_fixes``, the fix ``tls_rekey``
"""),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the group and its options, once or again."""
    conf.register_group(GROUP)
    conf.register_opts(OPTS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """What oslo.config's generators and validator ask for."""
    return [(GROUP, OPTS)]
