"""A judged collection in the beir layout -> a judged collection folder (items, judgments, id_map).

    python data/beir/recipe.py PATH/scifact --out runs/beir/collection

Reads `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv` (each may end in .gz) of any collection in that layout. No
collection is part of this project.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from crops_jax.artifacts.folders import write_folder
from crops_jax.errors import InputError, run_command
from crops_jax.logs.checks import MAX_QUERY_CHARS
from crops_jax.logs.schema import MAX_GRADE
from crops_jax.logs.tables import write_batches, write_table
from crops_jax.normal_text import has_text, normal_form
from crops_jax.simulate.collection import (
    Problems,
    Rejects,
    item_columns,
    judgment_columns,
    lines,
    one_line,
    tell,
)
from crops_jax.stable_hash import hash_column, hash_texts

COLUMNS = ("query-id", "corpus-id", "score")
UNJUDGED = "queries without a usable judgment (left out)"
ID_MAP = pa.schema([pa.field("item_id", pa.int64(), nullable=False), pa.field("doc_id", pa.string(), nullable=False)])
_BATCH = 1 << 16  # documents in memory at a time
_SEEDS = 1 << 32


class Judgment(NamedTuple):
    """A line of the qrels."""

    line: int
    query: str
    document: str
    score: float


class Entry(NamedTuple):
    """A line of the corpus or of the queries; `title` of a query is empty."""

    line: int
    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The documents that are kept, in the order of their ids, which is that of their item ids."""

    ids: pa.Array
    line: np.ndarray
    """int64[n]: where each stands in the file."""
    facts: dict[str, int]


def find(folder: Path, name: str) -> Path:
    """The file of this name, or the one with .gz. Raises InputError unless there is exactly one."""
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if len(found) == 2:
        raise InputError(str(folder), f"holds both {name} and {name}.gz; move one of them away")
    if not found:
        place = folder / Path(name).parent
        here = sorted(path.name for path in place.iterdir())[:20] if place.is_dir() else []
        there = f"{place} holds {', '.join(here) or 'nothing'}" if place.is_dir() else f"there is no folder {place}"
        fix = "; name one with --qrels" if name.startswith("qrels/") else "; give the folder that holds corpus.jsonl"
        raise InputError(str(folder / name), f"no such file, nor with .gz; {there}{fix}")
    return found[0]


def read_qrels(path: Path, rejects: Rejects) -> list[Judgment]:
    """The judgments with a usable score.

    Raises:
      InputError: the header is another, a line has too many or too few columns, or is not UTF-8.
    """
    problems, found = Problems(path), []
    rows = lines(path, problems)
    first, header = next(rows, (1, ""))
    problems.end()  # of bytes that are no text nothing more can be said
    columns = [name.strip() for name in header.split("\t")]
    if any(columns.count(name) != 1 for name in COLUMNS):
        problems.add(first, _header_problem(header, columns))
        problems.end()
    places = [columns.index(name) for name in COLUMNS]
    for number, row in rows:
        fields = row.split("\t")
        if len(fields) != len(columns):
            problems.add(number, f"has {len(fields)} columns, the header has {len(columns)}; put one tab between two")
            continue
        query, document, written = (fields[place].strip() for place in places)
        score = _number(written)
        if score is None:
            rejects.add("score is not a number", f"{path.name} line {number}: {written!r}")
        elif not 0 <= score <= MAX_GRADE:
            rejects.add(f"score is negative or above {MAX_GRADE:g}", f"{path.name} line {number}: {written}")
        else:
            found.append(Judgment(number, query, document, score))
    problems.end()
    return found


def _number(text: str) -> float | None:
    try:
        value = math.nan if "_" in text else float(text)  # Python reads 1_0 as 10
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _header_problem(header: str, columns: list[str]) -> str:
    wanted = "<tab>".join(COLUMNS)
    if twice := [name for name in COLUMNS if columns.count(name) > 1]:
        return f"the header names {', '.join(twice)} twice, and which column is meant is not known; remove one"
    if not header:
        return f"the file is empty; its first line must be {wanted}"
    if {*COLUMNS} <= {*header.replace(",", " ").split()}:
        return f"the header's columns are separated by spaces or commas; put tabs between them, in every line: {wanted}"
    if _number(header.split()[-1]) is not None:
        said = f"is a judgment, the header is missing; put {wanted} on top"
        return f"{said}, and drop the second column of a TREC file" if len(header.split()) == 4 else said
    return f"the header names {', '.join(columns)}; it must name {', '.join(COLUMNS)}"


