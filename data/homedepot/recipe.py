"""Home Depot search relevance -> a judged collection folder (items.parquet, judgments.parquet).

    python data/homedepot/recipe.py PATH/train.csv.gz --out runs/homedepot/collection

Reads `train.csv` (or `train.csv.gz`) of the Kaggle competition "Home Depot Product Search Relevance": real queries,
real product titles, grades that are the mean of at least three raters on 1..3. The file is not part of this project.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import html
import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from crops_jax.artifacts import write_folder
from crops_jax.errors import InputError, run_command
from crops_jax.logs.schema import ITEMS, arrow_schema
from crops_jax.logs.tables import write_table
from crops_jax.normal_text import has_text
from crops_jax.progress import progress

COLUMNS = ("product_uid", "product_title", "search_term", "relevance")
SHA256 = "4a754892f569e565d91c73fd25fdc28cfb9ebd6777481228d008ae5a38244e2c"  # of the unpacked train.csv


def read_csv(path: Path) -> tuple[list[dict[str, str]], str]:
    """(rows, sha256 of the unpacked csv). Raises InputError when it cannot be read or lacks a column."""
    if not path.is_file():
        raise InputError(
            str(path), "no such file; the data come from the Kaggle competition, see data/homedepot/README.md"
        )
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(str(path), f"cannot be unpacked ({error}); it is cut or damaged") from None
    reader = csv.DictReader(io.StringIO(raw.decode("latin-1"), newline=""))
    missing = [c for c in COLUMNS if c not in (reader.fieldnames or [])]
    if missing:
        raise InputError(str(path), [f"column {c} is missing; found {reader.fieldnames}" for c in missing])
    return list(reader), hashlib.sha256(raw).hexdigest()


def parse(rows: list[dict[str, str]]) -> tuple[dict[int, str], dict[tuple[str, int], list[float]], Counter[str]]:
    """(title of each product, grades of each (query, product), rejected rows by reason)."""
    titles: dict[int, str] = {}
    grades: dict[tuple[str, int], list[float]] = {}
    rejects: Counter[str] = Counter()
    for row in progress(rows, "reading judgments", unit="row"):
        reason, parsed = _parse_row(row)
        if parsed is None:
            rejects[reason] += 1
            continue
        item, title, query, grade = parsed
        if titles.setdefault(item, title) != title:
            rejects["title differs from the product's first one (row kept)"] += 1
        grades.setdefault((query, item), []).append(grade)
    return titles, grades, rejects


def _parse_row(row: dict[str, str]) -> tuple[str, tuple[int, str, str, float] | None]:
    title, query = (html.unescape(row[c] or "").strip() for c in ("product_title", "search_term"))
    try:
        item, grade = int(row["product_uid"] or ""), float(row["relevance"] or "")
    except ValueError:
        return "product_uid or relevance is not a number", None
    if item < 0 or not 1.0 <= grade <= 3.0:
        return "product_uid is negative or relevance is outside 1..3", None
    if not has_text(title) or not has_text(query):
        return "empty product_title or search_term", None
    return "", (item, " ".join(title.split()), " ".join(query.split()), grade)


def convert(source: Path, out: Path, *, any_file: bool) -> dict[str, int]:
    """Writes the collection folder and returns its counts. Raises InputError on a bad file."""
    rows, found = read_csv(source)
    if found != SHA256:
        message = f"sha256 of the csv is {found}, the known file has {SHA256}"
        if not any_file:
            raise InputError(str(source), f"{message}; pass --any-file to use it all the same")
        print(f"warning: {source}: {message}", file=sys.stderr)
    titles, grades, rejects = parse(rows)
    if not grades:
        raise InputError(str(source), f"no usable row; rejected: {dict(rejects)}")
    ids, pairs = sorted(titles), sorted(grades)
    items = {c: pa.nulls(len(ids), ITEMS[c].type) for c in ITEMS}
    items |= {"item_id": pa.array(ids, pa.int64()), "ocr_cover": pa.array([titles[i] for i in ids])}
    judged = {
        "query": [q for q, _ in pairs], "item_id": [i for _, i in pairs], "grade": [np.mean(grades[p]) for p in pairs],
    }  # fmt: skip
    with write_folder(out, kind="collection", config={"sha256": found}, inputs={"csv": source}) as folder:
        write_table(arrow_schema("items"), items, folder / "items.parquet")
        write_table(arrow_schema("judgments"), judged, folder / "judgments.parquet")
        folder.counts |= {
            "rows": len(rows), "items": len(ids), "judgments": len(pairs), "queries": len({q for q, _ in pairs}),
            "pairs judged more than once (mean taken)": sum(len(g) > 1 for g in grades.values()),
            "rejects": dict(sorted(rejects.items())),
        }  # fmt: skip
        return folder.counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="train.csv or train.csv.gz of the competition")
    parser.add_argument("--out", type=Path, required=True, help="the collection folder to write")
    parser.add_argument("--any-file", action="store_true", help="accept a csv whose sha256 is not the known one")
    args = parser.parse_args()
    for name, value in convert(args.csv, args.out, any_file=args.any_file).items():
        print(f"{name}: {value}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    run_command(main)
