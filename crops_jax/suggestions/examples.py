"""What a writer learns from: a request, what was taken in it, and what was not. As values, and as tf.train.Examples.

An example is one row of the authors' data: prefix, related queries, recent searches, the query that was taken, queries
that were not, the weight of each pair, and what a reference model says of all answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from crops_jax.artifacts.manifest import verify
from crops_jax.engines import files
from crops_jax.errors import InputError
from crops_jax.records.features import protos
from crops_jax.stable_hash import hash_texts
from crops_jax.suggestions.levels import LEFT_LEVELS
from crops_jax.suggestions.preferences import PREFERENCES
from crops_jax.suggestions.taken import RECENT, queries_by

_TEXTS = ("related", "recent", "rejected")
_FLOATS = ("weight", "reference")
_NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Example:
    """One suggestion that was taken, and L that were not."""

    request_id: str
    prefix: str  # in its normal form
    related: list[str]  # the nearest first
    recent: list[str]  # the latest first
    chosen: str
    rejected: list[str]  # L
    weight: np.ndarray  # float32[L], of each pair
    reference: np.ndarray  # float32[1 + L]: log-probabilities of chosen and rejected; empty where nothing said them


def read_examples(mined: str | Path, losers: int) -> Iterator[Example]:
    """The examples of a folder of `mined_day.mine_suggestions`, by prefix and request; part by part.

    Args:
      losers: rejected queries of an example, at most. Of more, the first of each level (shown, not shown, random) is
        taken, then the second of each; within a level they are in the order of a hash.

    Raises:
      InputError: the folder is another kind, not complete or damaged.
    """
    manifest = verify(mined, "mined_suggestions", only=("taken", "recent", "preferences"))
    named = {entry["path"] for entry in manifest["files"]}

    def beside(part: Path, table: str, schema: pa.Schema) -> pa.Table:
        # A part without rows is not written.
        name = f"{table}/{part.name}"
        return files.read(Path(mined) / name) if name in named else schema.empty_table()

    for part in files.part_files(Path(mined) / "taken"):
        searched = queries_by(beside(part, "recent", RECENT), "request_id")
        lost = _lost(beside(part, "preferences", PREFERENCES))
        for request, prefix, chosen in _columns(files.read(part), "request_id", "prefix", "query"):
            kept = _in_turn(lost.get((request, chosen), []))[:losers]
            weight = np.array([weight for _, weight in kept], np.float32)
            rejected = [query for query, _ in kept]
            yield Example(request, prefix, [], searched.get(request, []), chosen, rejected, weight, _NOTHING)


def blocks(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    """The examples, so many at a time; the last block may have fewer."""
    left = iter(examples)
    while block := list(islice(left, size)):
        yield block


def _lost(preferences: pa.Table) -> dict[tuple[str, str], list[tuple[str, str, float]]]:
    """(level, query, weight) of what was rejected for each (request, chosen), in the order of a hash: that of the text
    would undo the draw of mining, for of many queries the first ones are taken."""
    draw = hash_texts("\n".join(pair) for pair in _columns(preferences, "request_id", "rejected"))
    lost: dict[tuple[str, str], list[tuple[str, str, float]]] = {}
    names = ("request_id", "chosen", "rejected_level", "rejected", "weight")
    for request, chosen, *rejected in _columns(preferences.take(np.argsort(draw, kind="stable")), *names):
        lost.setdefault((request, chosen), []).append(tuple(rejected))
    return lost


def _columns(table: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def _in_turn(rejected: Sequence[tuple[str, str, float]]) -> list[tuple[str, float]]:
    """(query, weight): the first of each level, then the second of each, and so on."""
    of_level: dict[str, int] = {}
    placed = []
    for level, query, weight in rejected:
        place = of_level[level] = of_level.get(level, 0) + 1
        placed.append((place, LEFT_LEVELS.index(level), query, weight))
    return [(query, weight) for *_, query, weight in sorted(placed)]


def example_features() -> Any:
    """The `tfds.features.FeaturesDict` of an example."""
    import tensorflow_datasets as tfds

    f = tfds.features
    texts = {name: f.Sequence(f.Text()) for name in _TEXTS}
    floats = {name: f.Sequence(f.Scalar(np.float32)) for name in _FLOATS}
    return f.FeaturesDict({name: f.Text() for name in ("request_id", "prefix", "chosen")} | texts | floats)


def encode_example(example: Example) -> bytes:
    """The example as a serialised tf.train.Example; equal examples are equal bytes."""
    message = protos().Example()
    feature = message.features.feature
    for name in ("request_id", "prefix", "chosen"):
        feature[name].bytes_list.value.append(getattr(example, name).encode())
    for name in _TEXTS:
        feature[name].bytes_list.value.extend(text.encode() for text in getattr(example, name))
    for name in _FLOATS:
        feature[name].float_list.value.extend(getattr(example, name).tolist())
    return message.SerializeToString(deterministic=True)


def decode_example(data: bytes, place: str) -> Example:
    """The example in a serialised tf.train.Example.

    Raises:
      InputError: at `place`: not an Example, or fields are missing or of unequal lengths.
    """
    message = protos()
    try:
        feature: Mapping[str, Any] = message.Example.FromString(data).features.feature
        one = {name: feature[name].bytes_list.value[0].decode() for name in ("request_id", "prefix", "chosen")}
        texts = {name: [text.decode() for text in feature[name].bytes_list.value] for name in _TEXTS}
        floats = {name: np.array(feature[name].float_list.value, np.float32) for name in _FLOATS}
    except Exception as error:  # DecodeError, IndexError, UnicodeDecodeError: the message says which
        raise InputError(place, f"is not a record of suggestions ({type(error).__name__}: {error})") from None
    losers, weights, told = len(texts["rejected"]), len(floats["weight"]), len(floats["reference"])
    if weights != losers or told not in (0, 1 + losers):
        raise InputError(place, f"has {losers} rejected queries, {weights} weights, {told} values of a reference")
    return Example(**one, **texts, **floats)
