"""Casts that lose nothing: a column as it lies on disk -> the type that the contract gives it.

Taken are all types that can hold the same values: smaller and unsigned integers, floats and decimals without a
fraction (NaN is null), numbers written as strings, 0 and 1 for a flag, dictionaries, large strings, string views,
bytes that are UTF-8, columns of nulls only. A value that would change is bad, and the message names its row. Only one
loss is allowed: moments and spans finer than a millisecond are cut to milliseconds.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.logs.declared import IdSpace
from crops_jax.normal_text import VISIBLE, has_text

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")  # what 64 bits can hold has no more digits
_FLAGS = {"true": True, "false": False, "1": True, "0": False}
EXACT = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): 2**53}  # up to here a float tells integers apart
_BAD = object()


class WrongType(Exception):
    """No value of this type can stand for one of the wanted type."""


@dataclass(frozen=True)
class Cast:
    """A column after its cast; where `bad` is true no value could be had, and a null stands."""

    array: pa.Array
    bad: np.ndarray  # bool[n]
    why: str = ""  # what is said of bad rows, where it is more than that they do not fit the type


def cast(array: pa.Array, want: pa.DataType) -> Cast:
    """The column as int64, int32, bool, float64 or string.

    Raises:
      WrongType: see there.
    """
    return _TO[want](plain(array))


def written(array: pa.Array) -> Cast:
    """Ids as the platform writes them, string; an id without any text is null."""
    found = _string(plain(array))
    return Cast(_without(found.array, ~where(pc.match_substring_regex(found.array, VISIBLE))), found.bad, found.why)


def numbered(found: Cast, space: IdSpace) -> Cast:
    """Ids as they are `written` as the numbers that they have inside the program."""
    none = found.array.is_null().to_numpy(zero_copy_only=False)
    return Cast(pa.array(space.number(found.array), mask=none), found.bad, found.why)


def plain(array: pa.Array) -> pa.Array:
    """The values without a dictionary, an extension type or large offsets; a UUID as people write it."""
    kind = array.type
    if isinstance(kind, pa.DictionaryType):
        return plain(array.dictionary_decode())
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return pa.array(
                [None if v is None else str(uuid.UUID(bytes=v)) for v in array.storage.to_pylist()], pa.string()
            )
        return plain(array.storage)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.string())
    if _is_bytes(kind):
        return array.cast(pa.binary())
    if pa.types.is_decimal(kind):
        return array.cast(pa.decimal256(kind.precision, kind.scale))
    return array


def by_value(array: pa.Array, read: Callable[[Any], Any], kind: pa.DataType) -> Cast:
    """`read` of every distinct value; what it calls `_BAD` becomes null."""
    coded = array.dictionary_encode()
    values = [read(value) for value in coded.dictionary.to_pylist()]
    bad = pa.array([value is _BAD for value in values], pa.bool_())
    found = pa.array([None if value is _BAD else value for value in values], kind)
    return Cast(found.take(coded.indices), where(bad.take(coded.indices)))


def where(mask: pa.Array) -> np.ndarray:
    """bool[n], false where the mask is null."""
    return mask.fill_null(False).to_numpy(zero_copy_only=False)


def _all(array: pa.Array) -> Cast:
    return Cast(array, np.zeros(len(array), bool))


def _without(array: pa.Array, bad: np.ndarray) -> pa.Array:
    return pc.if_else(pa.array(bad, pa.bool_()), pa.scalar(None, array.type), array)


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_large_binary(kind) or types.is_fixed_size_binary(kind) or types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_binary(kind)


def _integer(array: pa.Array) -> Cast:
    kind = array.type
    if pa.types.is_uint64(kind):
        bad = where(pc.greater(array, pa.scalar(2**63 - 1, pa.uint64())))
        return Cast(_without(array, bad).cast(pa.int64()), bad)
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return _all(array.cast(pa.int64()))
    if pa.types.is_boolean(kind):
        return _all(array.cast(pa.int8()).cast(pa.int64()))
    if pa.types.is_floating(kind):
        value = array.to_numpy(zero_copy_only=False).astype(np.float64)
        hole = np.isnan(value)
        bad = ~hole & ~((value == np.floor(value)) & (np.abs(value) <= EXACT[kind]))
        return Cast(pa.array(np.where(hole | bad, 0, value).astype(np.int64), mask=hole | bad), bad)
    if pa.types.is_decimal(kind):
        return by_value(array, _whole, pa.int64())
    if _is_text(kind):
        return _of_text(array, _read_integer, pa.int64())
    raise WrongType


def _whole(value: Decimal) -> Any:
    return int(value) if value == value.to_integral_value() and -(2**63) <= value < 2**63 else _BAD


def _of_text(array: pa.Array, read: Callable[[str], Any], kind: pa.DataType) -> Cast:
    """`read` of texts; one that is blank is a hole of a table that came from CSV."""
    texts = _string(array)
    found = by_value(texts.array, lambda text: read(text) if has_text(text) else None, kind)
    return Cast(found.array, found.bad | texts.bad, texts.why)


def _read_integer(text: str) -> Any:
    return int(text) if _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63 else _BAD


def _short_integer(array: pa.Array) -> Cast:
    found = _integer(array)
    bad = found.bad | where(pc.greater(found.array, 2**31 - 1)) | where(pc.less(found.array, -(2**31)))
    return Cast(_without(found.array, bad).cast(pa.int32()), bad)


def _flag(array: pa.Array) -> Cast:
    if pa.types.is_boolean(array.type):
        return _all(array)
    if _is_text(array.type):
        return _of_text(array, lambda text: _FLAGS.get(text.lower(), _BAD), pa.bool_())
    found = _integer(array)
    bad = found.bad | where(pc.greater(found.array, 1)) | where(pc.less(found.array, 0))
    return Cast(_without(found.array, bad).cast(pa.bool_()), bad)


def _number(array: pa.Array) -> Cast:
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        found = array if pa.types.is_uint64(kind) else _integer(array).array
        bad = where(pc.greater(found, pa.scalar(2**53, found.type)))
        if not pa.types.is_uint64(kind):
            bad |= where(pc.less(found, -(2**53)))
        return Cast(_without(found, bad).cast(pa.float64()), bad)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return _all(array.cast(pa.float64()))
    if _is_text(kind):
        return _of_text(array, _read_number, pa.float64())
    raise WrongType


def _read_number(text: str) -> Any:
    try:
        return _BAD if "_" in text else float(text)  # Python reads 1_000
    except ValueError:
        return _BAD


def _string(array: pa.Array) -> Cast:
    kind = array.type
    if pa.types.is_null(kind):
        return _all(array.cast(pa.string()))
    if _is_text(kind):
        try:
            return _all(array.cast(pa.binary()).cast(pa.string()))  # which looks at every byte
        except pa.ArrowInvalid:
            found = by_value(array.cast(pa.binary()), _read_utf8, pa.string())
            return Cast(
                found.array, found.bad, "are not UTF-8; read them as what they are (latin-1?) and write it again"
            )
    if pa.types.is_uint64(kind):
        return _all(array.cast(pa.string()))
    if pa.types.is_decimal(kind):
        return by_value(array, lambda v: str(int(v)) if v == v.to_integral_value() else _BAD, pa.string())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        found = _integer(array)
        return Cast(found.array.cast(pa.string()), found.bad)
    raise WrongType


def _read_utf8(raw: bytes) -> Any:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _BAD


_TO: dict[pa.DataType, Callable[[pa.Array], Cast]] = {
    pa.int64(): _integer,
    pa.int32(): _short_integer,
    pa.bool_(): _flag,
    pa.float64(): _number,
    pa.string(): _string,
}
