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


def _any(*names):
    """Return the names, some of them with another case or a mistake."""
    return st.one_of(
        st.sampled_from(names), st.sampled_from(names),
        st.sampled_from([name.upper() for name in names]),
        st.sampled_from([name[:-1] for name in names]))


def _seldom(often, seldom):
    return st.integers(0, 9).flatmap(
        lambda number: often if number else seldom)


_ODD = st.sampled_from((
    b' ', b'\t', b'\f', b'\v', b'\r', b'\0', b'\xa0', b'\xff', b'\xc3\xa9',
    '\u2028'.encode(), b'\xef\xbb\xbf', b' ;', b' #', b';', b'#', b'"', b',',
    b'=', b':', b'[', b']', b' ' * 60, b'x' * 2050))
_BLANK = _seldom(st.sampled_from((b' ', b'')), _ODD)
_SECTION = _seldom(st.just(b'overrides'), _any(b'global', b'priorities',
                                               b'provider', b'overrides'))
_HEADING = _joined(b'[', _SECTION, _seldom(st.just(b''), _ODD), b']',
                   _seldom(st.just(b''), _ODD))
_VERSION = _any(*(name.encode() for name in priority.VERSIONS))
_CIPHER = _any(*(name.lower().encode() for name in policy.AES),
               b'chacha20-poly1305', b'aes-128-cbc', b'aes-256-cbc',
               b'aes-128-ccm-8', b'camellia-128-gcm')
_PART = _seldom(_joined(st.sampled_from((b'-', b'!', b'+')), st.one_of(
    _joined(_any(b'vers-'), _VERSION), _CIPHER, _any(
        b'vers-tls-all', b'vers-all', b'vers-dtls-all', b'cipher-all',
        b'normal', b'sha1', b'none', b'ecdhe-rsa'))), st.sampled_from(
            (b'NONE', b'NORMAL', b'SECURE192', b'%COMPAT', b'@SYSTEM', b'')))
_STRING = _joined(
    _seldom(st.just(b'NORMAL'), _any(b'normal', b'none', b'pfs', b'@SYSTEM')),
    st.lists(_joined(st.sampled_from((b':', b': ', b' :')), _PART), max_size=6)
    .map(b''.join))
_KEYS = {
    **{key.encode(): _VERSION
       for key in ('disabled-version', 'enabled-version')},
    **{key.encode(): _CIPHER
       for key in ('tls-disabled-cipher', 'tls-enabled-cipher')},
    b'override-mode': _any(b'allowlist', b'blocklist'),
    b'insecure-hash': _any(b'md5', b'sha1', b'sha256', b'sha384'),
    b'insecure-sig': _any(b'rsa-md5', b'ecdsa-sha256', b'dsa-sha1'),
    b'tls-disabled-mac': _any(b'sha1', b'aead', b'md5'),
    b'tls-disabled-kx': _any(b'rsa', b'ecdhe-ecdsa', b'dhe-rsa'),
    b'tls-disabled-group': _any(b'ffdhe2048', b'x25519', b'secp256r1'),
    b'disabled-curve': _any(b'secp521r1', b'secp256r1', b'x448'),
    b'min-verification-profile': _any(b'medium', b'ultra'),
    b'tls-session-hash': _any(b'require', b'request'),
    b'default-priority-string': _STRING,
    b'QEMU': _STRING, b'SYSTEM': _STRING, b'url': _ODD,
}
_SETTING = st.one_of(*(
    _joined(_any(key), _BLANK, st.sampled_from((b'=', b':')), _BLANK, value,
            _seldom(st.just(b''), _ODD))
    for key, value in _KEYS.items()))
_USUAL = st.one_of(
    _joined(st.sampled_from((b'tls-disabled-cipher = ',)), _CIPHER),
    _joined(b'disabled-version = ', _VERSION),
    _joined(st.sampled_from((b'QEMU = ', b'SYSTEM = ')), _STRING))
_REMARK = _joined(st.sampled_from((b'#', b';')), _ODD, _ODD)
_POLICIES = [policies.path(name).read_bytes()
             for name in {**policies.EXPECTED, **policies.EXPECTED_OF_SYSTEM}]
_LINE = _joined(
    _seldom(st.just(b''), st.sampled_from((b' ', b'\t', b'\f'))),
    st.one_of(_SETTING, _USUAL, _USUAL, _HEADING, _REMARK, st.just(b''),
              _seldom(st.just(b''), _ODD)),
    _seldom(st.just(b'\n'), st.sampled_from((b'\r\n', b'\r', b'\n\n'))))
_LINES = st.lists(_LINE, max_size=8).map(b''.join)
_FILE = _joined(
    _seldom(st.just(b''), st.just(b'\xef\xbb\xbf')), st.one_of(
        _joined(st.sampled_from((b'[overrides]\n', b'[priorities]\n')),
                _LINES),
        _joined(st.sampled_from(_POLICIES), _LINES),
        _joined(_LINES, st.sampled_from(_POLICIES)),
        _joined(_LINES, b'[priorities]\n', _LINES))).map(
            lambda content: content.decode('utf-8', 'surrogateescape'))


class PredictionTestCase(testtools.TestCase):
    """What lint and generate say of a file is what GnuTLS does with it."""

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
