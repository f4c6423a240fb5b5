"""The page that tells how to add a source, followed word by word on a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys

from hand_logs import small_world
from places import ROOT

from crops_jax import check_logs

MINED = """
import json, sys
from dataclasses import replace
from pathlib import Path
from crops_jax import mine
from crops_jax.config import Experiment
from crops_jax.mining.config import LongWatchConfig, MiningConfig, WorldKnowledgeConfig
from crops_jax.models.config import ThetaConfig
from crops_jax.records.candidates import read_parts

off = WorldKnowledgeConfig(enabled=False)
mining = MiningConfig(world_knowledge=off, long_watch=LongWatchConfig(min_watch_ms=20_000))
mine.run(Experiment(workdir=sys.argv[1], world=None, mining=mining, theta=ThetaConfig(source="word_overlap")))
rows = [row for part in read_parts(Path(sys.argv[1]) / "mined/candidates.parquet") for row in part.to_pylist()]
print(json.dumps([row for row in rows if row["source"] == "W1"]))
"""


def test_a_source_that_is_added_as_the_page_says_is_mined(tmp_path):
    page = (ROOT / "docs/extending.md").read_text().partition("## A new loss")[0]
    blocks = dict(re.findall(r"```python\n# (\S+[^\n]*)\n(.*?)```", page, re.DOTALL))
    package = tmp_path / "crops_jax"
    shutil.copytree(ROOT / "crops_jax", package, ignore=shutil.ignore_patterns("__pycache__"))

    def put(name: str, before: str, added: str, instead: bool = False) -> None:
        text = (package / name).read_text()
        assert text.count(before) == 1, (name, before)
        (package / name).write_text(text.replace(before, added if instead else added + before))

    config, train_day = "mining/config.py", "mining/train_day.py"
    put("labels.py", ")\nLETTERS = ", blocks["labels.py"])
    put(config, "@dataclass(frozen=True)\nclass MiningConfig:", blocks[config] + "\n\n")
    put(config, "    threshold: ThresholdConfig = field", blocks[f"{config}, in MiningConfig"])
    (package / "mining/long_watch.py").write_text(blocks["mining/long_watch.py"])
    put(train_day, "from crops_jax.mining.numbers", "from crops_jax.mining.long_watch import long_watch_rows\n")
    line = re.search(r"^ +mined = \[.*\n", (package / train_day).read_text(), re.MULTILINE)
    put(train_day, line[0], blocks[f"{train_day}, in mine()"], instead=True)

    check_logs.run(small_world(tmp_path / "work/logs"))
    done = subprocess.run(
        [sys.executable, "-c", MINED, str(tmp_path / "work")],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["query"], row["request_id"], row["user_id"], row["item_id"]) == ("power transformer", "r2", 1, 5)
