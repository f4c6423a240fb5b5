"""A process of its own: loads one tower on a mesh of eight devices, says what that took, and runs it.

`python load_sharded.py CHECKPOINT_FOLDER IDS.npy OUT.npy TENSOR` writes the hidden states and prints
{"peak": bytes, "table": shape of a device's part of the embedding}. A fresh process, so that its peak is the load's.
"""

import json
import os
import re
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from crops_jax.batch import Tokens
from crops_jax.models import dual_encoder, hf_config, hf_import
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh, put_rows


def _status(field: str) -> int:
    """A figure of /proc/self/status, in bytes; rusage would count what the parent process held at the start of this."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def main(folder: Path, ids: np.ndarray, out: Path, tensor: int) -> None:
    mesh = make_mesh(MeshConfig(tensor=tensor))
    tokens = Tokens(ids, np.full(len(ids), ids.shape[1], np.int32))
    with jax.set_mesh(mesh):
        tokens = jax.block_until_ready(put_rows(tokens, mesh))
        before = _status("VmRSS")
        tower = hf_import.load_tower(folder, hf_config.from_hf_json(folder / "config.json"), mesh)
        peak = _status("VmHWM") - before
        run = jax.jit(lambda tower, tokens: dual_encoder.hidden_states(tower, tokens, dtype=jnp.dtype("float32"))[0])
        np.save(out, run(tower, tokens))
    print(json.dumps({"peak": peak, "table": tower.embedding.addressable_shards[0].data.shape}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), np.load(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
