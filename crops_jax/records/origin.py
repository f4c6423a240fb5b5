"""What shards and runs are made of: the mined folder, told by its bytes rather than by who sealed it, and when."""

from __future__ import annotations

from pathlib import Path

from crops_jax.artifacts.manifest import digest_of_tables, read_manifest, was_made_from
from crops_jax.errors import InputError
from crops_jax.logs.schema import PLACES

MADE_OF = "made_of"  # in the counts of written shards: `mined_identity`


def mined_identity(logs: Path, mined: Path) -> dict[str, str]:
    """What a run reads of the mined folder and of the items that it names, for run.json. It is the same when they are
    mined or sealed again with the same bytes.
    """
    return {
        "candidates": digest_of_tables(mined, ("candidates.parquet", "knowledge.parquet")),
        "items": digest_of_tables(logs, (PLACES["items"],)),
    }


def require_shards_of(records: Path, logs: Path, mined: Path, mend: str) -> None:
    """Raises InputError where shards were made from another mining than this, or from one of other bytes."""
    made = read_manifest(records, "records")
    if "mined" not in made["inputs"] or was_made_from(records, "mined", mined):
        return
    if made["counts"].get(MADE_OF) != mined_identity(logs, mined):
        raise InputError(str(records), f"was made from another {mined}; {mend}")
