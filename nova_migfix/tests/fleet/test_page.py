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

"""The report in a browser: filters, counts, no requests to other URLs."""

import pathlib
import unittest

import ddt
import fixtures

from nova_migfix.tests.fleet import browser
from nova_migfix.tests import hosts
from nova_migfix.tests.unit.status import base
from nova_migfix.tests.unit.status import test_fleet
from nova_migfix.tests.unit.status import test_report

A, B, C = map(base.uuid, (1, 2, 3))


@ddt.ddt
@unittest.skipUnless(browser.DRIVER, 'no chromedriver: see bindep.txt')
class PageTestCase(test_fleet.FleetTestCase):

    def setUp(self):
        super().setUp()
        self.put('compute1', hosts.finding('vnic', A),
                 hosts.finding('config-drive', A),
                 hosts.finding('vnic', B, device='fa:16:3e:00:00:02 mtu'))
        self.put('compute11', hosts.finding('vnic', C, False),
                 notes=['Neutron was not queried.'], plugin=False)
        self.put('compute2')
        hosts.write(self.directory, 'compute3', hosts.UNREACHABLE, {})
        hosts.write(self.directory, 'compute4', hosts.NO_CONTAINER, {})

    def open(self):
        self.command = self.useFixture(base.Command(''))
        place = pathlib.Path(self.useFixture(fixtures.TempDir()).path)
        page = place / 'report.html'
        ran = self.command.run('report', str(self.directory),
                               '--html', str(page))
        self.assertEqual('', ran.err)
        self.browser = self.useFixture(browser.Browser())
        self.browser.open(page)
        self.page = page
        self.addCleanup(self.check_silent)
        return self.browser

    def check_silent(self):
        self.assertEqual([], self.browser.console)
        self.assertEqual([self.page.as_uri()], self.browser.requested())

    def column(self, number):
        return [row[number] for row in self.browser.rows()]

    def assertShown(self, hosts, guests, findings):
        """Assert the numbers in the tabs and in the tables."""
        self.assertEqual((hosts, guests, findings),
                         self.browser.counts()[:3])
        for view, number in (('findings', findings), ('guests', guests),
                             ('hosts', hosts)):
            self.browser.view(view)
            self.assertEqual(number, len(self.browser.rows()), view)

    def test_page_shows_all_hosts_guests_and_findings(self):
        page = self.open()
        self.assertEqual(['5', '1, 1', '6', '3', '1'],
                         page.texts('.tiles dd:not(.words)'))
        self.assertEqual(['depends 2', 'unknown 2', 'no 1'],
                         page.texts('.tiles .words span'))
        self.assertShown(5, 3, 4)
        self.assertEqual(['compute11', 'compute3', 'compute4', 'compute1',
                          'compute2'], self.column(0))
        self.assertEqual(['no', 'unknown unreachable', 'unknown failed',
                          'depends', 'depends'], self.column(1))
        self.assertEqual(['2', '0', '0', '2', '2'], self.column(4))
        self.assertIn(hosts.UNREACHABLE['msg'], self.column(2)[1])

    def test_findings_and_guests_have_their_rows(self):
        page = self.open()
        page.view('findings')
        self.assertEqual(
            [C, 'compute11', 'vnic', 'fa:16:3e:00:00:01 driver/@queues', '2',
             '4', 'no vnic', hosts.KINDS[0][4], hosts.REMEDY], page.rows()[0])
        page.view('guests')
        self.assertIn([A, 'instance-00000001', 'compute1',
                       'vnic config-drive'], page.rows())

    def test_details_show_checks_and_notes(self):
        page = self.open()
        page.click('td:last-child details')
        self.assertIn('Neutron was not queried.', page.texts('details p'))
        self.assertIn('compute_driver is libvirt.LibvirtDriver',
                      ''.join(page.texts('details p')))

    def test_hosts_are_listed_as_destinations(self):
        page = self.open()
        page.type('host', 'compute2')
        (row,) = page.rows()
        self.assertEqual('yes: 2 hosts\nunknown: 2 hosts', row[3])
        page.click('td:nth-child(4) details')
        self.assertEqual(['compute1, compute11'],
                         page.texts('td:nth-child(4) details p'))

    def test_guests_are_listed_with_their_destinations(self):
        self.put('compute5', facts={'guests': 0, 'needs': [],
                                    'capabilities': hosts.capabilities(
                                        emulators=[])})
        page = self.open()
        page.view('placement')
        self.assertEqual(2, page.counts()[3])
        needs = f'pc-q35-8.2, kvm, {hosts.EMULATOR}\nCPU: Skylake-Server'
        unknown = ('2 hosts\ncapabilities not known: the host did not '
                   'answer')
        emulator = f'emulator {hosts.EMULATOR}: no emulator for x86_64'
        self.assertEqual([
            ['5', '3 hosts', f'{needs}\nQEMU: 8.2.2', '3 hosts', unknown,
             f'1 host\n{emulator}'],
            ['1', '1 host', f'{needs}\nfixes: config_drive\nQEMU: 8.2.2',
             '2 hosts', unknown,
             f'1 host\nfix config_drive: not active there\n1 host\n'
             f'{emulator}']], [
                 ['\n'.join(filter(None, cell.split('\n'))) for cell in row]
                 for row in page.rows()])
        page.click('td:nth-child(2) details')
        self.assertEqual(
            ['compute1 (1), compute11 (2), compute2 (2)'],
            [', '.join(sorted(text.split(', '))) for text in page.texts(
                'td:nth-child(2) details p')])

    @ddt.data(('host', 'compute11', 1), ('host', 'compute3', 0),
              ('text', 'CONFIG_DRIVE', 1), ('text', 'did not answer', 2))
    @ddt.unpack
    def test_filters_apply_to_destinations(self, name, text, number):
        page = self.open()
        page.type(name, text)
        page.view('placement')
        self.assertEqual(number, len(page.rows()))
        self.assertEqual(number, page.counts()[3])

    @ddt.data(
        ('finding', 'vnic', (2, 3, 3)), ('finding', 'config-drive', (1, 1, 1)),
        ('covered', 'no', (1, 1, 1)), ('covered', 'yes', (1, 2, 2)),
        ('covered', 'if on the destination', (1, 1, 1)),
        ('drain', 'yes', (0, 0, 0)), ('drain', 'depends', (2, 2, 3)),
        ('drain', 'unknown', (2, 0, 0)))
    @ddt.unpack
    def test_selection_filters_the_tables(self, name, value, counts):
        self.open().choose(name, value)
        self.assertShown(*counts)

    @ddt.data(
        # a full name, and parts of several names
        ('host', 'compute1', (1, 2, 3)), ('host', 'COMPUTE', (5, 3, 4)),
        ('host', '11', (1, 1, 1)), ('host', 'none', (0, 0, 0)),
        # of a guest, of a device, of a host; case-insensitive
        ('text', B, (1, 1, 1)), ('text', 'MTU', (1, 1, 1)),
        ('text', 'no route to', (1, 0, 0)), ('text', 'neutron', (1, 1, 1)))
    @ddt.unpack
    def test_typed_text_filters_the_tables(self, name, text, counts):
        self.open().type(name, text)
        self.assertShown(*counts)

    def test_filters_combine_and_reset(self):
        page = self.open()
        page.type('host', 'compute1')
        page.choose('finding', 'vnic')
        page.type('text', 'mtu')
        self.assertShown(1, 1, 1)
        page.choose('covered', 'no')
        self.assertShown(0, 0, 0)
        self.assertEqual(['No findings.'], page.texts('#chart p'))
        page.click('#clear')
        self.assertShown(5, 3, 4)

    def test_chart_counts_guests_and_filters_on_click(self):
        page = self.open()
        self.assertEqual(['all hosts', 'compute11', 'compute1'],
                         page.titles('#chart text title'))
        self.assertEqual(
            ['all hosts, config-drive: 1 guests', 'all hosts, vnic: 3 guests',
             'compute11, vnic: 1 guests', 'compute1, config-drive: 1 guests',
             'compute1, vnic: 2 guests'], page.titles('#chart g title'))
        self.assertEqual(1, len(page.titles(
            '#chart [data-host=compute11] .r2')))
        page.click('#chart g[data-host=compute1][data-finding=vnic] text')
        self.assertShown(1, 2, 2)

    def test_long_table_is_divided_into_pages(self):
        self.put('compute5', *(hosts.finding('vnic', base.uuid(100 + number))
                               for number in range(120)))
        page = self.open()
        page.view('findings')
        self.assertEqual(['1 to 50 of 124'], page.texts('#range'))
        self.assertFalse(page.find('#previous').is_enabled())
        page.click('#next')
        page.click('#next')
        self.assertEqual(['101 to 124 of 124'], page.texts('#range'))
        self.assertEqual(24, len(page.rows()))
        self.assertFalse(page.find('#next').is_enabled())
        page.click('#previous')
        self.assertEqual(['51 to 100 of 124'], page.texts('#range'))
        page.choose('finding', 'config-drive')
        self.assertEqual(['1 to 1 of 1'], page.texts('#range'))

    def test_hostile_names_are_shown_as_text(self):
        text = test_report.HOSTILE
        self.put('compute2', hosts.finding(
            'vnic', text, domain=text, device=text, finding=text),
            notes=[text])
        page = self.open()
        page.type('host', 'compute2')
        page.view('findings')
        (guest, _host, finding, device, *_), = page.rows()
        self.assertEqual([text] * 3, [guest, finding, device])
        self.assertEqual(['nova_migfix: 5 hosts'], page.titles('head title'))
        self.assertEqual(2, len(page.texts('script')))

    @ddt.data('light', 'dark')
    def test_text_has_enough_contrast(self, scheme):
        """WCAG 2 requires a contrast of 4.5 between text and background."""
        page = self.open()
        page.emulate(scheme)
        for selector in ('body', 'footer', '.tiles dd.no', '.badge.yes',
                         '.tiles .depends', '.tiles .unknown', 'th'):
            self.assertGreaterEqual(page.contrast(selector), 4.5, selector)

    def test_controls_have_accessible_names(self):
        """Each control is an HTML element with a name."""
        page = self.open()
        self.assertEqual([], page.nameless())
        self.assertEqual('Host', page.find('#host').accessible_name)

    def test_printed_page_shows_all_rows(self):
        self.put('compute5', *(hosts.finding('vnic', base.uuid(100 + number))
                               for number in range(120)))
        page = self.open()
        page.view('findings')
        page.seconds('dispatchEvent(new Event("beforeprint"))')
        self.assertEqual(124, len(page.rows()))
        page.seconds('dispatchEvent(new Event("afterprint"))')
        self.assertEqual(50, len(page.rows()))
        self.assertTrue(page.print_pdf())
