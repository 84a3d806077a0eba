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

"""Compare predictions with the GnuTLS of this machine."""

import os

from hypothesis import example
from hypothesis import given
from hypothesis import HealthCheck
from hypothesis import settings
from hypothesis import strategies as st
import testtools

from nova_migfix.tests import policies
from nova_migfix.tests import real_gnutls
from nova_migfix.tls import effect
from nova_migfix.tls import ini
from nova_migfix.tls import lint
from nova_migfix.tls import policy
from nova_migfix.tls import priority
from nova_migfix.tls import probe

# The same in each run, unless there are more than usual.
_USUAL_EXAMPLES = 200
_EXAMPLES = int(os.environ.get('NOVA_MIGFIX_EXAMPLES', _USUAL_EXAMPLES))
_SETTINGS = settings(
    max_examples=_EXAMPLES, derandomize=_EXAMPLES == _USUAL_EXAMPLES,
    deadline=None, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])



def _joined(*parts):
    return st.tuples(*(
        st.just(part) if isinstance(part, bytes) else part
        for part in parts)).map(b''.join)


def _seldom(often, seldom):
    return st.integers(0, 9).flatmap(
        lambda number: seldom if number == 9 else often)


def _any(*names):
    """Return one of some names, seldom in upper case or with a mistake."""
    return _seldom(st.sampled_from(names), st.sampled_from(
        [odd for name in names for odd in (name.upper(), name[:-1])]))


_NOTHING = st.just(b'')
_ODD = st.sampled_from((
    b' ', b'\t', b'\f', b'\v', b'\r', b'\0', b'\xa0', b'\xff', b'\xc3\xa9',
    '\u2028'.encode(), b'\xef\xbb\xbf', b';', b'#', b'"', b',', b'=', b':',
    b'[', b']'))
_REMARK = st.sampled_from((b' # x', b' ; x', b'#x', b';x', b' x', b'\t#'))
_END = st.one_of(_NOTHING, _NOTHING, _REMARK, _ODD)
_LENGTH = st.sampled_from((150, 198, 199, 200, 300, 2046, 2047, 2048, 4100))

_VERSION = st.one_of(_any(b'tls1.2', b'tls1.3'), _any(
    *(name.encode() for name in priority.VERSIONS)))
_CIPHER = st.one_of(
    _any(*(name.lower().encode() for name in policy.AES)), _any(
        b'chacha20-poly1305', b'aes-128-cbc', b'aes-256-cbc',
        b'aes-128-ccm-8', b'camellia-128-gcm'))
_COLON = _seldom(st.just(b':'), st.sampled_from((b': ', b' :')))
_PART = _joined(_COLON, _seldom(
    _joined(st.sampled_from((b'-', b'!', b'+')), st.one_of(
        _joined(b'vers-', _VERSION), _CIPHER, _any(
            b'vers-tls-all', b'vers-all', b'vers-dtls-all', b'cipher-all',
            b'normal', b'sha1', b'ecdhe-rsa'))),
    st.sampled_from((b'NONE', b'NORMAL', b'SECURE192', b'%COMPAT', b''))))
_STRING = _joined(
    _seldom(st.just(b'NORMAL'), _any(b'normal', b'none', b'pfs', b'@SYSTEM')),
    _seldom(st.just(b':-vers-tls1.3'), _NOTHING),
    st.lists(_PART, max_size=3).map(b''.join))
_KEYS = {
    b'disabled-version': _VERSION, b'enabled-version': _VERSION,
    b'tls-disabled-cipher': _CIPHER, b'tls-enabled-cipher': _CIPHER,
    b'insecure-hash': _any(b'md5', b'sha1', b'sha256', b'sha384'),
    b'insecure-sig': _any(b'rsa-md5', b'ecdsa-sha256', b'dsa-sha1'),
    b'tls-disabled-mac': _any(b'sha1', b'aead', b'md5'),
    b'tls-disabled-kx': _any(b'rsa', b'ecdhe-ecdsa', b'dhe-rsa'),
    b'tls-disabled-group': _any(b'ffdhe2048', b'x25519', b'secp256r1'),
    b'disabled-curve': _any(b'secp521r1', b'secp256r1', b'x448'),
    b'min-verification-profile': _any(b'medium', b'ultra'),
    b'tls-session-hash': _any(b'require', b'request'),
    b'default-priority-string': _STRING, b'url': _ODD,
}


