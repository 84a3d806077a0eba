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

"""The report in Chromium, operated as by a reader."""

import json
import pathlib
import shutil
import time

import fixtures
from selenium import webdriver
from selenium.webdriver.chrome import service
from selenium.webdriver.common import by

CHROMIUM, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')

_OPTIONS = ('--headless', '--no-sandbox', '--disable-gpu', '--disable-quic',
            '--no-first-run', '--disable-background-networking',
            '--disable-component-update', '--disable-sync')

_CONTRAST = '''
const channels = (color) => color.match(/[\\d.]+/g).map(Number);
const luminance = (color) => {
  const [red, green, blue] = channels(color).map((value) => {
    value /= 255;
    return value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  });
  return .2126 * red + .7152 * green + .0722 * blue;
};
let element = document.querySelector(arguments[0]);
const text = luminance(getComputedStyle(element).color);
while (channels(getComputedStyle(element).backgroundColor)[3] === 0) {
  element = element.parentElement;
}
const behind = luminance(getComputedStyle(element).backgroundColor);
return (Math.max(text, behind) + .05) / (Math.min(text, behind) + .05);
'''


class Browser(fixtures.Fixture):
    """A Chromium that records its network requests."""

    def __init__(self, size='1280,1100'):
        self._size = size

    def _setUp(self):
        profile = self.useFixture(fixtures.TempDir()).path
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (*_OPTIONS, f'--window-size={self._size}',
                         f'--user-data-dir={profile}'):
            options.add_argument(argument)
        options.set_capability('goog:loggingPrefs', {
            'performance': 'ALL', 'browser': 'ALL'})
        self._driver = webdriver.Chrome(options, service.Service(DRIVER))
        self.addCleanup(self._driver.quit)
        # without the start page
        self._driver.get('about:blank')
        self.requested()

    def open(self, path):
        """Open a page; return the seconds until its script is done."""
        begin = time.monotonic()
        self._driver.get(pathlib.Path(path).resolve().as_uri())
        return time.monotonic() - begin

    def emulate(self, scheme):
        """Set the light or dark color scheme."""
        self._driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {
            'features': [{'name': 'prefers-color-scheme', 'value': scheme}]})

    def save_screenshot(self, path):
        self._driver.save_screenshot(str(path))

    def print_pdf(self):
        """Return the printed page as a PDF in base64."""
        return self._driver.print_page()

    # Console and network.

    @property
    def console(self):
        return [entry['message']
                for entry in self._driver.get_log('browser')]

    def requested(self):
        """Return the URLs that were requested since the last call."""
        events = [json.loads(entry['message'])['message']
                  for entry in self._driver.get_log('performance')]
        return [event['params']['request']['url'] for event in events
                if event['method'] == 'Network.requestWillBeSent']

    # Actions of a reader.

    def find(self, selector):
        return self._driver.find_element(by.By.CSS_SELECTOR, selector)

    def texts(self, selector):
        """Return the visible text of each element, by one request."""
        return self._driver.execute_script(
            'return [...document.querySelectorAll(arguments[0])]'
            '.map(found => found.innerText.trim())', selector)

    def titles(self, selector):
        """Return the text of elements that are not visible."""
        return self._driver.execute_script(
            'return [...document.querySelectorAll(arguments[0])]'
            '.map(found => found.textContent)', selector)

    def contrast(self, selector):
        """Return the contrast of an element's text as defined by WCAG 2."""
        return self._driver.execute_script(_CONTRAST, selector)

    def nameless(self):
        """Return the controls that have no accessible name."""
        return [found.get_attribute('outerHTML') for found
                in self._driver.find_elements(
                    by.By.CSS_SELECTOR, 'input, select, button, summary')
                if not found.accessible_name]

    def choose(self, name, value):
        """Select an option of a list by typing its first characters."""
        self.find(f'#{name}').send_keys(self.find(
            f'#{name} option[value="{value}"]').text)

    def type(self, name, text):
        field = self.find(f'#{name}')
        field.clear()
        field.send_keys(text)

    def view(self, name):
        self.find(f'input[value={name}]').click()

    def click(self, selector):
        self.find(selector).click()

    def rows(self):
        """Return the cells of the table, by row."""
        return self._driver.execute_script(
            'return [...document.querySelectorAll("#table tbody tr")].map('
            'row => [...row.cells].map(cell => cell.innerText.trim()))')

    def counts(self):
        return tuple(int(text.replace(',', '')) for text in self.texts(
            'output'))

    def seconds(self, script):
        """Return the seconds of a script and of the layout of its changes."""
        return self._driver.execute_script(
            'const begin = performance.now();'
            f'{script}; document.body.offsetHeight;'
            'return (performance.now() - begin) / 1000')
