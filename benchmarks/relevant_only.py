"""`python benchmarks/relevant_only.py FROM TO [MINED] [--sources P1,P2] [--keep 0] [--theta ALPHA]`: purer sources.

FROM is the workdir of a benchmark's world, TO a new one with the same logs and test sets. Candidates of these sources
are left out there whose pair is not relevant, by judgments or by the truth of a simulated world; --keep: but for this
share of them, drawn by a hash. So it is seen what the engine would bring were all that it finds wanted
(docs/homedepot.md), and what low rungs cost by how pure they are (docs/ladder.md). --theta leaves out those whose theta
is not above ALPHA, as a team without judgments could. Then: python -m crops_jax.bench --configs FILE --workdir=TO ...
MINED is a folder that `mine` wrote from the same logs: without threshold, say, it makes TO that of a theta which
errs never. Of it come the candidates; TO/mined says that it is FROM's, or the benchmark would mine anew.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import read_manifest, require_made_from
from crops_jax.command_line import number, take_option
from crops_jax.errors import InputError, run_command
from crops_jax.handover.cards import CARD
from crops_jax.labels import LETTERS
from crops_jax.logs.folder import open_logs
from crops_jax.mining.work import theta_cache
from crops_jax.models import theta
from crops_jax.models.config import ThetaConfig
from crops_jax.normal_text import normal_form
from crops_jax.purity import theta_of
from crops_jax.records import read_items
from crops_jax.stable_hash import hash_texts

SHARED = ("logs", "testsets", "validation_sets", "theta.cache", "frozen_states", "tokenizer")
Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (queries str[n], items int64[n]) -> bool[n], whether relevant


def main() -> None:
    """Writes TO/mined and links everything else that all arms share."""
    given, places = {}, sys.argv[1:]
    for name in ("--sources", "--keep", "--theta"):
        given[name], places = take_option(places, name)
    sources, keep = (given["--sources"] or "P1,P2").split(","), number("--keep", given["--keep"] or "0", float)
    if len(places) not in (2, 3):
        raise InputError("usage", __doc__.partition("`")[2].partition("`")[0])
    if strange := set(sources).difference(LETTERS):
        raise InputError("--sources", f"{', '.join(sorted(strange))}: not among {', '.join(LETTERS)}")
    source, target, mined = (Path(place).resolve() for place in [*places, f"{places[0]}/mined"][:3])
    require_made_from(mined, "logs", source / "logs", "python -m crops_jax.mine --config FILE")
    target.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        if (source / name).exists() and not (target / name).exists():
            (target / name).symlink_to(source / name)
    manifest = read_manifest(source / "mined", "mined")
    wanted = relevant = by_grades(source)
    if given["--theta"] is not None:
        wanted = by_theta(source, manifest["config"]["theta"], number("--theta", given["--theta"], float))
    with write_folder(
        target / "mined", kind="mined", config=manifest["config"], inputs={"logs": target / "logs"}
    ) as out:
        shutil.copytree(mined, out / ".", dirs_exist_ok=True, ignore=lambda _, names: {"manifest.json", CARD})
        for path in sorted((out / "candidates.parquet").glob("*.parquet")):
            pq.write_table(purer(pq.read_table(path), sources, wanted, relevant, keep), path, write_page_checksum=True)
        found = pq.read_table(out / "candidates.parquet", columns=["source"])["source"].value_counts().to_pylist()
        left = {count["values"]: count["counts"] for count in found}
        out.counts.update(manifest["counts"] | left | {"candidates": sum(left.values())})


def purer(table: pa.Table, sources: list[str], wanted: Judge, relevant: Judge, keep: float) -> pa.Table:
    """Candidates without most of the unwanted ones of some sources; prints what is left of each, and how pure it is."""
    query, item, source = (table[name].to_numpy() for name in ("query", "item_id", "source"))
    drawn = hash_texts([f"{q}\0{i}" for q, i in zip(query, item, strict=True)]) < keep * 2.0**64
    kept = ~np.isin(source, sources) | wanted(query, item) | drawn
    good = relevant(query, item)
    for name in sources:
        own = source == name
        before, after = (good[rows].mean() if rows.any() else 0 for rows in (own, own & kept))
        print(f"{name}: {own.sum()} candidates, {before:.1%} relevant; {(own & kept).sum()} are kept, {after:.1%}")
    return table.filter(pa.array(kept))


def by_grades(world: Path) -> Judge:
    """Pairs whose grade is that of what was never exposed, or above."""
    logs = open_logs(world / "logs")
    least = read_manifest(world / "testsets", "testsets")["config"]["held_out"]["min_grade"]
    wanted = {pair for pair, grade in logs.grades().items() if grade >= least}

    def relevant(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
        forms = {query: normal_form(query) for query in set(queries.tolist())}
        return np.array([(forms[q], i) in wanted for q, i in zip(queries.tolist(), items.tolist(), strict=True)], bool)

    return relevant


def by_theta(world: Path, config: dict[str, Any], alpha: float) -> Judge:
    """Pairs whose theta is above `alpha`; documents without text are none."""
    model = theta.load(ThetaConfig(**{k: v for k, v in config.items() if k != "type"}), theta_cache(world))
    known = read_items(world / "logs", world / "mined/knowledge.parquet")

    def relevant(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
        there, scores = theta_of(queries, items, known, model)
        found = np.zeros(len(queries), bool)
        found[there] = scores > alpha
        return found

    return relevant


if __name__ == "__main__":
    run_command(main)
