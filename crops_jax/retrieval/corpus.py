"""The candidate pool: every item of the platform that has text, in rising id order. Nothing else is searched.

Documents that a language model wrote never enter it: they exist for training only (paper, World Knowledge Enrichment).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.errors import InputError
from crops_jax.logs.folder import open_logs
from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.logs.tables import PLATFORM
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

    def cut(self, start: int, end: int) -> Corpus:
        """Items start..end-1, for their texts."""
        return replace(self, item_ids=self.item_ids[start:end], texts=self.texts[start:end],
                       keywords=self.keywords[start:end])  # fmt: skip

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
    table = folder.read("items").sort_by("item_id")
    fields = {name: pc.fill_null(table[name], "").to_pylist() for name in TEXT_FIELDS}
    rows = zip(*(fields[name] for name in TEXT_FIELDS), strict=True)
    texts = [document_text(*row, order=field_order) for row in rows]
    kept = np.array([bool(text) for text in texts], bool)
    if not kept.any():
        raise InputError(f"{logs}: items", "no item has text in any of its fields")
    table, space = table.filter(pa.array(kept)), folder.declared.items
    return Corpus(
        item_ids=table["item_id"].to_numpy(),
        texts=[text for text in texts if text],
        keywords=[keyword for keyword, ok in zip(fields["keyword"], kept, strict=True) if ok],
        without_text=int((~kept).sum()),
        platform_ids=None if space is None else space.as_written(table[PLATFORM["item"]]),
    )
