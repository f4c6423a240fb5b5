"""`python -m crops_jax.train`, writing down in the folder $RECORD its process id, and the groups it reads and loads."""

import os
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from crops_jax import train
from crops_jax.batches.stream import TrainBatches
from crops_jax.errors import run_command
from crops_jax.parallel import processes
from crops_jax.records import RecordsReader

load = TrainBatches.load


def recorded(self, position):
    read = []
    with mock.patch.object(
        self.reader, "read", side_effect=lambda n: read.extend(n) or RecordsReader.read(self.reader, n)
    ):
        loaded = load(self, position)
    write_line("reads", read)
    write_line("groups", loaded.group_numbers)
    return loaded


def write_line(name, groups):
    with (Path(os.environ["RECORD"]) / f"{name}.{jax.process_index()}").open("a") as file:
        print(*np.sort(groups), file=file)


if __name__ == "__main__":
    (Path(os.environ["RECORD"]) / f"pid.{os.environ['JAX_PROCESS_ID']}").write_text(str(os.getpid()))
    TrainBatches.load = recorded
    run_command(train.main, processes.leave)
