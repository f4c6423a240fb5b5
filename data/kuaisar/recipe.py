"""KuaiSAR (search and feed of one short-video app) -> a checked log folder.

    python data/kuaisar/recipe.py PATH/KuaiSAR_v2 --out runs/kuaisar/logs

Reads `src_inter.csv`, `rec_inter.csv` and `item_features.csv` of the unpacked archive (each may end in .gz). The data
set is not part of this project; data/kuaisar/README.md says where it is, under which terms, and what it cannot tell.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from crops_jax import check_logs
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError, run_command
from crops_jax.logs.foreign import Wanted, find
from crops_jax.logs.importing import DataSet, Split, add_split, engine_of, import_logs, split_of, tell
from crops_jax.logs.times import EARLIEST, LATEST

ABOUT = DataSet("KuaiSAR", "https://zenodo.org/records/8181109", "CC BY-NC-SA 4.0")
LEVELS = ("first", "second", "third", "fourth")
TABLES = (
    Wanted("src_inter", ("user_id", "search_session_id", "search_session_time", "search_session_timestamp", "keyword",
                         "item_id", "click_cnt", "item_type")),
    Wanted("rec_inter", ("user_id", "item_id", "playing_time", "duration_ms", "time", "timestamp", "click", "like")),
    Wanted("item_features", ("item_id", "caption"),
           tuple(f"{level}_level_category_{part}" for level in LEVELS for part in ("id", "name_en"))),
)  # fmt: skip
KINDS = ("VIDEO", "IMAGE_ATLAS")
ALL_KINDS = (*KINDS, "USER", "LIVE", "COMMODITY", "MUSIC", "ADVERT")


def convert(
    source: Path,
    out: Path,
    kinds: Sequence[str] = KINDS,
    split: Split | None = None,
    engine: EngineConfig | None = None,
) -> dict:
    """Writes the log folder, prints what was left out, checks and seals it, and returns what `import.json` in it holds.

    Raises:
      InputError: a file or a column is missing or damaged, or nothing is left for one of the days.
    """
    if unknown := [kind for kind in kinds if kind not in ALL_KINDS]:
        raise InputError("--kinds", f"{', '.join(unknown)}: KuaiSAR has {', '.join(ALL_KINDS)}")
    tables = find(source, TABLES)
    if any(not table.is_csv for table in tables.values()):
        raise InputError(str(source), "holds Parquet files; KuaiSAR comes as CSV, and that is what is read")
    values = {"kinds": ", ".join(f"'{kind}'" for kind in kinds), "earliest": str(EARLIEST), "latest": str(LATEST - 1)}
    sql = (Path(__file__).parent / "to_contract.sql").read_text()
    engine = engine or EngineConfig()
    facts = import_logs(ABOUT, tables, TABLES, sql, values, out, split or Split(utc_offset_h=8), engine)
    tell(facts, out)
    check_logs.run(out, engine=engine)
    return facts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, help="the folder that holds src_inter.csv, rec_inter.csv, item_features.csv"
    )
    parser.add_argument("--out", type=Path, required=True, help="the log folder to write")
    parser.add_argument("--kinds", nargs="+", default=KINDS, metavar="KIND",
                        help=f"results of search that are kept ({' '.join(KINDS)})")  # fmt: skip
    add_split(parser, utc_offset_h=8)
    args = parser.parse_args()
    convert(args.folder, args.out, args.kinds, split_of(args), engine_of(args))
    print("checked and sealed\nnext: python -m crops_jax.mine --config configs/kuaisar_sparse.py")


if __name__ == "__main__":
    run_command(main)
