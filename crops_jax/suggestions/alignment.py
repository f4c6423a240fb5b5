"""Pairs of texts that belong together, as records on which the dual encoder is trained as it is on any others.

The query tower reads prefixes and queries, the document tower the queries that co-occur with them. A group has one
document, of the highest label: H-InfoNCE is then InfoNCE in the batch, -log exp(cos(a_i, b_i) / tau) / sum_k
exp(cos(a_i, b_k) / tau). Equal texts have equal keys, so that no loss takes a copy, or another query of the same
prefix, for a negative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.artifacts.folders import Folder
from crops_jax.artifacts.manifest import verify
from crops_jax.engines import files
from crops_jax.errors import InputError
from crops_jax.labels import Group
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.sorted_rows import begins
from crops_jax.records import Items, RecordsConfig, write_records
from crops_jax.stable_hash import hash_column, mix
from crops_jax.suggestions.config import AlignmentConfig
from crops_jax.text.tokenizer import Tokenizer

DOCUMENT_FIELD = "photo_caption"  # where a query that is read as a document has its text
_LABEL = 5
_TABLES = {"prefix_query": ("prefix", "query"), "query_query": ("query", "related")}
_LEFT_OUT = ("few_users", "low_score", "over_the_cap")
_TEXT = pa.large_string()  # texts of all pairs in one array: more than 2 GiB of them, perhaps
_PAIRS = pa.schema({"text": _TEXT, "other": _TEXT})


def write_alignment_records(
    mined: str | Path,
    out: Folder,
    config: AlignmentConfig,
    records: RecordsConfig,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    fields: Sequence[str] = TEXT_FIELDS,
) -> dict[str, Any]:
    """Writes the pairs of a folder of `mined_day.mine_suggestions` as records into `out`, and returns the counts.

    `counts["pairs"]` says of both tables how many pairs there are, and how many were left out, by reason. The pairs
    that are kept lie in memory as Arrow columns, about 60 bytes each. The same folder, config and seed give the same
    bytes.

    Args:
      records: shards and the share of the texts that is held out for validation.
      tokenizer: stores its token ids too.
      fields: those that the model reads (`TextConfig.field_order`); `DOCUMENT_FIELD` has to be among them.

    Raises:
      InputError: the folder is another kind, not complete or damaged; the model reads other fields; no pair is left.
    """
    if DOCUMENT_FIELD not in fields:
        raise InputError(
            "text.field_order", f"a query is read as a document whose {DOCUMENT_FIELD} it is; put that among the fields"
        )
    verify(mined, "mined_suggestions", only=tuple(_TABLES))
    pairs, told = {}, {}
    for table, cap in (("prefix_query", config.per_prefix), ("query_query", config.per_query)):
        pairs[table], told[table] = _kept(Path(mined) / table, _TABLES[table], cap, config, seed)
    if not any(map(len, pairs.values())):
        raise InputError(str(mined), f"no pair of texts is left to align an encoder on: {told}")
    documents = pc.unique(pa.chunked_array([c for p in pairs.values() for c in p["other"].chunks], _TEXT))
    documents = documents.take(pc.sort_indices(documents))
    counts = write_records(_groups(pairs, documents), _items(documents), out, records, seed, tokenizer, tuple(fields))
    counts["pairs"] = told
    out.counts.update(counts)
    return counts


def _kept(
    folder: Path, names: tuple[str, str], cap: int, config: AlignmentConfig, seed: int
) -> tuple[pa.Table, dict[str, int]]:
    """The pairs of a mined table that are kept, as (text, other), and what became of all."""
    told, tables = dict.fromkeys(("pairs", *_LEFT_OUT), 0), [_PAIRS.empty_table()]
    for path in files.part_files(folder):
        rows = files.read(path)
        users, score = rows["users"].to_numpy(), rows["score"].to_numpy()
        many, high = users >= config.min_users, score >= config.min_score
        chosen = np.flatnonzero(many & high)
        rows = rows.take(chosen)
        drawn = _drawn(*(rows[name].combine_chunks() for name in names), score[chosen], cap, seed)
        amounts = (len(users), int((~many).sum()), int((many & ~high).sum()), len(chosen) - len(drawn))
        told = {name: told[name] + n for name, n in zip(told, amounts, strict=True)}
        tables.append(rows.take(drawn).select(names).rename_columns(_PAIRS.names).cast(_PAIRS))
    return pa.concat_tables(tables), told


def _drawn(text: pa.Array, other: pa.Array, score: np.ndarray, cap: int, seed: int) -> np.ndarray:
    """int64: the rows of at most `cap` pairs of each text, rising; drawn without replacement by their scores.

    Of exponential waiting times with the scores as rates the shortest are such a draw. Each comes from a hash of its
    pair, so that a draw depends on the text's own pairs alone.
    """
    order = np.arange(len(text))
    if not len(order):
        return order
    _, of_text = np.unique(hash_column(text), return_inverse=True)
    hashed = mix(hash_column(text, seed), hash_column(other).view(np.int64))
    waiting = -np.log((hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54) / np.maximum(score, 1e-12)
    order = np.lexsort((waiting, of_text))
    starts = np.flatnonzero(begins(of_text[order]))
    place = np.arange(len(order)) - np.repeat(starts, np.diff([*starts, len(order)]))
    return np.sort(order[place < cap])


def _items(documents: pa.Array) -> Items:
    """The documents, an id each: its number among them."""
    texts = {
        name: documents if name == DOCUMENT_FIELD else pa.nulls(len(documents), pa.string()) for name in TEXT_FIELDS
    }
    return Items({"queries": pa.table({"item_id": pa.array(range(len(documents)), pa.int64()), **texts})})


def _groups(pairs: dict[str, pa.Table], documents: pa.Array) -> Iterator[Group]:
    """A group a pair; its request is called by its table and number."""
    label, source = np.array([_LABEL], np.int32), np.array([0], np.int32)
    for table, rows in pairs.items():
        numbers = count()
        for batch in rows.to_batches():
            ids = pc.index_in(batch["other"], documents).to_numpy().astype(np.int64)
            for text, item, number in zip(batch["text"].to_pylist(), ids, numbers, strict=False):
                yield Group(f"{table}-{number}", 0, text, np.array([item]), label, source)
