"""Token ids in the shards: made when the records are written, put back into rows when they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crops_jax.logs.schema import TEXT_FIELDS
from crops_jax.records.features import Record, TokenIds
from crops_jax.text.tokenizer import Tokenizer, TokenRows, document_text


def document_texts(records: Sequence[Record], order: Sequence[str] = TEXT_FIELDS) -> list[str]:
    """Every document of the records as one text (`tokenizer.document_text`), in their order."""
    fields = [[text for record in records for text in getattr(record, name)] for name in TEXT_FIELDS]
    return [document_text(*row, order=order) for row in zip(*fields, strict=True)]


def add_tokens(records: Sequence[Record], tokenizer: Tokenizer) -> list[Record]:
    """The records with the token ids of their texts, all made in one call of the tokeniser."""
    queries = tokenizer.encode_queries([record.query for record in records])
    docs = tokenizer.encode_documents(document_texts(records, tokenizer.config.field_order))
    ends = np.cumsum([len(record) for record in records])
    parts = [slice(end - len(record), end) for record, end in zip(records, ends.tolist(), strict=True)]
    tokens = [
        TokenIds(_flat(queries, slice(i, i + 1)), _flat(docs, part), docs.length[part]) for i, part in enumerate(parts)
    ]
    return [dataclasses.replace(record, tokens=t) for record, t in zip(records, tokens, strict=True)]


def _flat(rows: TokenRows, part: slice) -> np.ndarray:
    ids = rows.ids[part]
    return ids[_text_slots(rows.length[part], ids.shape[1])]


def token_rows(records: Sequence[Record], tokenizer: Tokenizer) -> tuple[TokenRows, TokenRows]:
    """(queries, documents) as the tokeniser would encode them, from the token ids that the records hold."""
    tokens = [record.tokens for record in records]
    config, pad_id = tokenizer.config, tokenizer.pad_id
    query_length = np.array([len(t.query) for t in tokens], np.int32)
    queries = _rows([t.query for t in tokens], query_length, config.max_query_tokens, pad_id)
    doc_length = np.concatenate([t.length for t in tokens])
    return queries, _rows([t.docs for t in tokens], doc_length, config.max_doc_tokens, pad_id)


def _rows(ids: list[np.ndarray], length: np.ndarray, slots: int, pad_id: int) -> TokenRows:
    rows = np.full((len(length), slots), pad_id, np.int32)
    rows[_text_slots(length, slots)] = np.concatenate(ids)
    return TokenRows(rows, length)


def _text_slots(length: np.ndarray, slots: int) -> np.ndarray:
    """bool[n, slots]: where rows of these lengths hold text."""
    return np.arange(slots) < length[:, None]


def made_by(tokenizer: Tokenizer) -> dict[str, Any]:
    """What token ids depend on, JSON-able: the tokeniser's fingerprint and the settings of its texts.

    The tokeniser's place is left out: the same file may lie elsewhere.
    """
    settings = dataclasses.asdict(tokenizer.config) | {"field_order": list(tokenizer.config.field_order)}
    del settings["tokenizer"]
    return {"tokenizer": tokenizer.fingerprint(), **settings}


def differences(stored: Mapping[str, Any] | None, tokenizer: Tokenizer) -> list[str]:
    """How token ids made by `stored` (`made_by`; None: there are none) differ from those of `tokenizer`."""
    wanted = made_by(tokenizer)
    names = [] if stored is None else [n for n in sorted({*wanted, *stored}) if wanted.get(n) != stored.get(n)]
    return [f"its token ids were made with {_SAID.get(n, f'text.{n}')} {stored.get(n)}, this run has {wanted.get(n)}; "
            "write the shards again, with --records.tokenize=False to train from text" for n in names]  # fmt: skip


_SAID = {"tokenizer": "the tokenizer.json of sha256"}
