"""The engine of a cluster: Ibis on Spark, which reads and writes on its executors; counts alone reach this process.

Tables are read and written by the same code as elsewhere, in the Python workers of the executors: types, hashed ids,
checksums and bytes are those of the embedded engine. Executors need this environment, and the paths of logs and work
folder. Spark's own file formats are not used, nor its time zone: a moment is a whole number from the first step on.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from crops_jax.engines import files
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import DRAW, NORMAL_FORM, PART, S, Stream, T
from crops_jax.errors import InputError
from crops_jax.normal_text import normal_form
from crops_jax.stable_hash import hash_texts, in_order

if TYPE_CHECKING:
    from ibis.backends.pyspark import Backend
    from ibis.expr.types import Table
    from pyspark.sql import DataFrame, SparkSession

_NUMBERS = itertools.count()  # of the names that this module gives
_MARK = "crops-input-error:"  # an InputError of an executor, on its way through Java
_STARTED: list[tuple[EngineConfig, SparkSession]] = []  # the Spark of this process: there can be one
_CONNECT = "sc://"
_OverBatches = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class Spark:
    """An open Spark session (`engine.Engine`)."""

    connection: Backend
    session: SparkSession
    views: list[str] = field(default_factory=list)

    def read(self, stream: Stream) -> Table:
        """See `engine.Engine`: a task a piece of the stream, so a table in many files is read by many."""
        from pyspark.sql.pandas.types import from_arrow_schema

        rows = partial(_rows_of, _pickled(stream.pieces()))
        # A union wants equal types, nullability included: as in DuckDB, any column may hold nulls.
        schema = from_arrow_schema(pa.schema([column.with_nullable(True) for column in stream.schema]))
        frame = _mapped(self._tasks(len(stream.pieces())), rows, schema)
        return self._table(f"stream_{next(_NUMBERS)}", frame)

    def materialise(self, name: str, expression: Table) -> Table:
        """See `engine.Engine`. The rows are written to disk: a lost executor takes none with it, and plans stay short.

        The plan of a table that is only kept in memory holds the plans of all tables before it.
        """
        # The name of a day (2025-06-12) is none that a view may have.
        name = f"table_{re.sub(r'[^A-Za-z0-9_]', '_', name)}_{next(_NUMBERS)}"
        return self._table(name, self._frame(expression).checkpoint())

    @contextmanager
    def scope(self) -> Iterator[None]:
        """See `engine.Engine`. What lies on disk stays there until the engine is closed."""
        before = len(self.views)
        yield
        for name in self.views[before:]:
            self.session.catalog.dropTempView(name)
        del self.views[before:]

    def count(self, expression: Table) -> int:
        """See `engine.Engine`."""
        return expression.count().to_pyarrow().as_py()

    def write_sorted(self, expression: Table, path: str | Path, how: files.Sorted) -> int:
        """See `engine.Engine`: by one executor."""
        frame = self._frame(expression.select(*how.columns))
        frame = frame.repartition(1).sortWithinPartitions(*_nulls_first(how.by))
        counts = _collected(frame, partial(_write_one, Path(path), how))
        if not counts:  # no rows, no partition
            return files.write([], Path(path), how.schema)
        return sum(rows for _, rows in counts)

    def write_parts(self, expression: Table, folder: Path, how: files.Sorted) -> None:
        """See `engine.Engine`: a part by one executor, many parts at a time."""
        folder.mkdir(parents=True, exist_ok=True)
        frame = self._frame(expression.select(*how.columns, PART))
        tasks = max(int(self.session.conf.get("spark.sql.shuffle.partitions")), 1)
        frame = frame.repartition(tasks, PART).sortWithinPartitions(*_nulls_first([PART, *how.by]))
        _collected(frame, partial(_write_parts, folder, how))

    def each(self, function: Callable[[S], T], values: Sequence[S]) -> list[T]:
        """See `engine.Engine`: a task a value."""
        results = partial(_results, function, _pickled(values))
        frame = _mapped(self._tasks(len(values)), results, "i long, result binary")
        found = {row.i: pickle.loads(row.result) for row in frame.collect()}
        return [found[i] for i in range(len(values))]

    def _tasks(self, count: int) -> DataFrame:
        return self.session.range(0, count, 1, max(count, 1))

    def _frame(self, expression: Table) -> DataFrame:
        name = f"view_{next(_NUMBERS)}"
        self.connection.create_view(name, expression)
        self.views.append(name)
        return self.session.table(name)

    def _table(self, name: str, frame: DataFrame) -> Table:
        frame.createOrReplaceTempView(name)
        self.views.append(name)
        return self.connection.table(name)


def _nulls_first(by: Sequence[str]) -> list[Any]:
    from pyspark.sql import functions

    return [functions.col(name).asc_nulls_first() for name in by]


def _pickled(values: Sequence[Any]) -> list[bytes]:
    """Each on its own: every task gets them all, and reads one."""
    from pyspark import cloudpickle

    return [cloudpickle.dumps(value) for value in values]


def _collected(frame: DataFrame, write: _OverBatches) -> list[tuple[str, int]]:
    """Runs a function that writes where the rows are; (part, rows) of what was written comes back."""
    return [(row.part, row.rows) for row in _mapped(frame, write, "part string, rows long").collect()]


def _mapped(frame: DataFrame, function: _OverBatches, schema: Any) -> DataFrame:
    """What a function makes of the rows, on the executors."""
    return frame.mapInArrow(partial(_run, function, os.getcwd()), schema)


def _run(function: _OverBatches, folder: str, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Runs a task in the folder of the command, where there is one: paths may be relative to it.

    An InputError takes a form that Java hands on, a text.
    """
    with suppress(OSError):
        os.chdir(folder)
    try:
        yield from function(batches)
    except InputError as error:
        raise RuntimeError(_MARK + json.dumps([error.place, error.problems]) + "\n") from None


