"""Spark behind a Connect server (sc://...), which is a process of its own: the same bytes as from DuckDB."""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hand_logs import WordOverlap, small_world
from spark_engine import MARKS, require_spark
from whole_reading import CONFIG

from crops_jax.artifacts.folders import write_folder
from crops_jax.artifacts.manifest import verify
from crops_jax.engines import spark
from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine
from crops_jax.errors import InputError
from crops_jax.mining.train_day import mine

require_spark()
pytest.importorskip("grpc", reason="the extra `spark` is not installed as a whole")
pytestmark = [*MARKS]
SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"


@pytest.fixture
def connect(tmp_path):
    """connect(*settings): starts a server with these settings of Spark, and gives the engine's config."""
    import pyspark

    home, started = Path(pyspark.__file__).parent, []

    def start(*settings):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        settings = ("spark.ui.enabled=false", f"spark.connect.grpc.binding.port={port}",
                    "spark.sql.shuffle.partitions=3", *settings)  # fmt: skip
        flags = [word for setting in settings for word in ("--conf", setting)]
        flags += ["--class", SERVER, "--master", "local[2]", "--driver-memory", "1g"]
        env = dict(os.environ, SPARK_HOME=str(home), PYSPARK_PYTHON=sys.executable)
        with (tmp_path / "server.log").open("w") as log:
            server = subprocess.Popen(
                [home / "bin/spark-submit", *flags, "spark-internal"], env=env, stdout=log, stderr=log
            )
        started.append(server)
        _wait(port, server)
        return EngineConfig(backend="spark", master=f"sc://localhost:{port}")

    yield start
    spark.stop()
    for server in started:
        server.terminate()
        server.wait(60)


def _wait(port, server):
    while server.poll() is None:
        try:
            socket.create_connection(("localhost", port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server ended with code {server.returncode}")


def test_a_day_is_mined_to_the_same_bytes(connect, tmp_path):
    """Another time zone for the session; and an error of an executor comes out as it was."""
    engine = connect(f"spark.checkpoint.dir={tmp_path}/checkpoints", "spark.sql.session.timeZone=Asia/Kolkata")
    logs, mined = small_world(tmp_path / "logs"), {}
    for config in (CONFIG, dataclasses.replace(CONFIG, engine=engine)):
        folder = tmp_path / config.engine.backend
        with write_folder(folder, kind="mined") as out:
            mine(logs, out, WordOverlap(), config)
        mined[config.engine.backend] = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert mined["duckdb"] == mined["spark"] and len(mined["spark"]) > 3
    with pytest.raises(InputError, match="nothing: no such folder"), open_engine(engine, []) as opened:
        opened.each(verify, [tmp_path / "nothing"])


def test_a_server_without_a_folder_for_tables_is_told_what_it_lacks(connect):
    with pytest.raises(InputError, match=r"--conf spark\.checkpoint\.dir=FOLDER"), open_engine(connect(), []) as opened:
        opened.materialise("one", opened.connection.sql("select 1 as x"))
