"""A data set of other people as a log folder: a recipe's SQL makes the tables, and time splits them into days.

The SQL reads the views of `foreign`, may call the macros `acted` and `whole`, and leaves tables `searches`,
`candidates`, `feed` and `items` with the columns of the contract (`schema`), times in milliseconds. Into `rejects`
(reason, rows, example) it inserts what it leaves out. DuckDB does all of it out of core.
Lines that begin with `-- stage:` name what comes after them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crops_jax.artifacts.folders import Folder, write_folder, write_json
from crops_jax.artifacts.manifest import MANIFEST
from crops_jax.artifacts.walk import hidden, walk
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.duckdb import DuckDB, open_engine
from crops_jax.engines.files import Sorted
from crops_jax.errors import InputError
from crops_jax.logs import foreign
from crops_jax.logs.casts import EXACT
from crops_jax.logs.checks import NO_FEED
from crops_jax.logs.foreign import Found, Wanted
from crops_jax.logs.foreign_values import NOT_TEXT, ROUNDED, cut
from crops_jax.logs.id_map import MAP_FOLDER
from crops_jax.logs.schema import TABLES
from crops_jax.logs.times import moment_told
from crops_jax.progress import stage

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend
    from ibis.expr.types import Table

IMPORT = "import.json"  # in the log folder: what it was made from, and what was left out
_DAY_MS = 86_400_000
_STAGE = "-- stage:"
# Whether something was done, of a count or a flag: NaN, which DuckDB takes for the largest number, is none. The whole
# number of an id: DuckDB rounds 7.5 to 8, which is somebody else's; and a float that cannot tell its neighbours apart
# is two persons, as is a text with an exponent and fewer digits.
_MACROS = f"""
CREATE TEMP MACRO acted(value) AS coalesce(nullif(try_cast(value AS DOUBLE), 'nan'::DOUBLE), 0) > 0;
CREATE TEMP MACRO whole(value) AS CASE
  WHEN isfinite(try_cast(value AS DOUBLE)) AND abs(try_cast(value AS DOUBLE)) >=
    CASE typeof(value) WHEN 'FLOAT' THEN {EXACT[pa.float32()]} WHEN 'DOUBLE' THEN {EXACT[pa.float64()]} END
    THEN error(value::VARCHAR || ' {ROUNDED}')
  WHEN typeof(value) = 'VARCHAR' AND {cut("value::VARCHAR")} THEN error(value::VARCHAR || ' {ROUNDED}')
  WHEN try_cast(value AS DOUBLE) % 1 = 0 THEN try_cast(value AS BIGINT) END;
"""
_DAYS, _OF_DAY = ("train", "validation", "test"), ("searches", "candidates", "feed")
_INVALID = "Invalid Input Error: "
_FARTHEST_H = 14  # of any clock from UTC
_MOST_DAYS = 10_000
_FULL = 0.1  # of a day's usual searches: a day with fewer is cut off, or a clock that went wrong


@dataclass(frozen=True)
class DataSet:
    """Where a data set comes from, and under which terms."""

    name: str
    source: str
    licence: str


@dataclass(frozen=True)
class Split:
    """How many days each part takes, counted back from the end of the last one; a day begins at `utc_offset_h`."""

    train: int = 30
    validation: int = 1
    test: int = 1
    last: str = ""
    utc_offset_h: float = 0.0

    def offset_ms(self) -> int:
        """What a day begins before UTC's, ms. Raises InputError where no clock is set so."""
        if not abs(self.utc_offset_h) <= _FARTHEST_H:
            raise InputError(
                f"--utc-offset {self.utc_offset_h:g}", f"is not between -{_FARTHEST_H} and {_FARTHEST_H} hours"
            )
        return round(self.utc_offset_h * 3_600_000)


def add_split(parser: argparse.ArgumentParser, utc_offset_h: float) -> None:
    """The flags of a `Split`, and those of the engine."""
    parser.add_argument("--train-days", type=int, default=30, help="days that are mined (30)")
    parser.add_argument("--validation-days", type=int, default=1, help="days after them, for settings (1; 0 for none)")
    parser.add_argument("--test-days", type=int, default=1, help="days after these, for evaluation alone (1)")
    parser.add_argument("--last-day", default="", metavar="YYYY-MM-DD", help="the last test day (the last full one)")
    parser.add_argument("--utc-offset", type=float, default=utc_offset_h, metavar="HOURS",
                        help=f"where days begin, in hours east of UTC ({utc_offset_h:g})")  # fmt: skip
    parser.add_argument("--memory-limit", default=EngineConfig.memory_limit, help="of DuckDB (4GB)")
    parser.add_argument("--temp-directory", default="", help="where DuckDB spills")


