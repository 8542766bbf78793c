"""Values as they cross between a program and its tests: plain data by value and by exact type, never code, never an object's own rules.

A number that claims to equal everything arrives as the number it is; a generator arrives as its elements; what is no data arrives as
something that equals nothing but itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

MOST_ELEMENTS = 1_000_000  # of a generator, which may have no end
SMALL_BITS = 64  # larger numbers are written in hexadecimal: Python reads no decimal number of more than 4300 digits


class NoData:
    """What a program gave that is no data: equal to nothing but itself."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind}, which is no data>"


def packed(value: Any) -> Any:
    """The value as JSON, itself or [kind, content].

    A subclass goes as what it is made of: a Counter as a dict, a named tuple as a tuple. TypeError if it is no data, RecursionError if
    it is nested too deep, ValueError if it has no end.
    """
    kind = type(value)
    if value is None or kind in (bool, str, float) or (kind is int and value.bit_length() <= SMALL_BITS):
        return value
    for base, content in _PACK.items():
        if isinstance(value, base):
            return [base.__name__, content(value)]
    if (kind.__module__, kind.__name__) in (("decimal", "Decimal"), ("fractions", "Fraction")):
        return [kind.__name__, str(value)]
    if isinstance(value, Iterable):
        return ["elements", _members(_ending(value))]
    raise TypeError(f"a {kind.__name__} is no data")


def unpacked(data: Any) -> Any:
    """The value that was packed; ValueError, TypeError, LookupError or ArithmeticError if no value is packed like this."""
    if data is None or isinstance(data, bool | str | float | int):
        return data
    kind, content = data
    return _UNPACK[kind](content)


def _members(value: Iterable[Any]) -> list[Any]:
    return [packed(member) for member in value]


def _ending(value: Iterable[Any]) -> list[Any]:
    elements = list(islice(value, MOST_ELEMENTS + 1))
    if len(elements) > MOST_ELEMENTS:
        raise ValueError(f"the result has more than {MOST_ELEMENTS} elements")
    return elements


def _decimal(text: str) -> Any:
    from decimal import Decimal

    return Decimal(text)


def _fraction(text: str) -> Any:
    from fractions import Fraction

    return Fraction(text)


# The methods of the base, whatever a subclass has of the same name.
_PACK: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: lambda value: int.__format__(value, "x"),
    float: float.hex,
    complex: lambda value: [value.real.hex(), value.imag.hex()],
    range: lambda value: [packed(value.start), packed(value.stop), packed(value.step)],
    bytes: bytes.hex,
    bytearray: bytearray.hex,
    list: lambda value: _members(list.__iter__(value)),
    tuple: lambda value: _members(tuple.__iter__(value)),
    dict: lambda value: [[packed(key), packed(inner)] for key, inner in dict.items(value)],
    set: lambda value: _members(set.__iter__(value)),
    frozenset: lambda value: _members(frozenset.__iter__(value)),
    NoData: lambda value: value.kind,
}
_UNPACK: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "int": lambda content: int(content, 16),
    "float": float.fromhex,
    "complex": lambda content: complex(*map(float.fromhex, content)),
    "range": lambda content: range(*map(unpacked, content)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "list": lambda content: [unpacked(member) for member in content],
    "tuple": lambda content: tuple(unpacked(member) for member in content),
    "dict": lambda content: {unpacked(key): unpacked(inner) for key, inner in content},
    "set": lambda content: {unpacked(member) for member in content},
    "frozenset": lambda content: frozenset(unpacked(member) for member in content),
    "Decimal": _decimal,
    "Fraction": _fraction,
    "elements": lambda content: iter([unpacked(member) for member in content]),
    "NoData": NoData,
}