def entries(path: Path, problems: Problems) -> Iterator[Entry]:
    """The lines of a jsonl file that can be read."""
    for number, row in lines(path, problems):
        entry = _entry(number, row)
        if isinstance(entry, str):
            problems.add(number, entry)
        else:
            yield entry


def _entry(number: int, row: str) -> Entry | str:
    """One line, or what is wrong with it."""
    try:
        given = json.loads(row)
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error}); mend it, or get the file again if it is cut"
    if not isinstance(given, dict):
        return f"is not a JSON object but {type(given).__name__}; each line is one {{...}} with _id and text"
    missing = [name for name in ("_id", "text") if name not in given]
    if missing:
        return f"has no {' and no '.join(missing)}, it has {', '.join(map(str, given)) or 'nothing'}; name them so"
    name, title, text = given["_id"], given.get("title"), given["text"]
    title, text = ("" if value is None else value for value in (title, text))
    if isinstance(name, int) and not isinstance(name, bool):
        name = str(name)
    wrong = [field for field, value in (("_id", name), ("title", title), ("text", text)) if not isinstance(value, str)]
    if wrong:
        return f"{' and '.join(wrong)} must be text; write a string"
    if not name.strip():
        return "_id is empty; give it one"
    try:
        f"{name}{title}{text}".encode()
    except UnicodeEncodeError:
        return "holds half a character (a lone surrogate such as \\ud800); write the whole one"
    return Entry(number, name.strip(), one_line(title), one_line(text))


def read_queries(path: Path, judged: set[str], facts: Counter[str], rejects: Rejects) -> dict[str, str]:
    """id -> text of the judged queries. Raises InputError on a line that cannot be read, or on an id with two texts."""
    problems, found = Problems(path), {}
    for entry in entries(path, problems):
        if entry.id not in judged:
            facts[UNJUDGED] += 1
            continue
        before = found.setdefault(entry.id, entry)
        if before.text != entry.text:
            problems.add(entry.line, _two_texts(entry.id, before.line))
        elif before is not entry:
            rejects.add("query listed again with the same text", f"{path.name} line {entry.line}")
    problems.end()
    texts = {}
    for entry in found.values():
        if not has_text(entry.text):
            rejects.add("judged query without text", f"{path.name} line {entry.line}")
        elif len(entry.text) >= MAX_QUERY_CHARS:  # mining would leave out all searches for it
            rejects.add(f"judged query of {MAX_QUERY_CHARS} characters or more", f"{path.name} line {entry.line}")
        else:
            texts[entry.id] = entry.text
    return texts


def _two_texts(name: str, line: int) -> str:
    return f"_id {name!r} has another text in line {line}, and which of them was judged is not known; remove one"


def read_corpus(path: Path, judged: set[str], most: int | None, seed: int, rejects: Rejects) -> Corpus:
    """Which documents are kept: those with text, all of them or a sample that holds every judged one.

    It remembers the ids, and of each text a hash.

    Raises:
      InputError: a line cannot be read, an id has two texts, no document has text, or `most` is too few.
    """
    problems = Problems(path)
    ids, line, text, told = _scan(path, problems)
    order = pc.sort_indices(pa.table({"id": ids, "line": line}), [("id", "ascending"), ("line", "ascending")])
    ids, line, text, told = ids.take(order), line[order], text[order], told[order]
    again = np.zeros(len(ids), bool)
    again[1:] = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(again):
        if text[row] != text[row - 1]:
            problems.add(int(line[row]), _two_texts(ids[row].as_py(), int(line[row - 1])))
        else:
            rejects.add("document listed again with the same text", f"{path.name} line {line[row]}")
    problems.end()
    for number in np.sort(line[~again & ~told]):
        rejects.add("document without title and text", f"{path.name} line {number}")
    once = ~again & told
    if not once.any():
        raise InputError(str(path), f"holds no document with text; rejected: {dict(rejects.counts)}")
    ids, line = ids.filter(pa.array(once)), line[once]
    kept = np.ones(len(ids), bool)
    needed = pc.is_in(ids, value_set=pa.array(sorted(judged), pa.string())).to_numpy(zero_copy_only=False)
    if most is not None and most < len(ids):
        if most < needed.sum():
            raise InputError(f"--max-documents {most}", f"{needed.sum()} documents are judged, and all of them are "
                             "kept: give at least so many")  # fmt: skip
        kept = _sample(ids, needed, most, seed)
    facts = {
        "documents": len(ids), "items": int(kept.sum()), "judged documents": int(needed.sum()),
        "documents left out by --max-documents": int((~kept).sum()),
    }  # fmt: skip
    return Corpus(ids.filter(pa.array(kept)), line[kept], facts)


