"""`python benchmarks/judged_only.py FROM TO [MINED] [--sources P1,P2]`: a benchmark's world with relevant pairs alone.

FROM is the workdir of a benchmark's world, TO a new one with the same logs and test sets. Candidates of these sources
are left out there whose pair is not relevant, by judgments or by the truth of a simulated world. So it is seen what the
engine would bring were all that it finds wanted (docs/homedepot.md), and what low rungs would cost were they pure
(docs/ladder.md): python -m crops_jax.bench --configs FILE --out OUT --workdir=TO
MINED is a folder that `mine` wrote from the same logs: without threshold, say, it makes TO that of a theta which
errs never. Of it come the candidates; TO/mined says that it is FROM's, or the benchmark would mine anew.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import read_manifest, require_made_from
from crops_jax.command_line import take_option
from crops_jax.logs.folder import open_logs
from crops_jax.normal_text import normal_form

FOUND = "P1,P2"


def main() -> None:
    """Writes TO/mined and links everything else that all arms share."""
    sources, places = take_option(sys.argv[1:], "--sources")
    source, target, mined = (Path(place).resolve() for place in [*places, f"{places[0]}/mined"][:3])
    require_made_from(mined, "logs", source / "logs", "python -m crops_jax.mine --config FILE")
    target.mkdir(parents=True, exist_ok=True)
    for name in ("logs", "testsets", "validation_sets", "theta.cache", "frozen_states", "tokenizer"):
        if (source / name).exists() and not (target / name).exists():
            (target / name).symlink_to(source / name)
    wanted = _relevant(source)
    manifest = read_manifest(source / "mined", "mined")
    with write_folder(
        target / "mined", kind="mined", config=manifest["config"], inputs={"logs": target / "logs"}
    ) as out:
        shutil.copytree(mined, out / ".", dirs_exist_ok=True, ignore=lambda _, names: {"manifest.json"})
        for path in sorted((out / "candidates.parquet").glob("*.parquet")):
            table = pq.read_table(path)
            kept = _kept(table, wanted, (sources or FOUND).split(","))
            print(f"{path.name}: {table.num_rows} candidates, {table.num_rows - kept.num_rows} left out")
            pq.write_table(kept, path, write_page_checksum=True)
        out.counts.update(manifest["counts"])


def _relevant(world: Path) -> set[tuple[str, int]]:
    """The (query, item) pairs whose grade is that of what was never exposed, or above."""
    logs = open_logs(world / "logs")
    least = read_manifest(world / "testsets", "testsets")["config"]["held_out"]["min_grade"]
    table = logs.read(logs.graded_by)
    rows = zip(*(table[name].to_pylist() for name in ("query", "item_id", "grade")), strict=True)
    return {(normal_form(query), item) for query, item, grade in rows if grade >= least}


def _kept(table: pa.Table, wanted: set[tuple[str, int]], sources: list[str]) -> pa.Table:
    forms = {q: normal_form(q) for q in table["query"].unique().to_pylist()}
    known = [
        (forms[q], i) in wanted for q, i in zip(table["query"].to_pylist(), table["item_id"].to_pylist(), strict=True)
    ]
    return table.filter(pc.or_(pc.invert(pc.is_in(table["source"], pa.array(sources))), pa.array(known)))


if __name__ == "__main__":
    main()
