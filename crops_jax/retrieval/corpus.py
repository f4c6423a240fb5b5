"""The candidate pool: every item of the platform that has text, in rising id order. Nothing else is searched.

Documents that a language model wrote never enter it: they exist for training only (paper, World Knowledge Enrichment).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.engines.table_rows import take_rows
from crops_jax.errors import InputError
from crops_jax.logs.folder import LogFolder, open_logs
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.tables import PLATFORM, LogTable
from crops_jax.text.tokenizer import document_text

ID_TABLE = "item_ids.parquet"  # where `Corpus.id_table` lies in folders that are handed over


@dataclass(frozen=True)
class Corpus:
    """C items with their texts."""

    item_ids: np.ndarray  # int64[C], rising
    texts: list[str]  # C document texts, never empty
    keywords: list[str]  # C keyword fields, entries separated by |
    without_text: int  # items left out because no field holds text
    platform_ids: pa.ChunkedArray | None  # C items as the platform names them; None: by these ids

    def __len__(self) -> int:
        return len(self.item_ids)

    def id_table(self) -> pa.Table | None:
        """(item_id, platform_item_id) of the items, for who is handed anything by id; None where the two are one."""
        if self.platform_ids is None:
            return None
        return pa.table({"item_id": self.item_ids, PLATFORM["item"]: self.platform_ids})


def read_corpus(logs: str | Path, field_order: Sequence[str] = TEXT_FIELDS) -> Corpus:
    """The corpus of a log folder.

    Raises:
      InputError: the table is missing or damaged, or none of its items has text.
    """
    folder = open_logs(logs)
    corpus = CorpusPart(folder, folder.open("items"), tuple(field_order)).read()
    if not len(corpus):
        raise InputError(f"{logs}: items", "no item has text in any of its fields")
    return corpus


def corpus_parts(logs: str | Path, size: int, field_order: Sequence[str] = TEXT_FIELDS) -> list[CorpusPart]:
    """The same in parts of `size` rows of the table, in the order in which it lies on disk, none of them read yet.

    Raises:
      InputError: the table is missing, or a file of it is no Parquet.
    """
    folder = open_logs(logs)
    table = folder.open("items")
    starts = range(0, table.rows, size)
    return [CorpusPart(folder, table.between(start, start + size), tuple(field_order)) for start in starts]


@dataclass(frozen=True)
class CorpusPart:
    """Rows of the table of items."""

    folder: LogFolder
    table: LogTable
    field_order: tuple[str, ...]

    def read(self) -> Corpus:
        """Their items with text, none where no row has any.

        Raises:
          InputError: a file is damaged.
        """
        return _corpus(self.table.read(), self.folder, self.field_order)


def _corpus(table: pa.Table, folder: LogFolder, field_order: Sequence[str]) -> Corpus:
    fields = {name: pc.fill_null(table[name], "").to_pylist() for name in TEXT_FIELDS}
    rows = zip(*(fields[name] for name in TEXT_FIELDS), strict=True)
    texts = [document_text(*row, order=field_order) for row in rows]
    ids, has = table["item_id"].to_numpy(), np.array([bool(text) for text in texts], bool)
    order = np.argsort(ids, kind="stable")
    kept, space = order[has[order]], folder.declared.items
    return Corpus(
        item_ids=ids[kept],
        texts=[texts[row] for row in kept],
        keywords=[fields["keyword"][row] for row in kept],
        without_text=int((~has).sum()),
        platform_ids=None if space is None else space.as_written(_column(table, PLATFORM["item"], kept)),
    )


def _column(table: pa.Table, name: str, rows: np.ndarray) -> pa.ChunkedArray:
    return take_rows(table.select([name]), rows)[name]
