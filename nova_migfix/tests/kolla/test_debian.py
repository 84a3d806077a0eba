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

"""The unsupported Nova of a distribution: that of Debian 12.

On a Debian 12 its packages are unpacked over the machine's own files, and the
documented commands run beside them.
"""

import re
import shlex

import testtools

from nova_migfix.tests.kolla import image
from nova_migfix.tests import pages

RELEASE = '26.2.2'

#: Without the maintainer scripts, so that no service starts. By tar, as
#: "dpkg-deb --extract" replaces the link /lib.
_UNPACK = '''
mkdir --parents /packages/partial &&
apt-get --yes --download-only --no-install-recommends \\
    --option Dir::Cache::archives=/packages install nova-compute python3-pip &&
for package in /packages/*.deb; do
    dpkg-deb --fsys-tarfile "$package" |
        tar --extract --keep-directory-symlink --directory / || exit
done
ldconfig
'''

_NOVA_CONF = '''
[DEFAULT]
transport_url = fake://
'''

#: nova-compute without the services that it contacts before its driver.
_NOVA_COMPUTE = '''
from unittest import mock

from nova.cmd import compute
from nova.conductor import api
from nova.scheduler.client import report

with mock.patch.object(api.API, 'wait_until_ready', autospec=True), \\
        mock.patch.object(report, 'SchedulerReportClient', autospec=True):
    compute.main()
'''


class DebianTestCase(testtools.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.debian = image.Image()
        cls.debian.setUp()
        cls.addClassCleanup(cls.debian.cleanUp)
        candidate = cls.debian.enter(
            'apt-get --quiet update; apt-cache policy python3-nova')
        if f'Candidate: 2:{RELEASE}' not in candidate.stdout:
            raise cls.skipException(
                'This is no Debian 12, or no root directory of our own can '
                f'be had: {candidate.stderr}')
        cls.debian.run(_UNPACK)
        with image.Checkout() as place:
            cls.debian.put(place.build().parent, '/wheels')

    def setUp(self):
        super().setUp()
        self.image = self.useFixture(image.Image(self.debian))
        self.page = (pages.CHECKOUT / 'doc/source/install/pip.rst').read_text()

    def enter(self, command):
        """Run a command with the Python of the system."""
        return self.image.enter(
            'export PATH=/usr/sbin:/usr/bin:/sbin:/bin '
            'PIP_FIND_LINKS="$PIP_FIND_LINKS /wheels" '
            f'PIP_BREAK_SYSTEM_PACKAGES=1; {command}')

    def packages(self):
        return self.enter('pip list --format freeze').stdout

    def test_pip_fails_before_it_replaces_packages(self):
        (listing, _), (install, _), *_ = pages.commands('install/pip.rst')
        self.assertEqual(0, self.enter(listing).returncode)
        before = self.packages()
        self.assertIn(f'nova=={RELEASE}', before)
        done = self.enter(install)
        self.assertNotEqual(0, done.returncode)
        said, = re.findall(r'^   (ERROR: .*)$', self.page, re.MULTILINE)
        self.assertIn(said, done.stderr)
        self.assertEqual(before, self.packages())

    def test_nova_compute_logs_why_it_does_not_start(self):
        self.assertEqual(0, self.enter(
            'pip install --no-deps nova-migfix').returncode)
        self.image.write('/etc/nova/nova.conf', _NOVA_CONF)
        # Debian's file sets compute_driver, too, and is read last
        self.image.run('printf "%s\\n" "[DEFAULT]" '
                       '"compute_driver = migfix.LibvirtDriver" '
                       '>>/etc/nova/nova-compute.conf')
        done = self.enter(
            f'python3 -c {shlex.quote(_NOVA_COMPUTE)} '
            '--config-file /etc/nova/nova.conf '
            '--config-file /etc/nova/nova-compute.conf')
        self.assertEqual(1, done.returncode, done)
        said, = re.findall(r'^   CRITICAL nova \[-\] (.*)$', self.page,
                           re.MULTILINE)
        self.assertIn(said, done.stderr + done.stdout)
