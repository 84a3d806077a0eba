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


"""nova-compute logs the state of the fixes when it starts."""

import stevedore

from nova_migfix import fixes
from nova_migfix import nova_release
from nova_migfix.tests.functional import base


class StartTestCase(base.MigrationTestCase):

    def lines(self):
        """Return the lines of both computes about each registered fix."""
        lines = self.stdlog.logger.output.splitlines()
        return {
            name: [line.partition(f'Fix {name}: ')[2] for line in lines
                   if ' INFO ' in line and f'Fix {name}: ' in line]
            for name in stevedore.ExtensionManager(fixes.NAMESPACE).names()}

    def test_log_has_one_line_for_each_fix(self):
        self.assertIn('vnic', self.lines())
        for name, (src, dest) in self.lines().items():
            self.assertRegex(src, '^(active|not needed in this Nova)', name)
            self.assertEqual(src, dest, name)

    def test_fix_is_off_where_nova_does_not_need_it(self):
        src, _dest = self.lines()['rollback_state']
        self.assertEqual(
            nova_release.major() >= 32, src.startswith('active'), src)


class DisabledFixesTestCase(StartTestCase):

    enabled_fixes = ['vnic']

    def test_log_has_one_line_for_each_fix(self):
        for name, (src, dest) in self.lines().items():
            self.assertTrue(src.startswith(
                'active' if name == 'vnic' else
                'switched off by [migfix] enabled_fixes'), (name, src))
            self.assertEqual(src, dest, name)

    test_fix_is_off_where_nova_does_not_need_it = None