def split_of(args: argparse.Namespace) -> Split:
    """The `Split` of the flags."""
    return Split(args.train_days, args.validation_days, args.test_days, args.last_day, args.utc_offset)


def engine_of(args: argparse.Namespace) -> EngineConfig:
    """The engine of the flags."""
    return EngineConfig(memory_limit=args.memory_limit, temp_directory=args.temp_directory)


def import_logs(
    about: DataSet, tables: Mapping[str, Found], wanted: Sequence[Wanted], sql: str, values: Mapping[str, str],
    out: Path, split: Split, engine: EngineConfig,
) -> dict[str, Any]:  # fmt: skip
    """Writes the log folder `out`, still unchecked, and returns what `import.json` in it holds.

    Args:
      tables: the tables of the data set by name (`foreign.find`).
      sql: the recipe's SQL; `$name` in it is replaced by `values[name]`.

    Raises:
      InputError: a file is damaged, the SQL meets a type that it does not know, the days cannot be split, or `out`
        holds what no import wrote.
    """
    _require_own(out)
    with (
        tempfile.TemporaryDirectory(prefix="crops-links-") as links,
        write_folder(out, kind="unchecked logs") as folder,
    ):
        with stage("hashing the files of the data set"):  # first: of a damaged file nothing else is worth knowing
            files = foreign.fingerprints(tables.values())
        foreign.link(tables.values(), Path(links))
        places = {file.resolve().parent for table in tables.values() for file in table.files}  # where the links lead
        with open_engine(engine, [folder.path, links, *sorted(places)]) as opened:
            connection = opened.connection
            for table in wanted:
                foreign.view(connection, tables[table.name], table, Path(links))
            connection.con.execute(_MACROS + "CREATE TEMP TABLE rejects (reason VARCHAR, rows BIGINT, example VARCHAR)")
            _run(connection, Template(sql).substitute(values), about, list(tables.values()))
            rejects = foreign.broken_lines(connection, list(tables.values()))
            rejects += connection.con.execute("FROM rejects WHERE rows > 0 ORDER BY reason").fetchall()
            left_out = {reason: {"rows": n, "example": example} for reason, n, example in rejects}
            days = _days(connection, split, left_out)
            with stage("writing the days"):
                rows, outside = _write(opened, folder, days)
        facts = {
            "data set": about.name, "source": about.source, "licence": about.licence,
            "days": {day: [moment_told(moment) for moment in ends] for day, ends in days.items()},
            "rows": rows, "rows outside these days": outside,
            "rejects": left_out, "files": files,
        }  # fmt: skip
        write_json(folder / IMPORT, facts)
        return facts


def _require_own(out: Path) -> None:
    """Raises InputError where a log folder holds more than an import and its check write: it would go with them."""
    if not (out / MANIFEST).is_file():
        return  # nothing, or what `write_folder` does not replace
    own = {Path(name) for name in ("items.parquet", IMPORT, MANIFEST)}
    own |= {Path(day, f"{name}.parquet") for day in _DAYS for name in _OF_DAY}
    files = sorted(path.relative_to(out) for path, _ in walk(out, hidden))
    if other := [str(file) for file in files if file not in own and file.parts[0] != MAP_FOLDER]:
        told = f"holds {', '.join(other[:5])}, which no import wrote and this one would remove: move it away, and back "
        raise InputError(str(out), f"{told}afterwards, or give another --out")


def tell(facts: Mapping[str, Any], out: Path) -> None:
    """Prints what was written, and what was left out, a line a reason: before the check, which may fail for these."""
    for day, (first, end) in facts["days"].items():
        held = ", ".join(f"{n} {name}" for name, n in facts["rows"][day].items())
        print(f"{day}: {first} to {end}: {held}")
        if facts["rows"][day]["feed"] == 0:
            print(f"{day}: {NO_FEED}")
    print(f"items: {facts['rows']['items']}")
    for name, n in facts["rows outside these days"].items():
        print(f"outside these days: {n} {name}")
    print(*_reasons(facts["rejects"]), sep="\n", end="\n" if facts["rejects"] else "")
    print(f"licence of the data: {facts['licence']}\nwrote {out}")


def _reasons(rejects: Mapping[str, Any]) -> list[str]:
    return [f"left out: {r['rows']} x {reason} (for instance: {r['example']})" for reason, r in rejects.items()]


def _with_reasons(problem: str, left_out: Mapping[str, Any]) -> str:
    """A problem, and below it what was left out, which may be why."""
    return "\n  ".join([problem, *_reasons(left_out)])