def _setting(key, value):
    return _joined(_any(key), _seldom(st.just(b' '), _ODD), st.sampled_from(
        (b'= ', b'=', b': ')), value, _END)


_LINE = st.one_of(
    _setting(b'disabled-version', _VERSION),
    _setting(b'tls-disabled-cipher', _CIPHER),
    _setting(b'QEMU', _STRING), _setting(b'SYSTEM', _STRING),
    st.one_of(*(_setting(*item) for item in _KEYS.items())),
    _joined(b'[', _any(b'overrides', b'priorities', b'global', b'provider'),
            _seldom(_NOTHING, _ODD), b']', _END),
    st.just(b'[global]\noverride-mode = allowlist\n[overrides]'),
    _joined(st.sampled_from((b'#', b';')), _ODD, _ODD),
    _joined(_seldom(st.just(b'#'), st.just(b'a')), _LENGTH.map(
        lambda length: b'x' * (length - 1)), b' = y'),
    _ODD)
_INDENTED = _joined(
    st.one_of(_NOTHING, _NOTHING, st.sampled_from((b' ', b'\t', b'\f'))),
    _LINE, _seldom(_NOTHING, st.just(b'\r')))
_POLICIES = [policies.path(name).read_bytes().splitlines() for name in (
    'disabled-version', 'disabled-ciphers', 'both', 'merged', 'priorities',
    'crypto-policies', 'none')]


def _inserted(lines, insertions):
    """Insert lines, each before a line of this number."""
    lines = [*lines]
    for number, line in insertions:
        lines.insert(number % (len(lines) + 1), line)
    return b'\n'.join(lines)


_FILE = _joined(_seldom(_NOTHING, st.just(b'\xef\xbb\xbf')), st.builds(
    _inserted, st.sampled_from(_POLICIES),
    st.lists(st.tuples(st.integers(0, 30), _INDENTED), min_size=1, max_size=4)
)).map(lambda content: content.decode('utf-8', 'surrogateescape'))


class PredictionTestCase(testtools.TestCase):
    """Lint and generate predict the session that GnuTLS negotiates."""

    def setUp(self):
        super().setUp()
        if not real_gnutls.is_present():
            self.skipTest('no GnuTLS')
        self.real = self.useFixture(real_gnutls.RealGnutls())

    def negotiated(self, text, builtin):
        answer = self.real.negotiate(ini.encode(text), builtin)
        return effect.Effect(probe.Answer(**answer).verdict)

    @_SETTINGS
    @given(_FILE, st.sampled_from((priority.NORMAL, priority.SYSTEM)))
    @example('[overrides]\ndisabled-version = tls1.2\n', priority.NORMAL)
    @example('[priorities]\nQEMU = NORMAL:!VERS-TLS1.3\n', priority.SYSTEM)
    @example('[priorities]\nQEMU = NORMAL:-VERS-TLS1.3 # x\n', priority.SYSTEM)
    @example('[priorities]\nQEMU = NONE:+VERS-TLS1.2:+AES-128-GCM\n',
             priority.SYSTEM)
    @example(policies.path('crypto-policies').read_text()
             + '[overrides]\ndisabled-version = tls1.3\n', priority.SYSTEM)
    def test_lint_says_what_is_negotiated(self, text, builtin):
        found = self.negotiated(text, builtin)
        predicted = effect.predict(text, builtin)
        if predicted.effect is not effect.Effect.UNKNOWN:
            self.assertIs(found, predicted.effect)
        severities = {finding.severity for finding in lint.lint(text, builtin)}
        if not severities:
            self.assertIs(effect.Effect.SAFE, found)
        if lint.Severity.FAILURE in severities:
            self.assertIsNot(effect.Effect.SAFE, found)

    @_SETTINGS
    @given(_FILE, st.sampled_from(['debian', 'rhel']),
           st.sampled_from(sorted(policy.PRIORITIES)))
    def test_merged_policy_prevents_rekeys(self, text, family, mode):
        family = policy.FAMILIES[family]
        try:
            merged = policy.merge(family, mode, text)
        except policy.PolicyError:
            return
        predicted = effect.predict(merged, family.builtin).effect
        self.assertIn(predicted, (effect.Effect.SAFE, effect.Effect.UNKNOWN))
        if predicted is effect.Effect.SAFE:
            self.assertIs(effect.Effect.SAFE,
                          self.negotiated(merged, family.builtin))
        self.assertEqual(merged, policy.merge(family, mode, merged))
