"""Scores pairs with theta, part by part, and keeps those that pass: a stage of its own, wherever theta is.

What is asked lies in the folder of the stage (`Ask`), beside the pairs and the queries and documents that they name,
which the engine joined. So `mine` scores them itself, or another machine does (`crops_jax.score`): a part that was
scored is not scored again. Pairs are read in batches; of a part, the texts of its queries and documents are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.engines import files
from crops_jax.engines.engine import PART
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.sorted_rows import begins
from crops_jax.mining.relevance import Relevance, Unscored, checked_scores, scores_of
from crops_jax.mining.work import Work
from crops_jax.parallel.ahead import ahead
from crops_jax.progress import progress
from crops_jax.text.tokenizer import document_texts

if TYPE_CHECKING:
    from ibis.expr.types import Table

_QUERIES = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("query", "next_query")])
_NUMBERED = pa.schema([pa.field("number", pa.int64(), nullable=False), pa.field("query", pa.string(), nullable=False)])
_DOCUMENTS = pa.schema(
    [pa.field("item_id", pa.int64(), nullable=False), *(pa.field(name, pa.string()) for name in TEXT_FIELDS)]
)
_ASK = "ask.json"
_ROWS = 1 << 16  # pairs that are scored at a time


@dataclass(frozen=True)
class Scored:
    """Pairs above a threshold, as a table, and how many unique ones were scored and refused."""

    passed: Table
    scored: int
    refused: int


@dataclass(frozen=True)
class Ask:
    """What theta is asked for: the similarity of queries, or its value for query and document."""

    pairs: str
    """Stage with the columns query and next_query; or number and item_id, sorted by them, a pair in any number of
    rows."""
    queries: str | None
    """Stage with the queries of the numbers of each part; None: the pairs are of queries, and hold them."""
    documents: str | None
    """Stage with the texts of the items of each part; None likewise."""
    threshold: float
    """Queries pass with a similarity of at least this, documents with a theta above it."""

    @property
    def column(self) -> str:
        """The name of what is scored."""
        return "similarity" if self.documents is None else "theta"


@dataclass(frozen=True)
class Pairs:
    """A batch of a part: its rows, and the unique pairs among them."""

    rows: pa.Table
    first: list[str]  # the query of each unique pair; equal strings are one object
    second: list[str]  # its document's text, or the other query
    pair: np.ndarray  # int64[rows]: which of these a row is


def relevant_documents(
    work: Work, name: str, pairs: str, queries: Table, items: Table, relevance: Relevance | None, alpha: float
) -> Scored:
    """The rows of the stage `pairs` with theta > alpha, strictly, and their theta: as stage `name`.

    The stage has columns number and item_id, and is sorted by them; a pair may be in several rows.

    Args:
      queries: (query, number) of `numbers`.

    Raises:
      InputError: the relevance model gives a NaN, a value outside [0, 1] or a wrong number of scores.
      Unscored: `relevance` is None, and another machine has not scored all of them yet.
    """
    ask = Ask(pairs, f"{name}_queries", f"{name}_documents", alpha)
    work.write(ask.queries, _NUMBERED, ("number",), _named(work, pairs, queries.select(_NUMBERED.names)))
    work.write(ask.documents, _DOCUMENTS, ("item_id",), _named(work, pairs, items.select(_DOCUMENTS.names)))
    return _scored(work, name, ask, relevance)


def similar_queries(work: Work, name: str, pairs: Table, relevance: Relevance | None, least: float) -> Scored:
    """(query, next_query, similarity) of the unique pairs with similarity >= least, as stage `name`.

    Raises:
      Unscored: as `relevant_documents`.
    """
    asked = pairs.select("query", "next_query").distinct()
    asked = asked.mutate(**{PART: work.part_of(asked.query)})
    work.write(f"{name}_pairs", _QUERIES, tuple(_QUERIES.names), asked)
    return _scored(work, name, Ask(f"{name}_pairs", None, None, least), relevance)


def _scored(work: Work, name: str, ask: Ask, relevance: Relevance | None) -> Scored:
    (work.folder(name) / _ASK).write_text(json.dumps(asdict(ask)))
    left = unscored(work.root, name)
    if left and relevance is None:
        raise Unscored(name, len(left))
    for _ in progress(score_parts(work.root, name, left, relevance), f"{name}: parts", total=len(left), unit="part"):
        pass
    told = [files.facts_of(path) for path in work.parts(name)]
    scored, refused = (sum(facts[key] for facts in told) for key in ("scored", "refused"))
    return Scored(work.read(name), scored, refused)


def asked(root: Path) -> list[str]:
    """The stages below `root` for which theta was asked, sorted by name."""
    return sorted(path.parent.name for path in root.glob(f"*/{_ASK}"))


def unscored(root: Path, name: str) -> list[Path]:
    """The parts of pairs that wait for theta in the stage `name`."""
    return [p for p in files.part_files(root / _ask(root, name).pairs) if not (root / name / p.name).exists()]


def of_documents(root: Path, name: str) -> bool:
    """Whether the second text of the pairs of a stage is a document."""
    return _ask(root, name).documents is not None


def _ask(root: Path, name: str) -> Ask:
    return Ask(**json.loads((root / name / _ASK).read_text()))


def score_parts(root: Path, name: str, paths: Sequence[Path], relevance: Relevance) -> Iterator[Path]:
    """Scores parts of `unscored`, in this order, and writes of each the rows that pass, with their score.

    Pairs are read and looked up in a thread, so that theta need not wait for them. It is asked in one order, whatever
    the threads do: what it computes of a text may depend on what it is asked for with it.

    Yields:
      Each part when it is written.
    """
    asked = ahead((path, batch) for path in paths for batch in chain((None,), batches(root, name, path)))
    for path, found in groupby(asked, key=itemgetter(0)):
        _score(root, name, path, (batch for _, batch in found if batch is not None), relevance)
        yield path


def _score(root: Path, name: str, path: Path, found: Iterable[Pairs], relevance: Relevance) -> None:
    ask, facts = _ask(root, name), {"scored": 0, "refused": 0}
    schema = pq.read_schema(path).remove_metadata().append(pa.field(ask.column, pa.float32()))

    def passing() -> Iterator[pa.RecordBatch]:
        for batch in found:
            score, threshold = _of_pairs(batch, ask, relevance), np.float32(ask.threshold)
            passes = score >= threshold if ask.documents is None else score > threshold
            facts["scored"] += len(score)
            facts["refused"] += int((~passes).sum())
            table = batch.rows.append_column(schema.field(ask.column), pa.array(score[batch.pair], pa.float32()))
            yield from table.filter(pa.array(passes[batch.pair])).to_batches()

    files.write(passing(), root / name / path.name, schema, facts)


def _of_pairs(batch: Pairs, ask: Ask, relevance: Relevance) -> np.ndarray:
    if ask.documents is None:
        values = relevance.query_similarity(batch.first, batch.second)
        return checked_scores(values, len(batch.first), "relevance.query_similarity", low=-1.0)
    return scores_of(relevance, batch.first, batch.second)


def batches(root: Path, name: str, path: Path) -> Iterator[Pairs]:
    """The pairs of a part, with their texts; all rows of a pair are in one batch."""
    ask = _ask(root, name)
    if ask.documents is None:
        for table in _runs(path, tuple(_QUERIES.names)):
            first, second = (_shared_strings(table[column]) for column in ("query", "next_query"))
            yield Pairs(table, first, second, np.arange(len(table)))
        return
    documents, queries = (files.read(root / stage / path.name) for stage in (ask.documents, ask.queries))
    texts = document_texts({column: documents[column] for column in TEXT_FIELDS})
    numbers, items = queries["number"].to_numpy(), documents["item_id"].to_numpy()
    for table in _runs(path, ("number", "item_id")):
        number, item = (table[column].to_numpy() for column in ("number", "item_id"))
        new = begins(number, item)
        first = _texts_of(queries["query"], np.searchsorted(numbers, number[new]))
        second = _texts_of(texts, np.searchsorted(items, item[new]))
        yield Pairs(table, first, second, np.cumsum(new) - 1)


def _runs(path: Path, keys: tuple[str, str]) -> Iterator[pa.Table]:
    """The rows of a part in tables of one chunk, about `_ROWS` each, cut between pairs."""
    held: pa.Table | None = None
    for batch in files.Files((path,), pq.read_schema(path).remove_metadata()).batches():
        for start in range(0, batch.num_rows, _ROWS):
            rows = pa.Table.from_batches([batch.slice(start, _ROWS)])
            if held is not None:
                last = held.slice(len(held) - 1)
                same = [pc.equal(held[column], last[column][0]) for column in keys]
                cut = pc.index(pc.and_(*same), True).as_py()
                if cut:
                    yield held.slice(0, cut)
                rows = pa.concat_tables([held.slice(cut), rows])
            held = rows.combine_chunks()
    if held is not None:
        yield held


def _named(work: Work, pairs: str, texts: Table) -> Table:
    """The rows of `texts` that the pairs of each part of a stage name by the first column."""
    key = texts.columns[0]
    return work.read(pairs, key, PART).distinct().join(texts, key)


def _shared_strings(column: pa.ChunkedArray) -> list[str]:
    coded = column.combine_chunks().dictionary_encode()
    return _each(coded.dictionary.to_pylist(), coded.indices.to_numpy(zero_copy_only=False))


def _texts_of(texts: pa.ChunkedArray, rows: np.ndarray) -> list[str]:
    """The text of each row; equal rows give one object: millions of pairs name thousands of queries."""
    unique, place = np.unique(rows, return_inverse=True)
    return _each(texts.take(pa.array(unique)).to_pylist(), place)


def _each(texts: list[str], places: np.ndarray) -> list[str]:
    return np.array(texts, object)[places].tolist()