def _scan(path: Path, problems: Problems) -> tuple[pa.Array, np.ndarray, np.ndarray, np.ndarray]:
    """(ids, int64 lines, uint64 hashes of the texts, whether there is text) of the documents, in the file's order."""
    ids, line, text, told = [], [], [], []
    batch: list[Entry] = []

    def flush() -> None:
        ids.append(pa.array([entry.id for entry in batch], pa.string()))
        line.append(np.array([entry.line for entry in batch], np.int64))
        text.append(hash_texts(f"{entry.title}\n{entry.text}" for entry in batch))
        told.append(np.array([has_text(entry.title) or has_text(entry.text) for entry in batch], bool))
        batch.clear()

    for entry in entries(path, problems):
        batch.append(entry)
        if len(batch) == _BATCH:
            flush()
    flush()
    return pa.concat_arrays(ids), np.concatenate(line), np.concatenate(text), np.concatenate(told)


def _sample(ids: pa.Array, needed: np.ndarray, most: int, seed: int) -> np.ndarray:
    """bool[n]: every needed document, and of the others as many as there is room for."""
    others = np.flatnonzero(~needed)
    chosen = others[np.argsort(hash_column(ids.take(pa.array(others)), seed), kind="stable")[: most - needed.sum()]]
    kept = needed.copy()
    kept[chosen] = True
    return kept


