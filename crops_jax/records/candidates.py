"""Mined candidates in parts, each with all rows of its queries: the unit of work of labels and shards.

Candidates are one Parquet file or a folder of them. A file is sorted by query, and a query lies in one file. A part is
some row groups of a file: those queries whose first row lies there. So parts are found without reading a row, and each
is read without the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.errors import InputError
from crops_jax.labels import Group, LabelsConfig, one_anchor_groups
from crops_jax.logs.parts import parts as files_of
from crops_jax.logs.tables import unreadable
from crops_jax.records.assemble import POSITION, TYPED, Keys, assemble

_COLUMNS = ("query", "request_id", "user_id", "item_id", "source")
_ROWS = 1 << 18  # of a part, about


@dataclass(frozen=True)
class Part:
    """The queries whose first row lies in these row groups of a file."""

    path: Path
    first: int
    last: int  # the row group behind the last one


def cut(candidates: str | Path) -> list[Part]:
    """The parts of candidates, in the order of file and row. They depend on the files alone.

    Raises:
      InputError: there are no candidates, a file is no Parquet file or lacks a column.
    """
    found = []
    for path in files_of(Path(candidates)):
        try:
            with pq.ParquetFile(path) as file:
                sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                missing = [name for name in _COLUMNS if name not in file.schema_arrow.names]
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, error) from None
        if missing:
            raise InputError(str(path), [f"column {name} is missing" for name in missing])
        first = rows = 0
        for number, size in enumerate(sizes):
            rows += size
            if rows >= _ROWS or number == len(sizes) - 1:
                found.append(Part(path, first, number + 1))
                first, rows = number + 1, 0
    return found


def read_part(part: Part, columns: tuple[str, ...] = _COLUMNS) -> pa.Table:
    """The rows of a part. It may hold none: where a query of the part before fills all of its row groups.

    Args:
      columns: those to read; with all of them come `position` and `typed`, where they are there.

    Raises:
      InputError: the file is damaged or not sorted by query.
    """
    try:
        with pq.ParquetFile(part.path, page_checksum_verification=True) as file:
            return _read(file, part, columns)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(part.path, error) from None


def _read(file: pq.ParquetFile, part: Part, columns: tuple[str, ...]) -> pa.Table:
    names = list(dict.fromkeys(["query", *columns]))
    if columns == _COLUMNS:
        names += [name for name in (POSITION, TYPED) if name in file.schema_arrow.names]
    table = file.read_row_groups(range(part.first, part.last), names).combine_chunks()
    if part.first > 0 and len(table):  # the last query of the part before may go on here
        before = file.read_row_group(part.first - 1, ["query"])["query"]
        query = pa.chunked_array([before.slice(len(before) - 1).combine_chunks(), *table["query"].chunks])
        _check_sorted(query, part.path)
        table = table.slice(_same_as_first(query) - 1)
    else:
        _check_sorted(table["query"], part.path)
    if not len(table):
        return table
    held, following = [table], part.last
    while following < file.num_row_groups:  # the last query may go on
        more = file.read_row_group(following, names)
        query = pa.chunked_array([table["query"].slice(len(table) - 1).combine_chunks(), *more["query"].chunks])
        same = _same_as_first(query) - 1
        held.append(more.slice(0, same))
        if same < len(more):
            break
        following += 1
    return pa.concat_tables(held)


def _same_as_first(query: pa.ChunkedArray) -> int:
    """How many rows from the first on hold its query."""
    differs = pc.index(pc.not_equal(query, query[0]), True).as_py()
    return len(query) if differs < 0 else differs


def _check_sorted(query: pa.ChunkedArray, path: Path) -> None:
    whole = query.combine_chunks()
    if not pc.all(pc.greater_equal(whole[1:], whole[:-1]), min_count=0).as_py():
        raise InputError(str(path), "is not sorted by query; write it again with `python -m crops_jax.mine`")


def documents_of(part: Part, sources: tuple[str, ...]) -> np.ndarray:
    """int64: the distinct documents that a part names for these sources, rising."""
    table = read_part(part, ("source", "item_id"))
    table = table.filter(pc.is_in(table["source"], pa.array(sources)))
    return np.unique(table["item_id"].to_numpy())


def read_parts(candidates: str | Path) -> Iterator[pa.Table]:
    """All parts with rows, one after the other."""
    for part in cut(candidates):
        if len(table := read_part(part)):
            yield table


def read_groups(candidates: str | Path, config: LabelsConfig, keys: Keys | None = None) -> Iterator[Group]:
    """The groups of all candidates, in their order, a part in memory at a time (`assemble`)."""
    for part in read_parts(candidates):
        for group in assemble(part, config, keys=keys):
            yield from one_anchor_groups(group, config.min_anchor) if config.one_anchor else [group]
