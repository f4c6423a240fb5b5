"""The table that mining writes and labels read: one row for each reason to put a document under a query."""

from __future__ import annotations

import pyarrow as pa

CANDIDATES_SCHEMA = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),  # one spelling for queries that are one
        pa.field("request_id", pa.string()),  # null for P1, P2 and P3, which belong to the query, not to one search
        pa.field("user_id", pa.int64()),  # who asked; null likewise
        pa.field("item_id", pa.int64(), nullable=False),  # negative: a document of knowledge.parquet
        pa.field("source", pa.string(), nullable=False),  # P0, P1, P2, P3, X3, U2 or F1
        pa.field("theta", pa.float32()),  # null where the source asks for no theta
        pa.field("evidence", pa.string()),  # P1: the reformulation's request; P2: the user; P3: the journal key
        pa.field("position", pa.int32()),  # P0, X3, U2, F1: its place in its stage of the search, from 1; else null
    ]
)
# Columns that are there only where they tell something.
TYPED = pa.field("typed", pa.string())  # the user's own spelling, where it is another than that of most: `query`
PLATFORM_ITEM = pa.field("platform_item_id", pa.string())  # the item as the platform names it, where ids are hashed
CANDIDATES_ORDER = ("query", "request_id", "source", "item_id")  # nulls first: a query's pool precedes its events
