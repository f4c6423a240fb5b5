"""Spark with executors that are processes of their own: one is killed while it works, and nothing is lost."""

import dataclasses
import sys
import threading
import time
import uuid

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_logs import WordOverlap, small_world
from spark_engine import CLUSTER, MARKS, require_spark, sending
from whole_reading import CONFIG

from crops_jax.artifacts.folders import write_folder
from crops_jax.engines.engine import PART, open_engine
from crops_jax.engines.files import Sorted
from crops_jax.mining.train_day import mine

require_spark()
pytestmark = [*MARKS]
PIECES = 6


class Slow:
    """A stream of six pieces, each of which takes two seconds and says when it was begun."""

    schema = pa.schema([("x", pa.int64())])

    def __init__(self, told, numbers=range(PIECES)):
        self.told, self.numbers = told, numbers

    def pieces(self):
        return [Slow(self.told, [number]) for number in self.numbers]

    def batches(self):
        for number in self.numbers:
            (self.told / f"{number}.{uuid.uuid4().hex}").touch()
            time.sleep(2)
            yield pa.record_batch({"x": [10 * number, 10 * number + 1]}, schema=self.schema)


def executors():
    """The Java processes of executors below this one."""
    below = psutil.Process().children(recursive=True)
    return [p for p in below if p.name() == "java" and "CoarseGrainedExecutorBackend" in " ".join(p.cmdline())]


def kill_one():
    """Kills an executor, and returns its process id."""
    victim = executors()[0]
    victim.kill()
    return victim.pid


def test_an_executor_that_is_killed_while_it_reads_takes_no_rows_with_it(tmp_path):
    told, killed = tmp_path / "begun", []
    told.mkdir()

    def kill():
        while not any(told.iterdir()):
            time.sleep(0.1)
        time.sleep(0.5)
        killed.append(kill_one())

    killer = threading.Thread(target=kill, daemon=True)
    with open_engine(CLUSTER, []) as engine:
        rows = engine.read(Slow(told))
        killer.start()
        engine.write_parts(
            rows.mutate(**{PART: (rows.x % 2).cast("string")}), tmp_path / "parts", Sorted(Slow.schema, ["x"])
        )
    killer.join(timeout=10)
    for part in (0, 1):
        found = pq.read_table(tmp_path / f"parts/part-{part}.parquet")["x"].to_pylist()
        assert found == [10 * number + part for number in range(PIECES)]
    begun = [path.name.split(".")[0] for path in told.iterdir()]
    assert len(killed) == 1 and len(begun) > PIECES and {*begun} == {str(number) for number in range(PIECES)}


def test_an_executor_that_is_killed_while_a_day_is_mined_changes_no_byte(tmp_path):
    """It is killed before the first pairs are scored, with what it held of P1 and P2."""
    logs, mined, killing = small_world(tmp_path / "logs"), {}, Killing()
    for engine, theta in ((CONFIG.engine, WordOverlap()), (CLUSTER, killing)):
        with write_folder(tmp_path / engine.backend, kind="mined") as out:
            mine(logs, out, theta, dataclasses.replace(CONFIG, engine=engine))
        folder = tmp_path / engine.backend
        mined[engine.backend] = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert killing.killed and mined["duckdb"] == mined["spark"]


class Killing(WordOverlap):
    """Kills an executor before its first answer."""

    killed = None

    def query_similarity(self, a, b):
        self.killed = self.killed or kill_one()
        return np.asarray(super().query_similarity(a, b))


@pytest.fixture(scope="module", autouse=True)
def _classes_of_this_file_reach_the_executors():
    with sending(sys.modules[__name__]):
        yield
