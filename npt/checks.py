"""What a config value may be: checks of values, each with the allowed values in words.

`like` makes the check of a row of a table that only has data, as the embedded engine's: the type is
that of the default, and the row has the bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

LARGEST = 1e38  # a larger number is infinite in float32
LARGEST_WHOLE = 2**31 - 1
SHOWN = 80  # characters of a bad value that a message repeats


class Check(NamedTuple):
    """The test of a key's value, and the allowed values in words."""

    good: Callable[[Any], bool]
    allowed: str


def number(low: float = -LARGEST, high: float = LARGEST, ends: str = "[]") -> Check:
    """A finite number of an interval; True and False are not numbers.

    ends: which ends belong to it, "[]", "[)", "(]" or "()"
    """
    return _interval((int, float), "a finite number", low, high, ends)


def whole(low: int = -LARGEST_WHOLE, high: int = LARGEST_WHOLE) -> Check:
    """A whole number; True and False are not numbers."""
    return _interval((int,), "a whole number", low, high, "[]")


def _interval(kinds: tuple[type, ...], name: str, low: float, high: float, ends: str) -> Check:
    def good(value: Any) -> bool:
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if not is_number:
            return False
        above = value > low if ends[0] == "(" else value >= low
        below = value < high if ends[1] == ")" else value <= high
        return above and below  # neither is true of NaN

    first = f"above {low}" if ends[0] == "(" else f"{low} or more"
    last = f"below {high}" if ends[1] == ")" else f"at most {high}"
    return Check(good, f"{name}, {first}, {last}")


def one_of(*allowed: str) -> Check:
    words = ", ".join(allowed)
    return Check(
        lambda value: isinstance(value, str) and value in allowed,
        f"one of {words}" if len(allowed) > 1 else words,
    )


def is_text(value: Any) -> bool:
    """Whether a value is text that can be written to files and be part of a path."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of an argument that are no UTF-8
        return False
    return True


TEXT = Check(is_text, "text in UTF-8")
FLAG = Check(lambda value: isinstance(value, bool), "True or False")


def list_of(item: Check, length: int | None = None, or_one: bool = False) -> Check:
    """A list or tuple of `length` items (any number without it); with `or_one` also a bare item."""

    def good(value: Any) -> bool:
        if not isinstance(value, (list, tuple)):
            return or_one and item.good(value)
        return length in (None, len(value)) and all(map(item.good, value))

    of_length = "" if length is None else f" of {length}"
    return Check(good, f"a list{of_length}, each item {item.allowed}")


def like(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    ends: str = "[]",
    names: Sequence[str] = (),
    length: int | None = None,
    item: Any = None,
    or_one: bool = False,
    rule: tuple[Callable[[Any], bool], str] | None = None,
) -> Check:
    """The check of values of the default's type.

    low, high, ends: bounds of a number, or of the numbers in a list
    names: the allowed texts
    length: number of items of a list
    item: an item, where the default is an empty list
    or_one: whether one item may stand for a list of it
    rule: what a value must also be, and that in words
    """
    if isinstance(default, (list, tuple)):
        first = default[0] if default else item
        check = list_of(like(first, low, high, ends, names), length, or_one)
    elif isinstance(default, bool):
        check = FLAG
    elif isinstance(default, str):
        check = one_of(*names) if names else TEXT
    elif isinstance(default, int):
        check = whole(
            -LARGEST_WHOLE if low is None else int(low),
            LARGEST_WHOLE if high is None else int(high),
        )
    elif isinstance(default, float):
        check = number(-LARGEST if low is None else low, LARGEST if high is None else high, ends)
    else:
        kind = type(default)
        check = Check(lambda value: isinstance(value, kind), f"a {kind.__name__}")
    if rule is None:
        return check
    holds, words = rule
    return Check(lambda value: check.good(value) and holds(value), f"{check.allowed}, {words}")


def shown(value: Any) -> str:
    """A value for a message: shortened, and also where Python cannot write it out."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; a list within itself
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
