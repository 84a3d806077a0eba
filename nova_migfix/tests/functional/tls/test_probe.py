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

"""The effect of policies on the QEMU of this machine."""

import json
import os
import resource
import sys

import ddt

from nova_migfix.tests.functional.tls import base
from nova_migfix.tests import policies
from nova_migfix.tls import lint
from nova_migfix.tls import policy
from nova_migfix.tls import priority

_CHANGED_LATER = '''
import pathlib, shutil, sys
from nova_migfix.tls import probe, users
with probe.listening(probe.find_qemu(), users.find_user()) as address:
    shutil.copy(*sys.argv[1:])
    print(probe.handshake(address).version)
'''


# After the imports, as this user may not be able to read the modules, or to
# run the Python of a virtual environment; the socket module imports a codec
# for host names later.
_AS_NOBODY = '''
import encodings.idna, os, pwd, shutil, sys
from nova_migfix.cmd import tls
from nova_migfix.tls import client
sys.executable = '/usr/bin/python3'
client.__file__ = shutil.copy(client.__file__, sys.argv[1])
user = pwd.getpwnam('nobody')
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
tls.main(['probe', '--json'])
'''


class ProbeTestCase(base.QemuTestCase):

    def assertNegotiated(self, expected, found):
        self.assertEqual((expected.version, expected.cipher),
                         (found['version'], found['cipher']), found)


@ddt.ddt
class DebianTestCase(ProbeTestCase):

    def setUp(self):
        super().setUp()
        if lint.builtin_priority(self.qemu) != priority.NORMAL:
            self.skipTest(f'{self.qemu} was not built with NORMAL')

    @ddt.data(*policies.EXPECTED)
    def test_qemu_negotiates_as_the_policy_says(self, name):
        self.etc.put(name)
        self.assertNegotiated(policies.EXPECTED[name], self.etc.probe())

    def test_environment_does_not_reach_qemu(self):
        found = self.etc.probe(env={
            **os.environ, 'GNUTLS_SYSTEM_PRIORITY_FILE':
                policies.path('disabled-version')})
        self.assertNegotiated(policies.EXPECTED['none'], found)

    def test_probe_costs_a_few_times_the_start_of_the_command(self):
        # Other load makes both slower.
        ratios = [self.cost(self.etc.probe) / self.cost(
            self.etc.run, sys.executable, '-m', 'nova_migfix.cmd.tls',
            '--help') for _pair in range(3)]
        self.assertLess(min(ratios), 5, ratios)

    def cost(self, action, *arguments):
        """Return the processor seconds of the processes of an action."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        action(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (after.ru_utime + after.ru_stime
                - before.ru_utime - before.ru_stime)

    def test_qemu_negotiates_tls13_without_a_policy(self):
        self.assertNegotiated(policies.EXPECTED['none'], self.etc.probe())

    def test_policy_that_the_qemu_user_cannot_read_has_no_effect(self):
        self.etc.put('disabled-version', 0o600)
        self.assertNegotiated(policies.EXPECTED['none'],
                              self.etc.probe('--user', 'nobody'))
        # a probe as another user has a misleading result
        self.assertNegotiated(policies.EXPECTED['disabled-version'],
                              self.etc.probe('--user', 'root'))

    def test_probe_of_another_user_knows_a_public_policy(self):
        self.etc.put('disabled-version')
        self.assertEqual('safe', self.probe_as_nobody()['verdict'])

    def test_probe_of_another_user_does_not_know_a_private_policy(self):
        self.etc.put('disabled-version', 0o600)
        found = self.probe_as_nobody()
        self.assertEqual('unknown', found['verdict'])
        self.assertIn('as root', found['doubt'])

    def probe_as_nobody(self):
        done = self.etc.run(sys.executable, '-c', _AS_NOBODY, self.etc.root)
        self.assertEqual('', done.stderr)
        return json.loads(done.stdout)

    def test_policy_written_while_qemu_runs_has_no_effect(self):
        done = self.etc.run(
            sys.executable, '-c', _CHANGED_LATER,
            policies.path('disabled-version'), self.etc.file)
        self.assertEqual('TLSv1.3', done.stdout.strip(), done.stderr)
        self.assertNegotiated(policies.EXPECTED['disabled-version'],
                              self.etc.probe())

    def test_priority_of_libvirt_is_used(self):
        self.assertNegotiated(
            policies.EXPECTED['disabled-version'],
            self.etc.probe('--priority', 'NORMAL:-VERS-TLS1.3'))

    def test_missing_certificates_are_reported(self):
        found = self.etc.probe('--creds', str(self.etc.file.parent))
        self.assertEqual('no session', found['verdict'])
        self.assertIn('ca-cert.pem', found['error'])


@ddt.ddt
class RhelTestCase(ProbeTestCase):
    """With the built-in priority and file of the RHEL family."""

    def probe(self):
        return self.etc.probe('--priority', priority.SYSTEM)

    @ddt.data(*policies.EXPECTED_OF_SYSTEM)
    def test_qemu_of_rhel_negotiates_as_the_policy_says(self, name):
        self.etc.put(name)
        self.assertNegotiated(policies.EXPECTED_OF_SYSTEM[name],
                              self.probe())

    @ddt.data((policy.TLS12, 'disabled-version'),
              (policy.CHACHA20, 'disabled-ciphers'))
    @ddt.unpack
    def test_generated_policy_can_be_appended_to_crypto_policies(
            self, mode, as_with):
        self.etc.put('crypto-policies')
        with self.etc.file.open('a') as file:
            file.write(policy.merge(policy.FAMILIES['rhel'], mode, ''))
        self.assertNegotiated(policies.EXPECTED[as_with], self.probe())
