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

import pathlib
from unittest import mock

import ddt
import fixtures
import hypothesis
from hypothesis import strategies
import nova.conf
import testtools

from nova_migfix import nova_release
from nova_migfix.status import domain_rules
from nova_migfix.status import hypervisor
from nova_migfix.tests.unit.status import base
from nova_migfix.tests.unit.status import test_preflight

CONF = nova.conf.CONF

MACHINES = frozenset({('x86_64', 'pc-i440fx-2.0')})
MONITORS = frozenset({'192.0.2.1', '192.0.2.2'})
KNOWN = domain_rules.Known(MACHINES, MONITORS)

METADATA = '''<metadata>
  <n:instance xmlns:n="http://openstack.org/xmlns/libvirt/nova/1.1">
    <n:flavor><n:vcpus>12</n:vcpus>{}</n:flavor>
  </n:instance></metadata>'''
SPECS = '<n:extraSpecs>{}</n:extraSpecs>'
SPEC = '<n:extraSpec name="{}">x</n:extraSpec>'
# Nova before 32, no extra spec, the named extra spec
OLD = METADATA.format('')
NONE = METADATA.format(SPECS.format(''))


def spec(name):
    return METADATA.format(SPECS.format(SPEC.format(name)))


ENLIGHTENED = ('<features><hyperv><relaxed state="on"/>'
               '<reenlightenment state="{}"/></hyperv></features>')
TSC = '<clock><timer name="tsc"{}/></clock>'
HOSTDEV = '''<devices><hostdev type="pci" mode="subsystem"><source>
  <address domain="0x0000" bus="0x81" slot="0x02" function="0x1"/></source>
  <address type="pci" domain="0x0000" bus="0x00" slot="0x05" function="0x0"/>
  </hostdev></devices>'''
PORT = '''<devices><interface type="hostdev"><source>
  <address type="pci" domain="0x0000" bus="0x81" slot="0x02" function="0x1"/>
  </source></interface></devices>'''
MDEV = '''<devices><hostdev type="mdev" model="vfio-pci"><source>
  <address uuid="4b20d080-1b54-4048-85b3-a6a62d165c01"/></source></hostdev>
  </devices>'''
SHARES = '<cputune><shares>{}</shares></cputune>'
MACHINE = '<os><type arch="{}" machine="{}">hvm</type></os>'
RBD = '''<devices><disk type="network"><source protocol="rbd" name="vms/disk">
  {}</source><target dev="vda"/>{}</disk></devices>'''
MONITOR = '<host name="{}" port="6789"/>'
OLD_MONITORS = MONITOR.format('192.0.2.8') + MONITOR.format('192.0.2.9')

#: kind, XML, rows
CASES = (
    ('reenlightenment', ENLIGHTENED.format('on'),
     [('hyperv', 'reenlightenment', 'refused if the guest enabled it')]),
    ('reenlightenment', ENLIGHTENED.format('on') + TSC.format(''),
     [('hyperv', 'reenlightenment', 'refused if the guest enabled it')]),
    ('reenlightenment',
     ENLIGHTENED.format('on') + TSC.format(' frequency="2000000000"'), []),
    ('reenlightenment', ENLIGHTENED.format('off'), []),
    ('reenlightenment', '', []),
    ('hostdev', spec('pci_passthrough:alias') + HOSTDEV,
     [('0000:81:02.1', 'PCI device',
       'refused by Nova, unless live_migratable')]),
    ('hostdev', OLD + HOSTDEV,
     [('0000:81:02.1', 'PCI device',
       'refused by Nova, unless the device is of a port')]),
    # a port whose vnic_type is direct-physical
    ('hostdev', NONE + HOSTDEV, []),
    ('hostdev', OLD + PORT, []),
    ('hostdev', OLD + MDEV, []),
    ('mdev', MDEV, [('4b20d080-1b54-4048-85b3-a6a62d165c01',
                     'mediated device',
                     'refused by QEMU, unless its driver can migrate')]),
    ('mdev', HOSTDEV, []),
    ('cpu-shares', spec('quota:cpu_shares') + SHARES.format(10001),
     [('cputune/shares', '10001',
       'refused with cgroup v2: more than 10000')]),
    ('cpu-shares', spec('quota:cpu_shares') + SHARES.format(10000), []),
    # Nova removes them
    ('cpu-shares', NONE + SHARES.format(20000), []),
    ('cpu-shares', OLD + SHARES.format(12 * 1024), []),
    ('cpu-shares', OLD + SHARES.format(20000),
     [('cputune/shares', '20000',
       'refused with cgroup v2: more than 10000')]),
    ('cpu-shares', OLD, []),
    ('machine-type', MACHINE.format('x86_64', 'pc-i440fx-2.0'),
     [('machine', 'pc-i440fx-2.0', 'refused by a QEMU that has dropped it')]),
    ('machine-type', MACHINE.format('x86_64', 'pc-i440fx-7.2'), []),
    ('machine-type', MACHINE.format('aarch64', 'pc-i440fx-2.0'), []),
    ('rbd-monitors', RBD.format(OLD_MONITORS, ''),
     [('vda', '192.0.2.8,192.0.2.9',
       'kept; ceph.conf has 192.0.2.1,192.0.2.2')]),
    ('rbd-monitors',
     RBD.format(OLD_MONITORS + MONITOR.format('192.0.2.1'), ''), []),
    # Cinder supplies the monitors of a volume
    ('rbd-monitors', RBD.format(OLD_MONITORS, '<serial>x</serial>'), []),
    ('rbd-monitors', RBD.format('', ''), []),
)