def _run(connection: Backend, sql: str, about: DataSet, tables: Sequence[Found]) -> None:
    import duckdb

    for title, statements in _sections(sql):
        try:
            with stage(title):
                connection.con.execute(statements)
        except (duckdb.ProgrammingError, duckdb.DataError, duckdb.InvalidInputException, duckdb.IOException) as error:
            if told := foreign.why_unread(error, tables):
                raise InputError(f"{about.name}: {title}", told) from error
            if isinstance(error, duckdb.IOException):
                raise  # the machine's: the engine tells it
            said = str(error).strip().split("\n")[0]
            hint = "" if any(own in said for own in (ROUNDED, NOT_TEXT)) else "; are these the files of this data set?"
            raise InputError(f"{about.name}: {title}", f"{said.removeprefix(_INVALID)}{hint}") from error


def _sections(sql: str) -> Iterator[tuple[str, str]]:
    for section in sql.split(_STAGE)[1:]:
        title, _, statements = section.partition("\n")
        yield title.strip(), statements


def _days(connection: Backend, split: Split, left_out: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """day -> (its first moment, the first moment after it), ms."""
    lengths = dict(zip(_DAYS, (split.train, split.validation, split.test), strict=True))
    if split.train < 1 or split.test < 1 or split.validation < 0 or max(lengths.values()) > _MOST_DAYS:
        told = f"{list(lengths.values())}: needs 1, 0, 1 or more, and at most {_MOST_DAYS} each"
        raise InputError("--train-days, --validation-days, --test-days", told)
    offset = split.offset_ms()
    query = f"SELECT (ts + {offset}) // {_DAY_MS}, count(*) FROM searches GROUP BY 1 ORDER BY 1"
    counts = dict(connection.con.execute(query).fetchall())
    if not counts:
        raise InputError(
            "searches", _with_reasons("no usable row is left; look at the files, and at what was left out", left_out)
        )
    usual = sorted(counts.values())[len(counts) // 2]
    last = max(day for day, n in counts.items() if n >= _FULL * usual) if not split.last else _day(split.last)
    days, end = {}, last + 1
    for name in reversed(_DAYS):
        if lengths[name]:
            days[name] = (end - lengths[name], end)
            end -= lengths[name]
    empty = [name for name, (first, after) in days.items() if not any(first <= day < after for day in counts)]
    if empty:
        first, final = (moment_told(day * _DAY_MS - offset) for day in (min(counts), max(counts)))
        told = (
            f"no search is left for {', '.join(empty)}: there are searches on {len(counts)} days, of which the first "
            f"begins at {first} and the last at {final}; change --last-day, --test-days or --validation-days"
        )
        raise InputError("days", _with_reasons(told, left_out))
    return {name: (days[name][0] * _DAY_MS - offset, days[name][1] * _DAY_MS - offset) for name in reversed(days)}


def _day(text: str) -> int:
    try:
        return (datetime.strptime(text, "%Y-%m-%d") - datetime(1970, 1, 1)).days
    except ValueError:
        raise InputError("--last-day", f"{text!r} is no date such as 2023-06-10") from None


def _write(engine: DuckDB, out: Folder, days: Mapping[str, tuple[int, int]]) -> tuple[dict[str, Any], dict[str, int]]:
    """Writes every table; returns rows by day and table, and the rows that lie outside of all days."""
    tables = {name: engine.connection.table(name) for name in (*_OF_DAY, "items")}
    rows: dict[str, Any] = {"items": _sorted(engine, tables["items"], "items", out / "items.parquet")}
    for day, (first, end) in days.items():
        of_day = {
            name: t.filter((t.ts >= first) & (t.ts < end)) for name, t in tables.items() if name in ("searches", "feed")
        }
        of_day["candidates"] = tables["candidates"].semi_join(of_day["searches"], "request_id")
        rows[day] = {n: _sorted(engine, t, n, out / day / f"{n}.parquet") for n, t in of_day.items()}
    held = {name: engine.count(t) for name, t in tables.items() if name != "items"}
    outside = {name: n - sum(rows[day][name] for day in days) for name, n in held.items()}
    return rows, {name: n for name, n in outside.items() if n}


def _sorted(engine: DuckDB, table: Table, name: str, path: Path) -> int:
    """Writes a table with the columns of the contract, in the types that it has, ordered by all of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    of_table = table.schema().to_pyarrow()
    schema = pa.schema([pa.field(column, of_table.field(column).type) for column in TABLES[name]])
    return engine.write_sorted(table, path, Sorted(schema, schema.names))
