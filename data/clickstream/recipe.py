"""Your own click-stream, one event a row -> a checked log folder.

    python data/clickstream/recipe.py EVENTS --items ITEMS --out runs/mine/logs

EVENTS and ITEMS are a file each, or a folder of files: Parquet or CSV. data/clickstream/README.md names the columns;
yours may be called otherwise:

    ... --column time=event_time --column user=uid --event click=tap,open --event search=query_submit
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from crops_jax import check_logs
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.duckdb import quoted
from crops_jax.errors import InputError, run_command
from crops_jax.logs import foreign, foreign_values
from crops_jax.logs.casts import EXACT
from crops_jax.logs.foreign import Found, Wanted
from crops_jax.logs.importing import DataSet, Split, add_split, engine_of, import_logs, split_of, tell
from crops_jax.logs.times import EARLIEST, LATEST

ABOUT = DataSet("click-stream", "your own", "your own")
NEEDED = {"events": ("time", "user", "event", "item", "query"), "catalogue": ("item",)}
OPTIONAL = {"events": ("session", "surface", "request", "position", "seconds"),
            "catalogue": ("title", "description", "tags", "views", "likes", "duration_s")}  # fmt: skip
EVENTS = ("search", "impression", "click", "like", "watch")
NONE = ("", r"\N", "NULL", "null", "None", "nan", "NaN", "<NA>")  # for no id: Hive, MySQL, other databases, pandas
UNITS = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000), "ns": (1, 1_000_000)}  # ms of one: this by that


def convert(
    events: Path, items: Path, out: Path, *, columns: Mapping[str, str] | None = None,
    kinds: Mapping[str, Sequence[str]] | None = None, time_unit: str = "ms", session_gap_s: float = 1800,
    split: Split | None = None, engine: EngineConfig | None = None,
) -> dict:  # fmt: skip
    """Writes the log folder, prints what was left out, checks and seals it, and returns what `import.json` in it holds.

    Args:
      columns: our name -> the name in the files, for those that differ.
      kinds: our event -> the words for it in the files; an event that is not named stands for itself.
      session_gap_s: a session, told or not, ends after so many seconds without an event of its user.

    Raises:
      InputError: a file or column is missing or damaged, or nothing is left for one of the days.
    """
    columns, kinds, split = columns or {}, kinds or {}, split or Split()
    known = {name for part in (*NEEDED.values(), *OPTIONAL.values()) for name in part}
    problems = [f"--column {name}: there is no such column; they are {', '.join(sorted(known))}"
                for name in columns if name not in known]  # fmt: skip
    problems += [f"--event {name}: is none of {', '.join(EVENTS)}" for name in kinds if name not in EVENTS]
    told = Counter(word for name in EVENTS for word in kinds.get(name, (name,)))
    problems += [f"--event: {word!r} stands for two events; an event that is not named stands for itself"
                 for word, times in told.items() if times > 1]  # fmt: skip
    if not 0 < session_gap_s < LATEST:
        problems.append(f"--session-gap {session_gap_s}: is not above zero, or endless")
    if problems:
        raise InputError("click-stream", problems)
    tables = {"events": foreign.look("events", events), "catalogue": foreign.look("catalogue", items)}
    wanted = [_wanted(name, tables[name], columns) for name in tables]
    words = {word: name for name in EVENTS for word in kinds.get(name, (name,))}
    names = {name: columns.get(name, name) for name in known}
    event, item = _text(tables["events"], names["event"]), _id(tables, names["item"])
    values = {name: foreign_values.identifier(theirs) for name, theirs in names.items()} | {
        "earliest": str(EARLIEST), "latest": str(LATEST - 1), "gap": str(round(1000 * session_gap_s)),
        "offset": str(split.offset_ms()),
        "moment": _moment(tables["events"], names["time"], UNITS[time_unit]), "event_written": event,
        "event": f"CASE {event} {' '.join(f'WHEN {quoted(w)} THEN {quoted(words[w])}' for w in words)} END",
        "item": item["events"], "item_key": item["catalogue"],
        **{name: _text(tables["events"], names[name]) for name in ("user", "session", "request")},
        **{name: _words(tables[table], names[name]) for table, name in (
            ("events", "query"), ("events", "surface"), ("catalogue", "title"), ("catalogue", "description"))},
        "tags": _tags(tables["catalogue"], names["tags"]),
    }  # fmt: skip
    sql = (Path(__file__).parent / "to_contract.sql").read_text()
    engine = engine or EngineConfig()
    facts = import_logs(ABOUT, tables, wanted, sql, values, out, split, engine)
    tell(facts, out)
    check_logs.run(out, engine=engine)
    return facts


def _wanted(name: str, table: Found, columns: Mapping[str, str]) -> Wanted:
    needed, optional = (tuple(columns.get(n, n) for n in part[name]) for part in (NEEDED, OPTIONAL))
    missing = [n for n in needed if n not in table.columns]
    missing += [f"{theirs} (named for {n})" for n, theirs in columns.items()
                if n in OPTIONAL[name] and theirs not in table.columns]  # fmt: skip
    missing += foreign.in_other_letters(table, (n for n in OPTIONAL[name] if n not in columns))
    read = {n: table.columns[n] for n in (*needed, *optional) if n in table.columns}
    odd = [f"column {n} is {kind}; write it as text or as a number" for n, kind in read.items() if _is_unread(kind)
           and not (n == columns.get("tags", "tags") and _is_listed(kind))]  # fmt: skip
    if odd:
        raise InputError(name, odd)
    if missing:
        raise InputError(name, f"no column {', '.join(missing)}; there is {', '.join(table.columns)}. Say which is "
                         "which with --column OURS=YOURS")  # fmt: skip
    return Wanted(name, needed, optional)


def _is_unread(kind: pa.DataType) -> bool:
    """Types whose values would be read as others: a struct as its printed form, a duration without its unit."""
    return pa.types.is_nested(kind) or pa.types.is_duration(kind)


def _is_listed(kind: pa.DataType) -> bool:
    """Whether a value is a list of words or numbers."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and not _is_unread(kind.value_type)