@ddt.ddt
class TestRules(testtools.TestCase):

    def setUp(self):
        super().setUp()
        self.useFixture(fixtures.MockPatchObject(
            nova_release, 'has', autospec=True, return_value=False))

    def find(self, kind, xml, known=KNOWN):
        rule, = (rule for rule in domain_rules.RULES if rule.kind == kind)
        return list(rule.find(hypervisor.Domain(
            '', '', f'<domain>{xml}</domain>'), known))

    @ddt.data(*CASES)
    @ddt.unpack
    def test_property_is_found(self, kind, xml, rows):
        self.assertEqual(rows, self.find(kind, xml))

    def test_every_rule_has_a_finding_and_a_guest_without(self):
        for rule in domain_rules.RULES:
            found = {bool(rows) for kind, _, rows in CASES
                     if kind == rule.kind}
            self.assertEqual({True, False}, found, rule.kind)

    def test_nova_that_updates_monitors_has_no_finding(self):
        nova_release.has.return_value = True
        self.assertEqual([], self.find(
            'rbd-monitors', RBD.format(OLD_MONITORS, '')))
        nova_release.has.assert_called_once_with(
            'nova.virt.libvirt.migration._update_rbd_xml')

    def test_unknown_facts_have_no_finding(self):
        nothing = domain_rules.Known()
        self.assertEqual([], self.find(
            'rbd-monitors', RBD.format(OLD_MONITORS, ''), nothing))
        self.assertEqual([], self.find(
            'machine-type', MACHINE.format('x86_64', 'pc-i440fx-2.0'),
            nothing))


@ddt.ddt
class TestMonitors(testtools.TestCase):

    @ddt.data(
        ('[global]\nmon_host = 192.0.2.1, 192.0.2.2\n',
         ['192.0.2.1', '192.0.2.2']),
        ('mon host = [v2:192.0.2.1:3300/0,v1:192.0.2.1:6789/0] '
         '[v2:192.0.2.2:3300/0,v1:192.0.2.2:6789/0] # comment',
         ['192.0.2.1', '192.0.2.1', '192.0.2.2', '192.0.2.2']),
        ('mon_host=[v2:[2001:db8::1]:3300,v1:[2001:db8::1]:6789]',
         ['2001:db8::1', '2001:db8::1']),
        ('mon_host = [2001:db8::1]:6789;2001:db8::2',
         ['2001:db8::1', '2001:db8::2']),
        ('mon-host = mon1:6789,mon2.example', ['mon1', 'mon2.example']),
        ('mon_host =\nkey = x', []), ('#mon_host = 192.0.2.1', []), ('', []))
    @ddt.unpack
    def test_monitors_are_read(self, text, expected):
        self.assertEqual(expected, domain_rules.parse_monitors(text))

    @hypothesis.given(
        strategies.lists(strategies.ip_addresses(), min_size=1),
        strategies.sampled_from(('{}', '{}:6789', '[v2:{}:3300,v1:{}:6789]',
                                 '[v2:{}:3300/0,v1:{}:6789/0]', 'v2:{}:3300')),
        strategies.sampled_from((' ', ',', ', ', ';')))
    def test_written_monitors_are_read(self, addresses, form, separator):
        shown = (str(address) if address.version == 4 else f'[{address}]'
                 for address in addresses)
        text = separator.join(form.replace('{}', one) for one in shown)
        self.assertEqual(
            set(map(str, addresses)),
            set(domain_rules.parse_monitors(f'mon_host = {text}\n')))

    @hypothesis.given(strategies.text())
    def test_any_text_has_monitors_or_none(self, text):
        for name in domain_rules.parse_monitors(f'mon host = {text}'):
            self.assertTrue(name)

    def test_names_are_resolved(self):
        path = pathlib.Path(self.useFixture(fixtures.TempDir()).join('x'))
        path.write_text('mon_host = localhost\n')
        with mock.patch.object(CONF.libvirt, 'images_rbd_ceph_conf',
                               str(path), create=True):
            self.assertLessEqual({'localhost', '127.0.0.1'},
                                 domain_rules.monitors())


class TestPreflight(test_preflight.PreflightTestCase):

    def setUp(self):
        super().setUp()
        self.file = self.host.path / 'hypervisor.xml'

    def rows(self):
        return [row for row in self.report()['findings']
                if row['covered'] == 'not known']

    def test_deprecated_machine_types_are_found(self):
        with mock.patch.object(base.FakeLibvirt, 'capabilities', '''
                <capabilities><guest><arch name="x86_64">
                  <machine maxCpus="255">pc-q35-7.2</machine>
                  <machine deprecated="yes">pc-i440fx-7.2</machine>
                </arch></guest></capabilities>'''):
            rows = self.rows()
        self.assertEqual({('machine-type', 'pc-i440fx-7.2', '', 1)}, {
            (row['finding'], row['running'], row['fix'], row['result'])
            for row in rows})
        self.assertEqual(4, len(rows))
        self.assertIn('update_machine_type', rows[0]['otherwise'])
        self.assertIn('See status/guests.', rows[0]['otherwise'])
        self.assertIn('drop the machine type', rows[0]['bug'])

    def test_unknown_machine_types_are_noted(self):
        with mock.patch.object(hypervisor, 'deprecated_machines',
                               side_effect=hypervisor.status.Error('no')):
            self.assertIn('Deprecated machine types are not known: no',
                          self.report()['notes'])

    def test_monitors_are_read_only_for_local_rbd_disks(self):
        with mock.patch.object(domain_rules, 'monitors', autospec=True,
                               side_effect=OSError('no ceph.conf')) as asked:
            self.report()
            asked.assert_not_called()
            text = self.file.read_text()
            self.file.write_text(text.replace('<devices>', RBD.format(
                OLD_MONITORS, '').removesuffix('</devices>'), 1))
            self.assertIn('The monitors of Ceph are not known: no ceph.conf.',
                          self.report()['notes'])