def _rows_of(pieces: Sequence[bytes], numbers: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for piece in (pickle.loads(pieces[i.as_py()]) for batch in numbers for i in batch[0]):
        yield from piece.batches()


def _results(
    function: Callable[[S], T], values: Sequence[bytes], numbers: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    for i in (i.as_py() for batch in numbers for i in batch[0]):
        result = pickle.dumps(function(pickle.loads(values[i])))
        yield pa.record_batch({"i": pa.array([i], pa.int64()), "result": [result]})


def _write_one(path: Path, how: files.Sorted, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield _told("0", how.write(batches, path))


def _write_parts(folder: Path, how: files.Sorted, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for part, rows in files.write_each_part(batches, folder, how):
        yield _told(part, rows)


def _told(part: str, rows: int) -> pa.RecordBatch:
    return pa.record_batch({"part": [part], "rows": pa.array([rows], pa.int64())})


@contextmanager
def open_engine(config: EngineConfig) -> Iterator[Spark]:
    """See `engine.open_engine`. The session stays for the next engine of this process: starting one takes seconds."""
    try:
        import ibis
        from pyspark.errors import PySparkRuntimeError
    except ImportError as error:
        raise InputError("mining.engine.backend=spark", f"{error}: install the extra `spark`") from None
    try:
        session = _session(config)
    except ImportError as error:
        raise InputError("mining.engine.master", f"{error}: install the extra `spark` as a whole") from None
    except PySparkRuntimeError as error:
        said = str(error).splitlines()[0]
        raise InputError("mining.engine", f"Spark does not start ({said}); it needs Java 17 (JAVA_HOME)") from None
    with ExitStack() as stack:
        if not config.master.startswith(_CONNECT):
            session.sparkContext.setCheckpointDir(stack.enter_context(files.spill_folder(config)))
        engine = Spark(ibis.pyspark.connect(session), session)
        for key, value in _settings(config).items():
            if key.startswith("spark.sql."):
                session.conf.set(key, value)  # Ibis has set some, and the session may be older than the config
        session.udf.register(NORMAL_FORM, _normal_form)
        session.udf.register(DRAW, _draw, "long")
        with _telling_problems(engine):
            yield engine


@contextmanager
def _telling_problems(engine: Spark) -> Iterator[None]:
    """What was raised on a worker, as it was raised there; and no view of the engine stays."""
    try:
        yield
    except Exception as error:
        if said := re.search(re.escape(_MARK) + r"(.*)", str(error)):
            place, problems = json.loads(said[1])
            raise InputError(place, problems) from None
        if "heckpoint dir" in str(error):  # which a Connect server has from its start, or not at all
            told = "start the server with --conf spark.checkpoint.dir=FOLDER, for what is computed once"
            raise InputError("mining.engine.master", f"{told}: a folder that its executors share") from None
        raise
    finally:
        for name in engine.views:
            engine.session.catalog.dropTempView(name)


def _normal_form(text: str | None) -> str | None:
    return None if text is None else normal_form(text)


def _draw(text: str | None, seed: int) -> int | None:
    return None if text is None else int(in_order(hash_texts([text], seed))[0])


def stop() -> None:
    """Stops the Spark of this process, if there is one; the next engine starts another."""
    while _STARTED:
        _STARTED.pop()[1].stop()


def _session(config: EngineConfig) -> SparkSession:
    """The session of the config; another one that this process started is stopped first."""
    from pyspark.sql import SparkSession

    if _STARTED and _STARTED[0][0] != config:
        stop()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("crops-jax")
    builder = builder.remote(config.master) if config.master.startswith(_CONNECT) else builder.master(config.master)
    for key, value in _settings(config).items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    _STARTED[:] = [(config, session)]
    return session


def _settings(config: EngineConfig) -> dict[str, str]:
    settings = {}
    if not config.master.startswith(_CONNECT):  # there the server has them
        settings["spark.ui.enabled"] = "false"
        settings["spark.driver.memory"] = config.memory_limit.lower().replace(" ", "").removesuffix("b")
        if config.temp_directory:
            settings["spark.local.dir"] = config.temp_directory
    if wrong := [entry for entry in config.spark if "=" not in entry]:
        raise InputError("mining.engine.spark", f"{', '.join(map(repr, wrong))}: a setting is written key=value")
    return settings | dict(entry.split("=", 1) for entry in config.spark)
