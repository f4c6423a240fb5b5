"""Qilin (search and feed of one social app, in Chinese) -> a checked log folder.

    python data/qilin/recipe.py PATH/Qilin --out runs/qilin/logs

Reads the Parquet tables `search_train`, `search_test`, `recommendation_train`, `recommendation_test` and `notes` of the
set, each a file or a folder of that name. The data set is not part of this project; data/qilin/README.md says where it
is, under which terms, and what it cannot tell.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa

from crops_jax import check_logs
from crops_jax.engines.config import EngineConfig
from crops_jax.errors import InputError, run_command
from crops_jax.logs.foreign import Found, Wanted, find
from crops_jax.logs.importing import DataSet, Split, add_split, engine_of, import_logs, split_of, tell
from crops_jax.logs.times import EARLIEST, LATEST

ABOUT = DataSet(
    "Qilin", "https://huggingface.co/datasets/THUIR/Qilin", "unclear: Apache-2.0 on its page, MIT in its code"
)
RESULTS, SHOWN = "search_result_details_with_idx", "rec_result_details_with_idx"
SEARCH = ("search_idx", "user_idx", "query", RESULTS)
FEED = ("request_idx", "user_idx", SHOWN)
TABLES = (
    *(Wanted(f"search_{part}", SEARCH) for part in ("train", "test")),
    *(Wanted(f"recommendation_{part}", FEED) for part in ("train", "test")),
    Wanted("notes", ("note_idx", "note_title", "note_content"), ("video_duration",)),
)
ACTS = ("like", "collect", "comment", "share")  # what says that somebody liked it
DETAILS = ("note_idx", "position", "click", "page_time")
STAMPS = {"search": ("search_timestamp",), "recommendation": ("request_timestamp", "timestamp")}


def convert(source: Path, out: Path, split: Split | None = None, engine: EngineConfig | None = None) -> dict:
    """Writes the log folder, prints what was left out, checks and seals it, and returns what `import.json` in it holds.

    Raises:
      InputError: a file, a column or a field of the details is missing, or nothing is left for one of the days.
    """
    tables = find(source, TABLES)
    problems, values = [], {"earliest": str(EARLIEST), "latest": str(LATEST - 1)}
    for kind, column in (("search", RESULTS), ("recommendation", SHOWN)):
        fields = {part: _fields(tables[f"{kind}_{part}"], column) for part in ("train", "test")}
        both = fields["train"] & fields["test"]
        stamp = next((name for name in STAMPS[kind] if name in both), None)
        missing = [name for name in DETAILS if name not in both] + ([] if stamp else [STAMPS[kind][0]])
        problems += [f"{kind}: {column} has no field {name}" for name in missing]
        acts = [f'acted(d."{name}")' for name in ACTS if name in both]
        values |= {f"{kind}_stamp": str(stamp), f"{kind}_liked": f"({' OR '.join(acts) or 'false'})"}
    if problems:
        raise InputError(str(source), problems)
    sql = (Path(__file__).parent / "to_contract.sql").read_text()
    engine = engine or EngineConfig()
    facts = import_logs(ABOUT, tables, TABLES, sql, values, out, split or Split(utc_offset_h=8), engine)
    tell(facts, out)
    check_logs.run(out, engine=engine)
    return facts


def _fields(table: Found, column: str) -> set[str]:
    """The fields of one result in a column that lists them."""
    kind = table.columns[column]
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return set()
    return {field.name for field in kind.value_type}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder that holds search_train and the other tables")
    parser.add_argument("--out", type=Path, required=True, help="the log folder to write")
    add_split(parser, utc_offset_h=8)
    args = parser.parse_args()
    convert(args.folder, args.out, split_of(args), engine_of(args))
    print("checked and sealed\nnext: python -m crops_jax.mine --config configs/qilin.py")


if __name__ == "__main__":
    run_command(main)