def _moment(table: Found, column: str, unit: tuple[int, int]) -> str:
    """SQL for milliseconds: of a timestamp, of a number in the unit that was said, or of a text that is either."""
    kind, name = table.columns[column], foreign_values.identifier(column)
    for each in table.kinds(column):
        if pa.types.is_date(each) or pa.types.is_time(each):
            raise InputError(table.name, f"column {column} is {each}, a date or a time of day alone; write timestamps")
        if pa.types.is_float32(each) or pa.types.is_float16(each):
            told = f"is {each}, which tells no two minutes apart; write double, whole numbers or timestamps"
            raise InputError(table.name, f"column {column} {told}")
    if pa.types.is_timestamp(kind):
        return f"epoch_ms({name})"
    times, by = unit
    number = f"try_cast(floor(round(try_cast({name} AS DOUBLE) * {times} / {by}, 3)) AS BIGINT)"  # null if not finite
    whole = f"try_cast(try_cast({name} AS HUGEINT) * {times} // {by} AS BIGINT)"  # a float has no room for ns
    if pa.types.is_integer(kind):
        return whole
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return number
    # By a spreadsheet, to six digits: it tells no seconds. pandas leaves out the zeros at the end alone.
    few = f"regexp_matches({name}, '^[^.]+$|[.][0-9]{{0,5}}[eE]')"
    cut = f"({foreign_values.step(f'trim({name})')}) * {times} / {by} > 1000 AND {few}"
    is_whole = f"regexp_full_match(trim({name}), '[0-9]{{1,30}}')"  # more, and 128 bits overflow
    number = f"CASE WHEN {is_whole} THEN {whole} WHEN NOT coalesce({cut}, false) THEN {number} END"
    # Without an offset a time is UTC. DuckDB reads over an offset when it makes a plain timestamp of a text, and reads
    # none behind a blank; a name of a zone (Europe/Paris) there is. Of letters alone it knows some: CST is Chicago's
    # to it, and Shanghai's to others.
    offset = "[+-][0-9]{2}(:?[0-9]{2}(:[0-9]{2})?)?"
    text = f"regexp_replace(trim({name}), '(:[0-9]{{2}}),([0-9]+)', '\\1.\\2')"  # as Python's logging writes
    text = f"regexp_replace({text}, '(:[0-9.]+) +({offset})$', '\\1\\2')"
    text = f"regexp_replace({text}, '^([0-9-]+[T ][0-9]{{2}}:[0-9]{{2}})(Z|{offset})$', '\\1:00\\2')"  # without seconds
    told = f"CASE WHEN contains({text}, ':') THEN {text} END"  # a date alone is no moment of the day
    here, elsewhere = (f"epoch_ms(try_cast({told} AS {kind}))" for kind in ("TIMESTAMP", "TIMESTAMPTZ"))
    zoned = f"regexp_matches({text}, ':[0-9.]+(Z|{offset})$')"
    named = f"regexp_matches({text}, '(/[A-Za-z0-9_+-]+| UTC| GMT)$')"
    either = f"coalesce({here}, {elsewhere})"
    return f"coalesce({number}, CASE WHEN {zoned} THEN {elsewhere} WHEN {named} THEN {either} ELSE {here} END)"


