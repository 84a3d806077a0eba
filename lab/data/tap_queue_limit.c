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
 * Loaded into processes that open tap devices: limits each device to
 * TAP_QUEUE_LIMIT queues, as Linux before 4.0 limits it to 8.
 *
 * It counts the queues in the kernel's fdinfo of this process and keeps no
 * count of its own, so it cannot miss a close().
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

static int is_queue_of(const char *fd, const char *device)
{
    char path[300], line[100], name[IFNAMSIZ];
    int found = 0;
    FILE *info;

    snprintf(path, sizeof(path), "/proc/self/fdinfo/%s", fd);
    info = fopen(path, "r");
    if (!info)
        return 0;
    while (!found && fgets(line, sizeof(line), info))
        found = sscanf(line, "iff:%15s", name) == 1 && !strcmp(name, device);
    fclose(info);
    return found;
}

static int open_queues(const char *device)
{
    struct dirent *entry;
    int queues = 0;
    DIR *fds = opendir("/proc/self/fdinfo");

    while (fds && (entry = readdir(fds)))
        queues += is_queue_of(entry->d_name, device);
    if (fds)
        closedir(fds);
    return queues;
}

int ioctl(int fd, unsigned long request, ...)
{
    static int (*next)(int, unsigned long, ...);
    va_list arguments;
    void *argument;

    va_start(arguments, request);
    argument = va_arg(arguments, void *);
    va_end(arguments);
    if (!next)
        next = dlsym(RTLD_NEXT, "ioctl");
    if (request == TUNSETIFF) {
        struct ifreq *wanted = argument;
        const char *limit = getenv("TAP_QUEUE_LIMIT");

        if (wanted->ifr_flags & IFF_MULTI_QUEUE && limit &&
            open_queues(wanted->ifr_name) >= atoi(limit)) {
            errno = E2BIG;
            return -1;
        }
    }
    return next(fd, request, argument);
}
