"""The check of options and arguments: each declares its type and range, and `check` compares a value with them.

    steps: PositiveInt = 128                                     an integer, at least 1
    threshold: Annotated[float, Range(above=0, at_most=1)]       a number; a number is always finite
    loss_weights: Annotated[list[float], NOT_EMPTY] | None       None, or a list whose elements are checked too

A dataclass calls `check_fields(self)` in its `__post_init__`, a function `check("n", n, PositiveInt)`. True and False
are no integers, text is no number, and a path may be given where text is declared. Importing this module does not
import torch, so that options can be declared without it.
"""

import json
import math
import os
import re
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from inspect import get_annotations
from numbers import Integral, Real
from typing import Annotated, Any, Union, get_args, get_origin


@dataclass(frozen=True)
class Range:
    """The numbers between two ends: `at_least` or `above` is the lower one, `at_most` or `below` the upper one."""

    at_least: float = -math.inf
    at_most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def allows(self, value: Any) -> bool:
        low = value >= self.at_least if self.above == -math.inf else value > self.above
        return low and (value <= self.at_most if self.below == math.inf else value < self.below)

    def __str__(self) -> str:
        if -math.inf < self.at_least and self.at_most < math.inf:
            return f"between {self.at_least} and {self.at_most}"
        if self.above == 0 and not self.bounded:
            return "positive"
        ends = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{words} {end}" for words, end in ends.items() if math.isfinite(end))

    @property
    def bounded(self) -> bool:
        """Whether there is an upper end."""
        return min(self.at_most, self.below) < math.inf


@dataclass(frozen=True)
class OneOf:
    """The values of a collection, such as the names that are known."""

    choices: Collection

    def allows(self, value: Any) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return f"one of {self.choices}"


@dataclass(frozen=True)
class Matches:
    """The texts that a regular expression matches as a whole, which `words` describe."""

    pattern: str
    words: str

    def allows(self, value: Any) -> bool:
        return re.fullmatch(self.pattern, str(value)) is not None

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class StepsOrShare:
    """Whole numbers of steps, and numbers below 1, which are shares of a run's steps."""

    def allows(self, value: Any) -> bool:
        return 0 <= value < 1 or (value > 0 and value == int(value))

    def __str__(self) -> str:
        return "a whole number of steps, or a share of all that is below 1"


@dataclass(frozen=True)
class NotEmpty:
    """The texts and lists that hold something."""

    def allows(self, value: Any) -> bool:
        return len(str(value) if isinstance(value, os.PathLike) else value) > 0

    def __str__(self) -> str:
        return "not empty"


NOT_EMPTY = NotEmpty()
PositiveInt = Annotated[int, Range(at_least=1)]
NonNegativeInt = Annotated[int, Range(at_least=0)]
Steps = Annotated[float, StepsOrShare()]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(at_least=0)]
EosTail = Annotated[str, Matches("batch|[0-9]+", "a number of tokens or 'batch'")]  # of `llada.data.collator`
Share = Annotated[float, Range(at_least=0, at_most=1)]

# What each type is called, and which values are of it. numpy's numbers are of the kinds of `numbers`.
KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    int: ("an integer", lambda value: isinstance(value, Integral) and not isinstance(value, bool)),
    float: ("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool)),
    bool: ("True or False", lambda value: isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str | os.PathLike)),
    list: ("a list", lambda value: isinstance(value, list | tuple)),
    tuple: ("a list", lambda value: isinstance(value, list | tuple)),
    dict: ("a mapping", lambda value: isinstance(value, Mapping)),
    types.NoneType: ("None", lambda value: value is None),
}


@dataclass(frozen=True)
class Kind:
    """One type that a value may have: its rules, and the declared type of its elements if it is a list."""

    type: type
    rules: tuple[Any, ...] = ()
    element: Any = None

    @property
    def is_of(self) -> Callable[[Any], bool]:
        return KINDS[self.type][1]

    def __str__(self) -> str:
        return ", ".join([KINDS[self.type][0], *(str(rule) for rule in self.rules)])


def kinds_of(declared: Any, rules: tuple = ()) -> list[Kind]:
    """The types that a declared type allows, such as int and None for `int | None`; none for `Any`."""
    origin = get_origin(declared)
    if origin is Annotated:
        return kinds_of(declared.__origin__, declared.__metadata__ + rules)
    if origin in (Union, types.UnionType):
        return [kind for alternative in get_args(declared) for kind in kinds_of(alternative, rules)]
    if declared is Any:
        return []
    element = get_args(declared)[0] if origin in (list, tuple) else None
    return [Kind(origin or declared, rules, element)]


def check(name: str, value: Any, declared: Any) -> None:
    """Compare a value with its declared type and range.

    Args:
        name: how a message calls the value. declared: a type such as those above.

    Raises:
        ValueError: the value is of another type, out of range, nan or infinite, empty or an unknown choice; the message
            names it and says what is allowed.
    """
    kinds = kinds_of(declared)
    kind = next((kind for kind in kinds if kind.is_of(value)), None)
    if kind is None:
        if kinds:
            raise ValueError(f"{name}={value!r} must be {' or '.join(map(str, kinds))}")
        return
    if kind.type is float:
        words = [str(rule) for rule in kind.rules]
        words += ["finite"] if all(isinstance(rule, Range) and not rule.bounded for rule in kind.rules) else []
        if not is_finite(value) or not all(rule.allows(value) for rule in kind.rules):
            raise ValueError(f"{name}={value!r} must be {' and '.join(words)}")
        return
    for rule in kind.rules:
        if not rule.allows(value):
            if value == "":  # what an option without a default holds
                raise ValueError(f"{name} is missing: it must be {kind}")
            unknown = "is unknown: it " if isinstance(rule, OneOf) else ""
            raise ValueError(f"{name}={value!r} {unknown}must be {kind if rule is NOT_EMPTY else rule}")
    for index, element in enumerate(value if kind.element is not None else ()):
        check(f"{name}[{index}]", element, kind.element)


def is_finite(value: Any) -> bool:
    """Whether a number is one that a float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def own_fields(owner: type, base: type | None = None) -> dict[str, Any]:
    """The declared types of a dataclass's fields, without those of a base class.

    They are read from the classes, because transformers' parser removes the ranges from the fields.
    """
    known = {field.name for field in fields(base)} if base is not None else set()
    declared = {name: kind for each in reversed(owner.__mro__) for name, kind in get_annotations(each).items()}
    return {field.name: declared[field.name] for field in fields(owner) if field.name not in known}


def check_fields(owner: Any, declared: Mapping[str, Any] | None = None, prefix: str = "") -> None:
    """Check the fields of a dataclass.

    Args:
        declared: the fields to check and their types; default: all, as they are declared. prefix: what a message puts
            before the name of a field.

    Raises:
        ValueError: see `check`; the first field that fails.
    """
    for name, kind in (own_fields(type(owner)) if declared is None else declared).items():
        check(f"{prefix}{name}", getattr(owner, name), kind)


def as_mapping(name: str, value: Any) -> dict[str, Any]:
    """A mapping that is given as such or as JSON, as on a command line; None is an empty one.

    Raises:
        ValueError: it is neither, or the JSON cannot be read.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else {} if value is None else value
    except ValueError as error:
        raise ValueError(f"{name}={value!r} is no JSON: {error}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{name}={value!r} must be a mapping, or one as JSON")
    return dict(found)
