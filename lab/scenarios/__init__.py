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

"""The scenarios, in the order in which they run."""

from lab.scenarios import certificates
from lab.scenarios import cold
from lab.scenarios import config_drive
from lab.scenarios import destination
from lab.scenarios import ephemeral_base_gone
from lab.scenarios import ephemeral_cache
from lab.scenarios import ephemeral_cold
from lab.scenarios import ephemeral_cut
from lab.scenarios import ephemeral_disk_full
from lab.scenarios import ephemeral_ext4
from lab.scenarios import ephemeral_filesystems
from lab.scenarios import ephemeral_mixed
from lab.scenarios import ephemeral_mkfs_fails
from lab.scenarios import ephemeral_new
from lab.scenarios import ephemeral_pull_aborted
from lab.scenarios import ephemeral_resume
from lab.scenarios import ephemeral_round_trip
from lab.scenarios import ephemeral_xfs
from lab.scenarios import fleet
from lab.scenarios import image_gone_ipv6
from lab.scenarios import image_gone_rsync
from lab.scenarios import image_gone_ssh
from lab.scenarios import interrupted
from lab.scenarios import kernel_ramdisk
from lab.scenarios import lost
from lab.scenarios import mixed
from lab.scenarios import nvram
from lab.scenarios import outage
from lab.scenarios import paused_round_trip
from lab.scenarios import plain
from lab.scenarios import queues_grow
from lab.scenarios import queues_refused
from lab.scenarios import queues_shrink
from lab.scenarios import restart
from lab.scenarios import rollback
from lab.scenarios import tls_rekey

ALL = {scenario.name: scenario for scenario in (
    plain.Plain(),
    queues_grow.QueuesGrow(),
    queues_shrink.QueuesShrink(),
    queues_refused.QueuesRefused(),
    image_gone_ssh.ImageGoneSsh(),
    image_gone_rsync.ImageGoneRsync(),
    image_gone_ipv6.ImageGoneIpv6(),
    rollback.Rollback(),
    mixed.Mixed(),
    ephemeral_new.EphemeralNew(),
    ephemeral_xfs.EphemeralXfs(),
    ephemeral_ext4.EphemeralExt4(),
    ephemeral_filesystems.EphemeralFilesystems(),
    ephemeral_cold.EphemeralCold(),
    ephemeral_cache.EphemeralCache(),
    ephemeral_base_gone.EphemeralBaseGone(),
    ephemeral_resume.EphemeralResume(),
    ephemeral_round_trip.EphemeralRoundTrip(),
    ephemeral_mkfs_fails.EphemeralMkfsFails(),
    ephemeral_cut.EphemeralCut(),
    ephemeral_disk_full.EphemeralDiskFull(),
    ephemeral_pull_aborted.EphemeralPullAborted(),
    ephemeral_mixed.EphemeralMixed(),
    config_drive.ConfigDrive(),
    kernel_ramdisk.KernelRamdisk(),
    nvram.Nvram(),
    tls_rekey.TlsRekey(),
    certificates.Certificates(),
    destination.Destination(),
    fleet.Fleet(),
    *lost.SCENARIOS,
    paused_round_trip.PausedRoundTrip(),
    *restart.SCENARIOS,
    *outage.SCENARIOS,
    *interrupted.SCENARIOS,
    *cold.SCENARIOS,
)}
