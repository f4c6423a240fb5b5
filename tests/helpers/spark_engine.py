"""Spark for tests: it needs the extra `spark` and Java; without them the tests of a file are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

from crops_jax.engines import spark
from crops_jax.engines.config import EngineConfig

# Another time zone, for Java and for the session, than that of the machine.
IN_KOLKATA = "spark.driver.extraJavaOptions=-Duser.timezone=Asia/Kolkata"
AWAY = ("spark.sql.session.timeZone=America/New_York", "spark.sql.shuffle.partitions=3")
LOCAL = EngineConfig(memory_limit="1GB", backend="spark", master="local[2]", spark=(IN_KOLKATA, *AWAY))
# Two executors, each a Java process of its own, as on a cluster.
CLUSTER = EngineConfig(memory_limit="1GB", backend="spark", master="local-cluster[2,1,1024]", spark=AWAY)
# PySpark 4.0 asks pandas 3 for options that pandas will drop, and leaves sockets to the collector.
MARKS = (pytest.mark.slow, pytest.mark.filterwarnings("ignore"))


def require_spark() -> None:
    """Skips the file that is being imported where there is no Spark."""
    pytest.importorskip("pyspark", reason="the extra `spark` is not installed")
    if shutil.which("java") is None:
        pytest.skip("there is no Java", allow_module_level=True)


@contextmanager
def sending(module: ModuleType) -> Iterator[None]:
    """The classes of a test file reach the executors; at the end Spark is stopped."""
    from pyspark import cloudpickle

    cloudpickle.register_pickle_by_value(module)
    yield
    spark.stop()
