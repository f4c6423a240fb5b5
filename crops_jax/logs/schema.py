"""The log contract: the tables a platform hands over, their columns, types and meaning.

A log folder holds `items.parquet`, optionally `judgments.parquet`, and one sub-folder a day (`train/`, `test/`)
with `searches.parquet`, `candidates.parquet` and `feed.parquet`. A day may also tell what was suggested to users who
typed: `suggestions.parquet`, `suggested.parquet`, `followed.parquet`. `data/README.md` tells the same to people.

The types here are those inside the program. What lies on disk may have any type that casts to them without loss
(`casts`). Times are milliseconds since the epoch, UTC; durations are milliseconds; ids of items are not negative
(negative ids belong to documents a language model wrote).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

STAGES = ("filtered", "ranked", "exposed")  # how far a candidate got: cut after pre-rank, ranked only, shown
TEXT_FIELDS = ("ocr_cover", "photo_caption", "keyword", "click_query")  # the paper's Listing 1, in its order
LIST_FIELDS = ("keyword", "click_query")  # those whose entries `|` separates
COUNTERS = ("play_cnt", "like_cnt", "long_view_cnt", "download_cnt")
MAX_GRADE = 50.0  # NDCG adds gains of 2^grade: above, a float drops the smaller ones, and at 1024 it is infinite

Role = Literal["", "user", "item", "time", "span"]


@dataclass(frozen=True)
class Column:
    """One column: its Arrow type and what it means; `nullable` columns may hold nulls.

    `role` says how it is read: an id of a user or an item, a moment, a span of time; "" as its type alone says. A user
    may be null on disk: nobody knows who it was. What this program writes names everybody.
    """

    type: pa.DataType
    meaning: str
    nullable: bool = False
    role: Role = ""

    @property
    def may_be_null(self) -> bool:
        """Whether a null may stand in it on disk."""
        return self.nullable or self.role == "user"


SEARCHES = {
    "request_id": Column(pa.string(), "one search request; unique"),
    "user_id": Column(pa.int64(), "who asked", role="user"),
    "query": Column(pa.string(), "the query as typed"),
    "ts": Column(pa.int64(), "when, ms since the epoch", role="time"),
}
CANDIDATES = {
    "request_id": Column(pa.string(), "the search it belongs to"),
    "item_id": Column(pa.int64(), "the candidate", role="item"),
    "stage": Column(pa.string(), "how far it got: filtered | ranked | exposed"),
    "position": Column(pa.int32(), "place in its stage's order, from 1"),
    "clicked": Column(pa.bool_(), "the user clicked it (exposed rows only)"),
    "liked": Column(pa.bool_(), "the user liked it (exposed rows only)"),
    "watch_ms": Column(pa.int64(), "how long it was watched, ms", role="span"),
}
FEED = {
    "user_id": Column(pa.int64(), "who watched", role="user"),
    "item_id": Column(pa.int64(), "what the recommendation feed showed", role="item"),
    "ts": Column(pa.int64(), "when, ms since the epoch", role="time"),
    "clicked": Column(pa.bool_(), "the user opened it"),
    "liked": Column(pa.bool_(), "the user liked it"),
    "watch_ms": Column(pa.int64(), "how long it was watched, ms", role="span"),
    "duration_ms": Column(pa.int64(), "how long the video is, ms", role="span"),
}
ITEMS = {
    "item_id": Column(pa.int64(), "the item; unique, not negative", role="item"),
    "ocr_cover": Column(pa.string(), "text on the cover, or the title", nullable=True),
    "photo_caption": Column(pa.string(), "the caption or description", nullable=True),
    "keyword": Column(pa.string(), "tags, separated by |", nullable=True),
    "click_query": Column(pa.string(), "queries that led to clicks, separated by |", nullable=True),
    **{name: Column(pa.int64(), "a counter of the item", nullable=True) for name in COUNTERS},
}
JUDGMENTS = {
    "query": Column(pa.string(), "the judged query"),
    "item_id": Column(pa.int64(), "the judged item", role="item"),
    "grade": Column(pa.float64(), "human grade; larger is more relevant"),
}
SUGGESTIONS = {
    "request_id": Column(pa.string(), "one request for suggestions; unique"),
    "user_id": Column(pa.int64(), "who typed", role="user"),
    "prefix": Column(pa.string(), "what had been typed so far"),
    "ts": Column(pa.int64(), "when, ms since the epoch", role="time"),
}
SUGGESTED = {
    "request_id": Column(pa.string(), "the request for suggestions that it belongs to"),
    "query": Column(pa.string(), "the suggested query"),
    "position": Column(pa.int32(), "place in the order of the suggestions, from 1"),
    "shown": Column(pa.bool_(), "the user was shown it; otherwise it was considered and cut"),
    "clicked": Column(pa.bool_(), "the user took it (shown rows only)"),
}
FOLLOWED = {
    "request_id": Column(pa.string(), "the request for suggestions of which one was taken"),
    "query": Column(pa.string(), "the suggestion that was taken"),
    "item_id": Column(pa.int64(), "what the user clicked in the results of that query", role="item"),
    "ordered": Column(pa.bool_(), "and ordered"),
    "ts": Column(pa.int64(), "when it was clicked, ms since the epoch", role="time"),
}
TRUTH = dict(JUDGMENTS)  # of simulated worlds: the grades of all pairs
TABLES = {
    "searches": SEARCHES,
    "candidates": CANDIDATES,
    "feed": FEED,
    "suggestions": SUGGESTIONS,
    "suggested": SUGGESTED,
    "followed": FOLLOWED,
    "items": ITEMS,
    "judgments": JUDGMENTS,
    "truth": TRUTH,
}
DAY_TABLES = ("searches", "candidates", "feed")
TYPING_TABLES = ("suggestions", "suggested", "followed")  # of a day, where the platform logs what it suggests
PLACES = {"items": "items.parquet", "judgments": "judgments.parquet", "truth": "truth/relevance.parquet"}


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table of the contract."""
    return pa.schema(
        [pa.field(n, c.type, nullable=c.nullable, metadata={"meaning": c.meaning}) for n, c in TABLES[table].items()]
    )