def _id(tables: Mapping[str, Found], column: str) -> dict[str, str]:
    """Table -> SQL for its ids of items: numbers where both have numbers, else texts, which `check_logs` hashes."""
    kinds = set().union(*(table.kinds(column) for table in tables.values())) - {pa.null()}
    if all(pa.types.is_integer(kind) for kind in kinds):
        return dict.fromkeys(tables, foreign_values.identifier(column))
    texts = {name: _text(table, column) for name, table in tables.items()}
    are_numbers = pa.uint64() not in kinds and all(map(_is_number, kinds))
    if not are_numbers or any(foreign.beyond_numbers(table, column) for table in tables.values()):
        return texts
    return {name: f"CASE WHEN regexp_full_match({text}, '-?[0-9]+') THEN try_cast({text} AS BIGINT) END"
            for name, text in texts.items()}  # fmt: skip


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _text(table: Found, column: str) -> str:
    """SQL for an id as text, null where it is blank or one of `NONE`; 1000.0, which pandas writes once a row lacks the
    id, is 1000.
    """
    kind = table.columns.get(column, pa.string())
    value = f"trim({foreign_values.written(column, kind)})"
    whole = f"regexp_replace({value}, '^(-?[0-9]+)[.]0+$', '\\1')"
    told = f"CASE WHEN {whole} NOT IN ({', '.join(map(quoted, NONE))}) THEN {whole} END"
    if not (pa.types.is_floating(kind) or pa.types.is_string(kind)):
        return told
    most = EXACT.get(kind, EXACT[pa.float64()])
    of_float = f"regexp_full_match({value}, '-?[0-9]+[.]0|-?[0-9.]+e[+][0-9]+')"  # as floats are written, not decimals
    rounded = f"({of_float} AND abs(try_cast({value} AS DOUBLE)) >= {most} OR {foreign_values.cut(value)})"
    return f"CASE WHEN {rounded} THEN error({value} || ' {foreign_values.ROUNDED}') ELSE {told} END"


def _words(table: Found, column: str) -> str:
    """SQL for a text; of floats NaN, which fills an empty column, is null, and 5.0 is 5."""
    kind = table.columns.get(column, pa.string())
    text = foreign_values.written(column, kind)
    return f"regexp_replace({text}, '[.]0$', '')" if pa.types.is_floating(kind) else text


def _tags(table: Found, column: str) -> str:
    kind = table.columns.get(column)
    if kind is not None and _is_listed(kind):
        return f"array_to_string({foreign_values.identifier(column)}::VARCHAR[], '|')"
    return _words(table, column)


def _pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    if bad := [pair for pair in given if not all(pair.partition("=")[::2])]:
        raise InputError(flag, f"{bad[0]!r} is not of the form OURS=YOURS")
    pairs = [pair.split("=", 1) for pair in given]
    if twice := [ours for ours, times in Counter(ours for ours, _ in pairs).items() if times > 1]:
        raise InputError(flag, f"{twice[0]} is given twice; say all of it at once")
    return dict(pairs)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=Path, help="the events: a Parquet or CSV file, or a folder of them")
    parser.add_argument("--items", type=Path, required=True, help="the items, in the same way")
    parser.add_argument("--out", type=Path, required=True, help="the log folder to write")
    parser.add_argument("--column", action="append", default=[], metavar="OURS=YOURS", help="a column of another name")
    parser.add_argument(
        "--event", action="append", default=[], metavar="OURS=YOURS,YOURS", help="other words for an event"
    )
    parser.add_argument("--time-unit", choices=list(UNITS), default="ms", help="of times that are numbers (ms)")
    parser.add_argument("--session-gap", type=float, default=1800, metavar="SECONDS",
                        help="a session ends after so long without an event (1800)")  # fmt: skip
    add_split(parser, utc_offset_h=0)
    args = parser.parse_args()
    kinds = {name: words.split(",") for name, words in _pairs("--event", args.event).items()}
    convert(
        args.events, args.items, args.out, columns=_pairs("--column", args.column), kinds=kinds,
        time_unit=args.time_unit, session_gap_s=args.session_gap, split=split_of(args), engine=engine_of(args),
    )  # fmt: skip
    print("checked and sealed\nnext: a config (docs/own-logs.md), then python -m crops_jax.mine --config FILE")


if __name__ == "__main__":
    run_command(main)
