"""Home Depot search relevance -> a judged collection folder (items.parquet, judgments.parquet).

    python data/homedepot/recipe.py PATH/train.csv.gz --out runs/homedepot/collection

Reads `train.csv` (or `train.csv.gz`) of the Kaggle competition "Home Depot Product Search Relevance": real queries,
real product titles, grades that are the mean of at least three raters on 1..3. The file is not part of this project.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import hashlib
import html
import io
import re
import sys
from pathlib import Path

from crops_jax.artifacts.folders import write_folder
from crops_jax.errors import InputError, run_command
from crops_jax.logs.tables import write_table
from crops_jax.normal_text import has_text, normal_form
from crops_jax.progress import progress
from crops_jax.simulate.collection import Rejects, item_columns, judgment_columns, one_line, opened, tell

COLUMNS = ("product_uid", "product_title", "search_term", "relevance")
_MOST = (1 << 63) - 1  # what an item id can be
_INTEGER, _NUMBER = re.compile(r"-?[0-9]{1,99}"), re.compile(r"-?[0-9]+([.][0-9]*)?")  # Python reads 1_0 as 10
SHA256 = "4a754892f569e565d91c73fd25fdc28cfb9ebd6777481228d008ae5a38244e2c"  # of the unpacked train.csv


def read_csv(path: Path) -> tuple[list[dict[str, str]], str]:
    """(rows, sha256 of the unpacked csv). Raises InputError when it cannot be read or lacks a column."""
    with opened(path, "no such file; it comes from the Kaggle competition, see data/homedepot/README.md") as stream:
        raw = stream.read()
    reader = csv.DictReader(io.StringIO(_decoded(path, raw), newline=""))
    try:
        names = reader.fieldnames or []
        problems = [f"column {c} is missing; found {names}" for c in COLUMNS if c not in names]
        problems += [f"column {c} is there {names.count(c)} times; leave one" for c in COLUMNS if names.count(c) > 1]
        if problems:
            raise InputError(str(path), problems)
        return list(reader), hashlib.sha256(raw).hexdigest()
    except csv.Error as error:
        line = reader.line_num + 1
        raise InputError(str(path), f"line {line}: {error}; is a quotation mark closed that opens there?") from None


def _decoded(path: Path, raw: bytes) -> str:
    """The text of the csv: Latin-1 as it was published, UTF-8 where somebody saved it again, with or without a mark."""
    try:
        return raw.decode("utf-8-sig")  # Latin-1 beyond ASCII is next to never UTF-8 by chance
    except UnicodeDecodeError as error:
        if raw.startswith(codecs.BOM_UTF8):
            raise InputError(str(path), f"begins as UTF-8 and is none ({error}); save it as UTF-8") from None
        return raw.decode("latin-1")


def parse(rows: list[dict[str, str]]) -> tuple[dict[int, str], dict[tuple[str, int], list[float]], Rejects]:
    """(title of each product, grades of each (query, product), what was rejected).

    Queries that are one query by `normal_form` are spelled as the first of them.
    """
    titles: dict[int, str] = {}
    spelling: dict[str, str] = {}
    grades: dict[tuple[str, int], list[float]] = {}
    rejects = Rejects()
    for number, row in enumerate(progress(rows, "reading judgments", unit="row"), 1):
        reason, parsed = _parse_row(row)
        if parsed is None:
            rejects.add(reason, f"row {number}")
            continue
        item, title, query, grade = parsed
        if titles.setdefault(item, title) != title:
            rejects.add("title differs from the product's first one (row kept)", f"row {number}")
        if (spelled := spelling.setdefault(normal_form(query), query)) != query:
            rejects.add(
                "query is another one but for case or invisible signs (row kept, as the first)", f"row {number}"
            )
        grades.setdefault((spelled, item), []).append(grade)
    return titles, grades, rejects


def _parse_row(row: dict[str, str]) -> tuple[str, tuple[int, str, str, float] | None]:
    title, query = (html.unescape(row[c] or "").strip() for c in ("product_title", "search_term"))
    uid, relevance = ((row[c] or "").strip() for c in ("product_uid", "relevance"))
    if not _INTEGER.fullmatch(uid) or not _NUMBER.fullmatch(relevance):
        return "product_uid or relevance is not a number", None
    item, grade = int(uid), float(relevance)
    if not 0 <= item <= _MOST or not 1.0 <= grade <= 3.0:
        return "product_uid is negative or above 64 bits, or relevance is outside 1..3", None
    if not has_text(title) or not has_text(query):
        return "empty product_title or search_term", None
    return "", (item, one_line(title), one_line(query), grade)


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
        raise InputError(str(source), f"no usable row; rejected: {dict(rejects.counts)}")
    ids = sorted(titles)
    judged, counts = judgment_columns(grades)
    with write_folder(out, kind="collection", config={"sha256": found}, inputs={"csv": source}) as folder:
        write_table("items", item_columns(ids, ocr_cover=[titles[i] for i in ids]), folder / "items.parquet")
        write_table("judgments", judged, folder / "judgments.parquet")
        folder.counts |= {"rows": len(rows), "items": len(ids), **counts, **rejects.facts()}
        return folder.counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="train.csv or train.csv.gz of the competition")
    parser.add_argument("--out", type=Path, required=True, help="the collection folder to write")
    parser.add_argument("--any-file", action="store_true", help="accept a csv whose sha256 is not the known one")
    args = parser.parse_args()
    tell(convert(args.csv, args.out, any_file=args.any_file), args.out)


if __name__ == "__main__":
    run_command(main)
