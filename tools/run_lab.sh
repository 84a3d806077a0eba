#!/bin/bash
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

# Live migrations between two real hypervisors on this machine, with
# unmodified Nova and with the plugin, or the patches, of this checkout:
#
#   tools/run_lab.sh [SCENARIO...] [--keep] [--nova X.Y.Z]
#                    [--variant plugin|patched]
#
# Installs what is missing, as root on Debian or Ubuntu. Files are kept in
# NOVA_MIGFIX_LAB_DIR (default: /var/tmp/nova-migfix-lab).

set -euo pipefail
umask 022

PACKAGES=(
    binutils busybox-static cpio curl dosfstools e2fsprogs ethtool gcc
    genisoimage iproute2 ipset iputils-ping kmod libc6-dev libvirt-clients
    libsasl2-modules libvirt-daemon-system libvirt-dev mariadb-server mount
    mtools openssh-client openssh-server openvswitch-switch ovmf patch
    pkg-config python3-dev python3-venv qemu-system-x86 qemu-utils
    rabbitmq-server rsync sasl2-bin sudo syslinux syslinux-common
    systemd-boot-efi tcpdump util-linux xfsprogs xz-utils zstd
)

fail() {
    echo "run_lab.sh: $1" >&2
    exit 2
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
lab=$(realpath -m "${NOVA_MIGFIX_LAB_DIR:-/var/tmp/nova-migfix-lab}")
export NOVA_MIGFIX_LAB_DIR=$lab
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing_packages() {
    local package
    for package in "${PACKAGES[@]}"; do
        dpkg-query --show --showformat='${db:Status-Status}' "$package" \
            2>/dev/null | grep --quiet --line-regexp installed ||
            echo "$package"
    done
}

# policy-rc.d keeps apt from starting the packaged daemons: the lab runs its
# own ones, on its own hosts.
install_packages() {
    local policy=/usr/sbin/policy-rc.d
    echo "installing $*"
    if [ ! -e "$policy" ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get update --quiet --option DPkg::Lock::Timeout=300 &&
            apt-get install --quiet --yes --no-install-recommends \
                --option DPkg::Lock::Timeout=300 "$@"
    } >"$lab/apt.log" 2>&1 </dev/null || {
        tail -n 15 "$lab/apt.log"
        fail "packages could not be installed, see $lab/apt.log"
    }
    if [ -n "$(trap -p EXIT)" ]; then
        rm -f "$policy"
        trap - EXIT
    fi
}

# The environment the lab itself runs in, made again when what it needs changes.
make_runner() {
    local requirements=$checkout/lab/requirements.txt
    local runner=$lab/venvs/runner
    cmp --silent "$requirements" "$runner/requirements.txt" && return
    echo 'making the virtual environment of the lab'
    rm -rf "$runner"
    "${PYTHON:-/usr/bin/python3}" -m venv "$runner"
    "$runner/bin/pip" install --quiet --disable-pip-version-check \
        --requirement "$requirements" >"$lab/pip.log" 2>&1 || {
        tail -n 15 "$lab/pip.log"
        fail "Python packages could not be installed, see $lab/pip.log"
    }
    cp "$requirements" "$runner/requirements.txt"
}

[ "$(id -u)" = 0 ] || fail 'needs root, to make namespaces and interfaces'
[ -c /dev/net/tun ] || fail 'needs /dev/net/tun: modprobe tun'
command -v apt-get >/dev/null || fail 'needs Debian or Ubuntu: no apt-get'
[ "$(uname -m)" = x86_64 ] || fail 'needs an x86_64 machine'

mkdir -p "$lab/venvs"
missing=$(missing_packages)
# shellcheck disable=SC2086
[ -z "$missing" ] || install_packages $missing
make_runner
# uv: trust the machine's certificates, as pip does; interpreters that it
# installs are for the user nova as well
export UV_PYTHON_INSTALL_DIR=$lab/pythons
export PYTHONPATH=$checkout PYTHONDONTWRITEBYTECODE=1 UV_SYSTEM_CERTS=1
exec "$lab/venvs/runner/bin/python" -m lab "$@"
