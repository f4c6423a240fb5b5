"""The same losses over several devices: value and gradient, what crosses devices, and what it takes of their memory."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_cases import FACTORED, LOG_TAU, NXN, RING, STREAMING, compiled, random_case, relative, value_and_grads

from crops_jax.losses.config import HInfoNCEConfig, SoftmaxCEConfig
from crops_jax.parallel.config import MeshConfig
from crops_jax.parallel.sharding import make_mesh, put_rows

# Sixteen groups: ragged, of one, with equal labels, empty; shared documents and query strings across devices.
EVERYTHING = {
    "labels": [[5, 4, 1], [4, 2], [3], [4, 4, 1]] * 3 + [[4, 4, 4], [], [5, 3, 1], []],
    "doc_keys": {(3, 0): 0, (9, 1): 4, (14, 2): 4},
    "query_keys": [0, 0, *range(1, 13), 5, 99],
}
MESHES = [MeshConfig(data=8), MeshConfig(replica=2, data=2, tensor=2)]


@pytest.mark.parametrize(("config", "mesh", "dtype"), [
    *[(config, MESHES[0], np.float64) for config in (STREAMING, RING)],
    *[(config, MESHES[1], np.float64) for config in (FACTORED, STREAMING, RING)],
    *[(config, MESHES[1], np.float32) for config in (NXN, FACTORED, STREAMING, RING, SoftmaxCEConfig())],
], ids=lambda x: getattr(x, "form", ""))  # fmt: skip
def test_eight_devices_equal_one(config, mesh, dtype):
    alone = config if isinstance(config, SoftmaxCEConfig) else NXN
    with jax.enable_x64(dtype is np.float64):
        e_query, e_doc, batch = random_case(dtype=dtype, **EVERYTHING)
        log_tau = dtype(math.log(0.02))
        devices = make_mesh(mesh)
        with jax.set_mesh(devices):
            split = put_rows((e_query, e_doc, batch), devices)
            got = value_and_grads(config, split[0], split[1], log_tau, split[2])
        assert got[2][1].sharding.spec[0] == ("replica", "data")
        want = value_and_grads(alone, e_query, e_doc, log_tau, batch)
    for found, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):  # aux and gradients too
        relative(found, expected, 1e-5 if dtype is np.float32 else 1e-12)


# All documents once; their cotangents are summed within a replica, and the halves that are left between replicas.
GATHERED = {"all-gather": ["f32[48,16]", "s32[48,4]"], "reduce-scatter": ["f32[1,12,16]", "f32[1,24,16]"]}


@pytest.mark.parametrize(("config", "moved"), [
    (FACTORED, GATHERED),
    (STREAMING, GATHERED),
    # Vectors and keys go round in the forward pass; vectors, keys and gradients in the backward pass.
    (RING, {"collective-permute": ["f32[12,16]"] * 3 + ["s32[12,4]"] * 2}),
], ids=lambda x: getattr(x, "form", ""))  # fmt: skip
def test_what_crosses_devices(config, moved):
    """Value and gradient compiled for 48 documents, 16 wide, in four shards; besides, sums of a few numbers."""
    e_query, e_doc, batch = random_case(**EVERYTHING)
    mesh = make_mesh(MESHES[1])
    with jax.set_mesh(mesh):
        e_query, e_doc, batch = put_rows((e_query, e_doc, batch), mesh)
        text = compiled(config).lower(e_query, e_doc, jnp.asarray(LOG_TAU), batch).compile().as_text()
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    found = [(kind, shape.split("{")[0]) for shape, kind in re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", text)]
    assert {kind: sorted(s for k, s in found if k == kind) for kind, _ in found if kind != "all-reduce"} == moved
    sums = [int(n or 1) for kind, shape in found if kind == "all-reduce" for n in re.findall(r"\[(\d*)\]", shape)]
    assert sums and max(sums) <= 5
    assert ("[48," in text) == (config is not RING), "in a ring no device ever holds all documents"


def test_memory_at_4096_documents():
    """Temporary buffers of value and gradient; no array of all pairs in the streaming form, not even of bits."""
    queries, group, dim = 256, 16, 128
    e_query, e_doc, batch = random_case(labels=[[5, 4, 4, 3] * 4] * queries, dim=dim)
    programs = {
        config.form: compiled(config).lower(e_query, e_doc, LOG_TAU, batch).compile()
        for config in (NXN, FACTORED, HInfoNCEConfig("streaming"))
    }
    size = {form: program.memory_analysis().temp_size_in_bytes for form, program in programs.items()}
    assert size["factored"] <= size["nxn"] / 12 and size["streaming"] <= size["factored"] / 1.8
    pairs = f"[{queries},{queries * group}]"
    assert pairs in programs["factored"].as_text() and pairs not in programs["streaming"].as_text()
