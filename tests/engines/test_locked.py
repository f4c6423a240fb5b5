"""What SQL may do once the engine is open: read and write its folders, and nothing else."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crops_jax.engines.config import EngineConfig
from crops_jax.engines.engine import open_engine


@pytest.fixture
def folders(tmp_path):
    """A folder that the engine is given, and one that it is not."""
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"x": [1]}), tmp_path / name / "t.parquet")
        (tmp_path / name / "t.csv").write_text("x\n1\n")
    return tmp_path / "inside", tmp_path / "outside"


FORBIDDEN = {
    "reads Parquet": "SELECT * FROM read_parquet('{out}/t.parquet')",
    "reads by name": "SELECT * FROM '{out}/t.parquet'",
    "reads CSV": "SELECT * FROM read_csv('{out}/t.csv')",
    "reads text": "SELECT * FROM read_text('{out}/t.csv')",
    "walks out of its folder": "SELECT * FROM read_parquet('{inside}/../outside/t.parquet')",
    "lists": "SELECT * FROM glob('{out}/*')",
    "writes": "COPY (SELECT 1 AS x) TO '{out}/new.parquet'",
    "attaches": "ATTACH '{out}/new.db'",
    "reads the network": "SELECT * FROM read_parquet('http://127.0.0.1:9/t.parquet')",
    "widens its folders": "SET allowed_directories=['{out}']",
    "opens the door": "SET enable_external_access=true",
    "takes more memory": "SET memory_limit='7GB'",
    "takes more threads": "SET threads=3",
    "spills elsewhere": "SET temp_directory='{out}'",
    "unlocks": "SET lock_configuration=false",
    "resets": "RESET memory_limit",
    "installs": "INSTALL spatial",
    "loads": "LOAD '{inside}/t.parquet'",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_sql_leaves_neither_its_folders_nor_its_settings(what, folders):
    inside, outside = folders
    with open_engine(EngineConfig(memory_limit="500MB", threads=1), [inside]) as engine:
        connection = engine.connection
        assert connection.raw_sql(f"SELECT x FROM read_parquet('{inside}/t.parquet')").fetchall() == [(1,)]
        connection.raw_sql(f"COPY (SELECT 2 AS x) TO '{inside}/more.parquet'")
        with pytest.raises(Exception, match=r"(?i)permission|locked|disabled|not allowed|cannot"):
            connection.raw_sql(FORBIDDEN[what].format(out=outside, inside=inside)).fetchall()
    assert sorted(p.name for p in outside.iterdir()) == ["t.csv", "t.parquet"]


def test_the_settings_are_those_of_the_config_and_extensions_stay_off(tmp_path):
    config = EngineConfig(memory_limit="300MB", temp_directory=str(tmp_path), max_temp_directory_size="7GB", threads=1)
    names = ("threads", "memory_limit", "temp_directory", "max_temp_directory_size", "enable_external_access",
             "autoinstall_known_extensions", "autoload_known_extensions", "lock_configuration")  # fmt: skip
    with open_engine(config, []) as engine:
        values = [engine.connection.raw_sql(f"SELECT current_setting('{name}')").fetchone()[0] for name in names]
        found = dict(zip(names, values, strict=True))
        assert len(list(tmp_path.iterdir())) == 1 and str(found["temp_directory"]).startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []  # the spilled files are gone
    assert found["threads"] == 1 and found["memory_limit"].startswith("286.1 MiB")
    assert [found[name] for name in names[4:]] == [False, False, False, True]
