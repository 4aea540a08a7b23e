"""Values as strict JSON by exact type: how arguments go in and how results come out. Never pickle.

None, booleans, integers of any size, floats (nan and infinities too), complex, str (lone surrogates too), bytes,
list, tuple, dict, set and frozenset, nested up to `MOST_LEVELS`. A subclass is not its base: what is not of one
of these very types cannot be encoded. Equal values keep their types: True is not 1, 1.0 is not 1.

`decode` reads what hostile code may have written: it takes nothing but what `encode` can give, in time linear in
the text (floods of equal hashes are refused), and raises ValueError for anything else.
"""

from __future__ import annotations

import builtins
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, cast

# The functions below look names up in this copy: a program that changes `builtins` does not reach them.
globals()["__builtins__"] = dict(vars(builtins))

MOST_LEVELS = 100
_MOST_BITS = 1 << 23  # an integer as large as a megabyte of output can show
_SMALL = 1 << 53  # beyond it, integers are written in hexadecimal: decimal costs quadratic time
_MOST_EQUAL = 64  # keys of one table with the same hash


class UnencodableError(ValueError):
    """This value has no encoding; the message names its type."""


def dumps(value: object) -> str:
    """One line of ASCII. Raises UnencodableError."""
    return _to_json(encode(value))


def loads(text: str | bytes) -> object:
    """The inverse of `dumps`. Raises ValueError for whatever `dumps` did not write."""
    return decode(parse(text))


def parse(text: str | bytes) -> object:
    """JSON and nothing more lenient. Raises ValueError, also for nesting without end."""
    try:
        return _from_json(text if isinstance(text, str) else text.decode("ascii"))
    except (RecursionError, UnicodeDecodeError) as error:
        raise ValueError("not the JSON of an encoded value") from error


def encode(value: object, levels: int = MOST_LEVELS) -> object:
    """None, booleans, small integers and clean text as themselves; anything else as [tag, payload]."""
    kind = type(value)
    if value is None or kind is bool or (kind is int and -_SMALL < cast(int, value) < _SMALL):
        return value
    if kind is str and cast(str, value).isascii():
        return value
    writer = _WRITERS.get(kind)
    if writer is None:
        raise UnencodableError(f"unencodable: {kind.__name__}")
    if levels == 0:
        raise UnencodableError("unencodable: nested too deeply")
    return writer(value, levels - 1)


def decode(node: object, levels: int = MOST_LEVELS) -> object:
    """The value of what `encode` gave. Raises ValueError."""
    if node is None or type(node) in (bool, int, str):
        return node
    if type(node) is not list or len(node) != 2 or type(node[0]) is not str or levels == 0:
        raise ValueError("malformed value")
    reader = _READERS.get(node[0])
    if reader is None:
        raise ValueError("unknown kind of value")
    try:
        return reader(node[1], levels - 1)
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError("malformed value") from error


def _write_integer(value: int, _levels: int) -> object:
    if value.bit_length() > _MOST_BITS:
        raise UnencodableError("unencodable: integer of too many digits")
    return ["i", hex(value)]


def _write_text(value: str, _levels: int) -> object:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # JSON would join two lone surrogates into one character.
        return ["u", value.encode("utf-32-be", "surrogatepass").hex()]
    return value


def _write_many(tag: str) -> Callable[[Any, int], object]:
    return lambda values, levels: [tag, [encode(each, levels) for each in values]]


def _write_mapping(value: dict[object, object], levels: int) -> object:
    return ["d", [[encode(key, levels), encode(each, levels)] for key, each in value.items()]]


_WRITERS: dict[type, Callable[[Any, int], object]] = {
    int: _write_integer,
    float: lambda value, _levels: ["f", value.hex()],
    complex: lambda value, _levels: ["c", [value.real.hex(), value.imag.hex()]],
    str: _write_text,
    bytes: lambda value, _levels: ["b", value.hex()],
    list: _write_many("l"),
    tuple: _write_many("t"),
    set: _write_many("s"),
    frozenset: _write_many("z"),
    dict: _write_mapping,
}


def _read_text(payload: str, _levels: int) -> str:
    return bytes.fromhex(payload).decode("utf-32-be", "surrogatepass")


def _read_complex(payload: list[str], _levels: int) -> complex:
    real, imaginary = payload
    return complex(float.fromhex(real), float.fromhex(imaginary))


def _read_many(payload: object, levels: int) -> list[object]:
    if type(payload) is not list:
        raise ValueError("malformed value")
    return [decode(each, levels) for each in payload]


def _read_distinct(payload: object, levels: int) -> list[object]:
    return _unflooded(_read_many(payload, levels))


def _read_mapping(payload: list[list[object]], levels: int) -> dict[object, object]:
    pairs = [(decode(key, levels), decode(value, levels)) for key, value in payload]
    _unflooded([key for key, _ in pairs])
    return dict(pairs)


def _unflooded(keys: list[object]) -> list[object]:
    """Raises ValueError where so many hashes are equal that a table of these keys would take quadratic time."""
    if len(keys) > _MOST_EQUAL and max(Counter(map(hash, keys)).values()) > _MOST_EQUAL:
        raise ValueError("too many equal hashes")
    return keys


_READERS: dict[str, Callable[[Any, int], object]] = {
    "i": lambda payload, _levels: int(payload, 16),
    "f": lambda payload, _levels: float.fromhex(payload),
    "c": _read_complex,
    "u": _read_text,
    "b": lambda payload, _levels: bytes.fromhex(payload),
    "l": _read_many,
    "t": lambda payload, levels: tuple(_read_many(payload, levels)),
    "s": lambda payload, levels: set(_read_distinct(payload, levels)),
    "z": lambda payload, levels: frozenset(_read_distinct(payload, levels)),
    "d": _read_mapping,
}


def _small_integer(digits: str) -> int:
    if len(digits) > 17:
        raise ValueError("an integer of this size is not written in decimal")
    return int(digits)


def _refused(token: str) -> Iterable[object]:
    raise ValueError(f"{token} is not part of an encoded value")


_to_json = json.JSONEncoder(ensure_ascii=True, check_circular=False, separators=(",", ":")).encode
_from_json = json.JSONDecoder(parse_int=_small_integer, parse_float=_refused, parse_constant=_refused).decode
