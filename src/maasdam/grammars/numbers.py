"""Numbers between two bounds, as texts. Knows digits.

between(Decimal("0.5"), Decimal("12"), …) -> 0.5 to 0.99…, 1 to 11 with any fraction, 12 with zeros
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from maasdam.grammars.nodes import EMPTY, Chars, Either, Node, Repeated, Word, either, refused, row

DIGITS = 15
"""Of a whole number that has no bound: so many a double holds exactly."""
FRACTION = 6
"""Digits behind the point, unless a bound has more."""
LONGEST = 40
"""Digits of a bound."""


def digits(low: int = 0, high: int = 9) -> Chars:
    """One digit of these."""
    return Chars(((48 + low, 48 + high),))


_ANY_FRACTION = row(Word("."), Repeated(digits(), 1, DIGITS))
_FREE = either((Word("0"), row(digits(1), Repeated(digits(), 0, DIGITS - 1))))
INTEGER = either((Word("0"), row(Repeated(Word("-"), 0, 1), digits(1), Repeated(digits(), 0, DIGITS - 1))))
NUMBER = either(
    (
        row(Repeated(Word("-"), 0, 1), _FREE, _ANY_FRACTION),
        INTEGER,
    )
)


def integers(low: int | None, high: int | None) -> Node:
    """Whole numbers from `low` to `high`; None is no bound. Either() where there are none."""
    if low is None and high is None:
        return INTEGER
    if low is None:
        assert high is not None
        low = min(-(10**DIGITS) + 1, high - 1) if high > -(10**DIGITS) else high * 10
    if high is None:
        high = max(10**DIGITS - 1, low + 1) if low < 10**DIGITS else low * 10
    options: list[Node] = []
    if low < 0:
        options += [row(Word("-"), each) for each in _naturals(max(1, -high), -low)]
    if high >= 0:
        options += _naturals(max(low, 0), high)
    return either(options)


def _naturals(low: int, high: int) -> list[Node]:
    """Whole numbers from `low` to `high`, 0 at least, by how many digits they have."""
    if low > high:
        return []
    options = []
    for width in range(len(str(low)), len(str(high)) + 1):
        least, most = max(low, 10 ** (width - 1) if width > 1 else 0), min(high, 10**width - 1)
        options.append(_same_width(str(least), str(most)))
    return options


def _same_width(low: str, high: str) -> Node:
    if not low:
        return EMPTY
    a, b, rest = int(low[0]), int(high[0]), len(low) - 1
    if low == "0" * len(low) and high == "9" * len(high):
        return Repeated(digits(), len(low), len(low))
    if a == b:
        return row(Word(low[0]), _same_width(low[1:], high[1:]))
    options: list[Node] = []
    if low[1:].strip("0"):
        options.append(row(Word(low[0]), _same_width(low[1:], "9" * rest)))
        a += 1
    last: list[Node] = []
    if high[1:].strip("9"):
        last.append(row(Word(high[0]), _same_width("0" * rest, high[1:])))
        b -= 1
    if a <= b:
        options.append(row(digits(a, b), Repeated(digits(), rest, rest) if rest else EMPTY))
    return either((*options, *last))


def between(low: Decimal | None, high: Decimal | None, *, above: bool, below: bool) -> Node:
    """Numbers from `low` to `high`, without them where `above` and `below` say so; None is no bound."""
    for bound in (low, high):
        if bound is not None and (not bound.is_finite() or abs(bound.adjusted()) + len(bound.as_tuple().digits) > LONGEST):
            raise refused(f"the bound {bound} has too many digits; at most {LONGEST}")
    for bound, is_out in ((low, above), (high, below)):
        if bound is not None and is_out and _width(bound) + len(_behind(bound)) + 2 > DIGITS:
            raise refused(f"the exclusive bound {bound} has too many digits: what is next to it is the same double")
    if low is None and high is None:
        return NUMBER
    if low is None:
        assert high is not None
        low, above = min(Decimal(-(10**DIGITS)), high * 2 - 1), True
    if high is None:
        high, below = max(Decimal(10**DIGITS), low * 2 + 1), True
    if low > high or (low == high and (above or below)):
        return either(())
    options: list[Node] = []
    if low < 0:
        least = Decimal(0) if high >= 0 else -high
        options.append(row(Word("-"), _positive(least, -low, above=below if high < 0 else True, below=above)))
    if high > 0 or (high == 0 and not below and (low < 0 or not above)):
        least = max(low, Decimal(0))
        options.append(_positive(least, high, above=above and low >= 0, below=below))
    return either(options)


def _positive(low: Decimal, high: Decimal, *, above: bool, below: bool) -> Node:
    """Numbers from `low` to `high`, 0 at least."""
    floor_low, floor_high = int(low.to_integral_value(ROUND_FLOOR)), int(high.to_integral_value(ROUND_FLOOR))
    ceiling = int(low.to_integral_value(ROUND_CEILING)) + (1 if above and low == floor_low else 0)
    behind_low, behind_high = _behind(low), _behind(high)
    places = max(min(FRACTION, DIGITS - _width(high)), len(behind_low) + 2, len(behind_high) + 2)
    free = row(Word("."), Repeated(digits(), 1, places))
    options: list[Node] = []
    if floor_low == floor_high:
        options.append(_fraction(floor_low, behind_low, behind_high, places, above, below))
        return either(options)
    if floor_low < ceiling:  # the first whole number is below the bound
        options.append(_fraction(floor_low, behind_low, None, places, above, below))
    if whole := _naturals(ceiling, floor_high - 1):
        options.append(row(either(whole), Repeated(free, 0, 1)))
    options.append(_fraction(floor_high, "", behind_high, places, False, below))
    return either(options)


def _width(number: Decimal) -> int:
    """Digits before the point."""
    return max(number.adjusted(), 0) + 1


def _behind(number: Decimal) -> str:
    """Its digits behind the point, without zeros at the end."""
    return f"{number:f}".partition(".")[2].rstrip("0")


def _fraction(whole: int, low: str, high: str | None, places: int, above: bool, below: bool) -> Node:
    """`whole` with what may stand behind its point, from `low` to `high`; "" is nothing there, None no bound."""
    options: list[Node] = []
    least_is_whole = low == "" and not above
    most_allows_whole = high is None or high != "" or not below
    if least_is_whole and most_allows_whole:
        options.append(EMPTY)
    some = _behind_point(low, high, places, above, below, is_first=True)
    if some.options:
        options.append(row(Word("."), some))
    return row(Word(str(whole)), either(options)) if options else Either(())


def _behind_point(low: str, high: str | None, left: int, above: bool, below: bool, is_first: bool = False) -> Either:
    """Digits that as a fraction are from `low` to `high`. At most `left`; the first must be there."""
    options: list[Node] = []
    may_end = (low == "" and not above) and (high is None or high != "" or not below)
    if may_end and not is_first:
        options.append(EMPTY)
    if left == 0:
        return Either(tuple(options))
    if low == "" and not above and high is None:
        return Either((Repeated(digits(), 1 if is_first else 0, left),))
    if low == "" and above and high is None:
        zeros = Repeated(Word("0"), 0, left - 1) if left > 1 else EMPTY
        return Either((*options, row(zeros, digits(1), Repeated(digits(), 0, left))))
    if low == "" and not above and high == "" and not below:
        return Either((Repeated(Word("0"), 1 if is_first else 0, left),))
    if low == "" and high == "":
        return Either(())
    a = int(low[0]) if low else 0
    b = 9 if high is None else int(high[0]) if high else 0
    if a == b and high is not None:
        rest = _behind_point(low[1:], high[1:], left - 1, above, below)
        return Either((*options, row(digits(a, a), rest))) if rest.options else Either(tuple(options))
    if low or above:
        rest = _behind_point(low[1:], None, left - 1, above, below)
        if rest.options:
            options.append(row(digits(a, a), rest))
        a += 1
    if high is not None:
        rest = _behind_point("", high[1:], left - 1, False, below)
        if rest.options:
            options.append(row(digits(b, b), rest))
        b -= 1
    if a <= b:
        options.append(row(digits(a, b), Repeated(digits(), 0, left - 1) if left > 1 else EMPTY))
    return Either(tuple(options))
