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
"""Count the steps of a search by a backtracking matcher.

``re`` does not count its steps, and times differ between runs. :class:`Search`
searches as ``re`` does: it tries each place of the text, each alternative and
each number of repetitions in turn.
"""

import re

try:
    from re import _parser as sre_parse
except ImportError:     # Python 3.10
    import sre_parse

_CATEGORIES = {
    'DIGIT': str.isdecimal, 'SPACE': str.isspace,
    'WORD': lambda char: char.isalnum() or char == '_'}


class Search:
    """A search that counts its steps.

    :ivar steps: the number of comparisons of the last search
    """

    def __init__(self, pattern, most=None):
        """Parse a pattern.

        :param most: upper bound of bounded repetitions, None for their own.
            They multiply the steps by a constant, which hides how the steps
            depend on the length of short texts.
        """
        self._tree = sre_parse.parse(pattern)
        self._most = most
        self._search = self._sequence(self._tree, lambda place: place)

    def __call__(self, text):
        """Return the span of the first match, None without a match."""
        self._text, self.steps = text, 0
        for place in range(len(text) + 1):
            end = self._search(place)
            if end is not None:
                return place, end
        return None

    def _sequence(self, nodes, then):
        for operation, argument in reversed(list(nodes)):
            then = getattr(self, f'_{str(operation).lower()}')(argument, then)
        return then

    # -- one character ------------------------------------------------------

    def _character(self, accepts, then):
        def match(place):
            self.steps += 1
            if place < len(self._text) and accepts(self._text[place]):
                return then(place + 1)
            return None
        return match

    def _accepts(self, operation, argument):
        """Return the test of an operation for one character, or None."""
        name = str(operation)
        if name == 'LITERAL':
            return chr(argument).__eq__
        if name == 'NOT_LITERAL':
            return chr(argument).__ne__
        if name == 'ANY':
            return '\n'.__ne__
        if name == 'RANGE':
            return lambda char: argument[0] <= ord(char) <= argument[1]
        if name == 'CATEGORY':
            kind, negated, _ = str(argument).removeprefix(
                'CATEGORY_').rpartition('NOT_')[::-1]
            return lambda char: bool(_CATEGORIES[kind](char)) != bool(negated)
        if name == 'IN':
            negated = str(argument[0][0]) == 'NEGATE'
            tests = [self._accepts(*part) for part in argument[negated:]]
            return lambda char: negated != any(test(char) for test in tests)
        return None

    def _literal(self, argument, then):
        return self._character(chr(argument).__eq__, then)

    def _not_literal(self, argument, then):
        return self._character(chr(argument).__ne__, then)

    def _any(self, argument, then):
        return self._character('\n'.__ne__, then)

    def _in(self, argument, then):
        return self._character(self._accepts('IN', argument), then)

    # -- several ways -------------------------------------------------------

    def _branch(self, argument, then):
        ways = [self._sequence(way, then) for way in argument[1]]
        return lambda place: self._first(way(place) for way in ways)

    def _first(self, ends):
        return next((end for end in ends if end is not None), None)

    def _subpattern(self, argument, then):
        return self._sequence(argument[-1], then)

    def _max_repeat(self, argument, then, is_greedy=True):
        least, most, (*item,) = argument
        if self._most is not None and most != sre_parse.MAXREPEAT:
            most = max(least, min(most, self._most))
        accepts = self._accepts(*item[0]) if len(item) == 1 else None
        if accepts is None:
            return self._groups(item, least, most, then, is_greedy)

        def match(place):
            number = 0
            while (number < most and place + number < len(self._text)
                   and accepts(self._text[place + number])):
                self.steps += 1
                number += 1
            numbers = range(least, number + 1)
            return self._first(
                then(place + number) for number in (
                    reversed(numbers) if is_greedy else numbers))
        return match

    def _groups(self, item, least, most, then, is_greedy):
        def match(place, number=0):
            def again():
                if number < most:
                    yield self._sequence(item, lambda end: (
                        match(end, number + 1) if end > place else None))(
                            place)

            def leave():
                if number >= least:
                    yield then(place)
            ways = (again, leave) if is_greedy else (leave, again)
            return self._first(end for way in ways for end in way())
        return match

    def _min_repeat(self, argument, then):
        return self._max_repeat(argument, then, is_greedy=False)

    # -- places -------------------------------------------------------------

    def _at(self, argument, then):
        name = str(argument)
        holds = {
            'AT_BEGINNING': lambda place: place == 0,
            'AT_BEGINNING_STRING': lambda place: place == 0,
            'AT_BOUNDARY': lambda place: bool(
                re.compile(r'\b').match(self._text, place)),
            'AT_END': lambda place: self._text[place:] in ('', '\n'),
        }[name]
        return lambda place: then(place) if holds(place) else None

    def _assert(self, argument, then, is_wanted=True):
        direction, item = argument
        look = self._sequence(item, lambda place: place)

        def match(place):
            start = place if direction > 0 else place - item.getwidth()[0]
            found = start >= 0 and look(start) is not None
            return then(place) if found == is_wanted else None
        return match

    def _assert_not(self, argument, then):
        return self._assert(argument, then, is_wanted=False)