def item_batches(path: Path, corpus: Corpus, facts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The items of the kept documents, in the order of the file: their texts are in memory batch by batch."""
    order = np.argsort(corpus.line, kind="stable")
    wanted, batch = corpus.line[order], []
    for number, row in lines(path, Problems(path)):  # read before: it holds no problems
        place = facts["items written"]
        if place == len(wanted):
            break
        if number != wanted[place]:
            continue
        batch.append(_entry(number, row))
        facts["items written"] += 1
        if len(batch) == _BATCH or place + 1 == len(wanted):
            facts["documents without a title"] += sum(not has_text(entry.title) for entry in batch)
            yield item_columns(
                order[place + 1 - len(batch) : place + 1],
                ocr_cover=[entry.title if has_text(entry.title) else None for entry in batch],
                photo_caption=[entry.text if has_text(entry.text) else None for entry in batch],
            )
            batch = []


def grades_of(
    judgments: list[Judgment], texts: dict[str, str], corpus: Corpus, qrels: Path, rejects: Rejects
) -> dict[tuple[str, int], list[float]]:
    """The scores of each (query, item). Queries that are one text are one query, spelled as the first id spells it."""
    spelling: dict[str, str] = {}
    for name in sorted(texts):
        spelling.setdefault(normal_form(texts[name]), texts[name])
    named = pa.array([judgment.document for judgment in judgments], pa.string())
    items = pc.index_in(named, value_set=corpus.ids).to_pylist()
    grades: dict[tuple[str, int], list[float]] = {}
    for judgment, item in zip(judgments, items, strict=True):
        place = f"{qrels.name} line {judgment.line}"
        if judgment.query not in texts:
            rejects.add("judgment of a query that is not there, or was left out", f"{place}: {judgment.query}")
        elif item is None:
            rejects.add("judgment of a document that is not there, or has no text", f"{place}: {judgment.document}")
        else:
            query = spelling[normal_form(texts[judgment.query])]
            grades.setdefault((query, item), []).append(judgment.score)
    return grades


def sharing(grades: dict[tuple[str, int], list[float]]) -> int:
    """How many queries share a document of a score above 0 with another one: users reformulate between these alone."""
    queries: dict[int, list[str]] = {}
    for (query, item), scores in grades.items():
        if max(scores) > 0:
            queries.setdefault(item, []).append(query)
    return len({query for several in queries.values() if len(several) > 1 for query in several})


def convert(source: Path, out: Path, *, qrels: str, max_documents: int | None, seed: int) -> dict[str, Any]:
    """Writes the collection folder and returns its counts. Raises InputError on a bad file."""
    if max_documents is not None and max_documents < 1:
        raise InputError(f"--max-documents {max_documents}", "is below 1")
    if not 0 <= seed < _SEEDS:
        raise InputError(f"--seed {seed}", f"must be from 0 to {_SEEDS - 1}")
    names = {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": f"qrels/{qrels}.tsv"}
    files = {kind: find(source, name) for kind, name in names.items()}
    rejects = Rejects()
    judgments = read_qrels(files["qrels"], rejects)
    facts: Counter[str] = Counter()
    texts = read_queries(files["queries"], {judgment.query for judgment in judgments}, facts, rejects)
    judged = {judgment.document for judgment in judgments if judgment.query in texts}
    corpus = read_corpus(files["corpus"], judged, max_documents, seed, rejects)
    grades = grades_of(judgments, texts, corpus, files["qrels"], rejects)
    with_grade = {normal_form(query) for query, _ in grades}
    facts[UNJUDGED] += sum(normal_form(text) not in with_grade for text in texts.values())
    columns, counts = judgment_columns(grades)
    if not any(grade > 0 for grade in columns["grade"]):
        raise InputError(str(files["qrels"]), "no usable judgment has a score above 0, so nothing is relevant; is it "
                         f"the qrels of this corpus? rejected: {dict(rejects.counts)}")  # fmt: skip
    config = {"qrels": qrels, "max_documents": max_documents, "seed": seed}
    with write_folder(out, kind="collection", config=config, inputs=files) as folder:
        write_batches("items", item_batches(files["corpus"], corpus, facts), folder / "items.parquet")
        write_table("judgments", columns, folder / "judgments.parquet")
        id_map = {"item_id": np.arange(len(corpus.ids)), "doc_id": corpus.ids}
        write_table(ID_MAP, id_map, folder / "id_map.parquet")
        folder.counts |= {
            **corpus.facts, "documents without a title": facts["documents without a title"], **counts,
            UNJUDGED: facts[UNJUDGED],
            "query ids with the text of another one (taken as one query)":
                len(texts) - len({normal_form(text) for text in texts.values()}),
            "queries that share a document of a score above 0": sharing(grades),
            "judgments of each grade": {f"{g:g}": n for g, n in sorted(Counter(columns["grade"]).items())},
            **rejects.facts(),
        }  # fmt: skip
        return folder.counts


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder that holds corpus.jsonl, queries.jsonl and qrels/")
    parser.add_argument("--out", type=Path, required=True, help="the collection folder to write")
    parser.add_argument("--qrels", default="test", metavar="NAME", help="which qrels/NAME.tsv (default: test)")
    parser.add_argument("--max-documents", type=int, metavar="N",
                        help="keep N documents: all judged ones and a seeded sample of the others")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of that sample")
    args = parser.parse_args()
    counts = convert(args.folder, args.out, qrels=args.qrels, max_documents=args.max_documents, seed=args.seed)
    tell(counts, args.out)
    if not counts["queries that share a document of a score above 0"]:
        print("warning: no two queries share a relevant document, so simulated users never put one need in other "
              "words: P1 and QR are empty, or hold what chance brings; where `mine` finds no QR, go on with "
              "--held_out.require_qr=False", file=sys.stderr)  # fmt: skip
    if len(counts["judgments of each grade"]) == 1:
        print("warning: all judgments have one grade: NDCG is 100 for every order, and `calibrate` has nothing to tell "
              "apart", file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    run_command(main)
