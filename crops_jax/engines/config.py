"""Which engine runs the miners' expressions, and what it may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crops_jax.errors import InputError

_MOST_THREADS = 1024


@dataclass(frozen=True)
class EngineConfig:
    """Memory, disk and threads of the embedded DuckDB; or Spark, and where it runs."""

    memory_limit: str = "4GB"
    """Memory that DuckDB may use before it spills to disk; of a Spark started here, the memory of its driver."""
    temp_directory: str = ""
    """Folder below which it spills; empty: the system's temporary folder. The spilled files are removed at the end."""
    max_temp_directory_size: str = "100GB"
    """Most disk space that DuckDB may spill to."""
    threads: int = 0
    """Threads; 0 takes one a core. The output does not depend on it."""
    backend: Literal["duckdb", "spark"] = "duckdb"
    """duckdb runs inside this process; spark needs the extra `spark` and Java 17. The output is the same."""
    master: str = "local[*]"
    """Where Spark runs: local[*], local-cluster[2,1,1024], spark://HOST:7077, yarn, sc://HOST:15002 (Connect). Its
    executors need this environment, and see logs, work folder and `temp_directory` under the same paths."""
    spark: tuple[str, ...] = ()
    """Further settings of Spark, as key=value: ("spark.executor.memory=16g",)."""

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= _MOST_THREADS:
            raise InputError("engine config", f"threads: {self.threads} is not within 0..{_MOST_THREADS}")
