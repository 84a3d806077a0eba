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

import errno
import fcntl
import os
import struct
from unittest import mock

import ddt
import nova.privsep
import testtools

from nova_migfix.abi import tap


class Kernel:
    """A kernel that opens a number of queues, then refuses like Linux."""

    def __init__(self, queues, refusal):
        self.queues = queues
        self.refusal = refusal
        self.names = []
        self.open = set()

    def open_tun(self, path, flags):
        assert path == '/dev/net/tun'
        descriptor = len(self.names) + len(self.open) + 100
        self.open.add(descriptor)
        return descriptor

    def ioctl(self, descriptor, request, argument):
        assert request == tap.TUNSETIFF
        name, flags = struct.unpack(tap.IFREQ, argument)
        assert flags & tap.IFF_MULTI_QUEUE
        self.names.append(name.rstrip(b'\0'))
        if len(self.names) > self.queues:
            raise OSError(self.refusal, os.strerror(self.refusal))
        return struct.pack(tap.IFREQ, b'migfix0', flags)


@ddt.ddt
class TestTap(testtools.TestCase):

    def setUp(self):
        super().setUp()
        # run the privileged function in this process, not in the daemon
        context = nova.privsep.sys_admin_pctxt
        self.addCleanup(context.set_client_mode, context.client_mode)
        context.set_client_mode(False)

    def run_on(self, kernel, wanted):
        with mock.patch.object(
                os, 'open', autospec=True, side_effect=kernel.open_tun
        ), mock.patch.object(
                os, 'close', autospec=True, side_effect=kernel.open.remove
        ), mock.patch.object(
                fcntl, 'ioctl', autospec=True, side_effect=kernel.ioctl):
            return tap.count_queues(wanted)

    @ddt.data(
        (256, errno.E2BIG, 256),   # Linux 4.0 and later
        (8, errno.E2BIG, 8),       # Linux 3.8 to 3.19
        (1, errno.EBUSY, 1),       # before 3.8: the device has one queue
        (0, errno.EINVAL, 1),      # the flag is unknown
        (1000, errno.E2BIG, 256),  # more than count_queues() is asked for
    )
    @ddt.unpack
    def test_queue_limit_is_where_the_kernel_refuses(
            self, has, refusal, announced):
        kernel = Kernel(has, refusal)
        self.assertEqual(announced, self.run_on(kernel, 256))
        self.assertEqual(set(), kernel.open)

    def test_queues_belong_to_the_device_that_the_kernel_named(self):
        kernel = Kernel(8, errno.E2BIG)
        self.run_on(kernel, 3)
        self.assertEqual([b'migfix%d', b'migfix0', b'migfix0'], kernel.names)

    def offloads_on(self, kernel_flags, refusal=errno.EINVAL):
        """Return the offloads of a kernel that knows some flags."""
        def ioctl(descriptor, request, argument):
            self.assertEqual(100, descriptor)
            if request == tap.TUNSETIFF:
                _name, flags = struct.unpack(tap.IFREQ, argument)
                self.assertTrue(flags & tap.IFF_VNET_HDR)
            elif argument & ~kernel_flags:
                raise OSError(refusal, os.strerror(refusal))
            return b''
        with mock.patch.object(os, 'open', return_value=100), \
                mock.patch.object(os, 'close') as closed, \
                mock.patch.object(fcntl, 'ioctl', side_effect=ioctl):
            try:
                return tap.accepted_offloads()
            finally:
                closed.assert_called_once_with(100)

    @ddt.data((0x1f, []),                       # before Linux 6.2
              (0x7f, ['USO']),                  # before Linux 6.17
              (0x1ff, ['USO', 'UDP tunnel']))
    @ddt.unpack
    def test_offloads_are_those_that_the_kernel_accepts(
            self, flags, expected):
        self.assertEqual(expected, self.offloads_on(flags))

    def test_refused_device_has_no_known_offloads(self):
        self.assertRaises(OSError, self.offloads_on, 0, errno.EBADFD)

    @ddt.data(errno.EPERM, errno.EMFILE)
    def test_any_other_error_of_the_kernel_is_raised(self, refusal):
        kernel = Kernel(2, refusal)
        self.assertRaises(OSError, self.run_on, kernel, 8)
        self.assertEqual(set(), kernel.open)
