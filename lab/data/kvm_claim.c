/*
 *    Licensed under the Apache License, Version 2.0 (the "License"); you may
 *    not use this file except in compliance with the License. You may obtain
 *    a copy of the License at
 *
 *         http://www.apache.org/licenses/LICENSE-2.0
 *
 *    Unless required by applicable law or agreed to in writing, software
 *    distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
 *    WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
 *    License for the specific language governing permissions and limitations
 *    under the License.
 */

/*
 * Loaded into a QEMU that libvirt probes: changes its answer to "query-kvm" so
 * that KVM is enabled. See qemu_tcg.py for the reason.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/socket.h>

static const char is[] = "\"enabled\": false, \"present\": true";
static const char claim[] = "\"enabled\": true,  \"present\": true";

ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
    static ssize_t (*next)(int, const struct msghdr *, int);
    size_t i;

    if (!next)
        next = dlsym(RTLD_NEXT, "sendmsg");
    for (i = 0; i < msg->msg_iovlen; i++) {
        char *found = memmem(msg->msg_iov[i].iov_base,
                             msg->msg_iov[i].iov_len, is, sizeof(is) - 1);
        if (found)
            memcpy(found, claim, sizeof(claim) - 1);
    }
    return next(fd, msg, flags);
}
