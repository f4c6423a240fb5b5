"""What each user searched on a day, and how often: what completions of popular queries and of one's own are made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.artifacts.manifest import verify
from crops_jax.engines import files
from crops_jax.suggestions.day import TypingDay

if TYPE_CHECKING:
    from ibis.expr.types import Table

SEARCHED = pa.schema(
    [
        pa.field("query", pa.string(), False),
        pa.field("user_id", pa.int64()),  # null: nobody knows; all such searches of a query in one row
        pa.field("times", pa.int64(), False),
        pa.field("last_ts", pa.int64(), False),
    ]
)
SEARCHED_ORDER = ("query", "user_id")


def searched_queries(day: TypingDay) -> Table:
    """Rows of `SEARCHED`: how often a user searched a query, and when last."""
    import ibis

    nobody = day.anonymous.mutate(user_id=ibis.null("int64"))
    rows = day.searches.select("query", "user_id", "ts").union(nobody.select("query", "user_id", "ts"))
    return rows.group_by(["query", "user_id"]).aggregate(times=rows.count(), last_ts=rows.ts.max())


def read_searched(mined: str | Path) -> pa.Table:
    """The rows of `SEARCHED` in a folder of `mined_day.mine_suggestions`.

    Raises:
      InputError: the folder is another kind, not complete, or damaged.
    """
    verify(mined, "mined_suggestions", only=("searched",))
    return pa.concat_tables([files.read(path) for path in files.part_files(Path(mined) / "searched")])


def dictionary(searched: pa.Table) -> list[str]:
    """The different queries of rows of `SEARCHED`, sorted."""
    return sorted(pc.unique(searched["query"]).to_pylist())
