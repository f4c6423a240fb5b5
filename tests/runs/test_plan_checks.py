"""`make aot` says what is wrong with a plan: a good one, made by hand, and each thing that may go wrong with it."""

import re

import pytest
from places import ROOT

from crops_jax.models.config import Qwen2Config

BENCHMARKS = ROOT / "benchmarks"
MODEL = Qwen2Config(vocab_size=1000, width=64, layers=100, heads=4, kv_heads=2, head_size=64, ffn=8192)
# q and o have 64 x 256 weights, k and v 64 x 128, the others 64 x 8192: of these a sixteenth is no small part.
WEIGHTS = 2 * 100 * 64 * (2 * 256 + 2 * 128 + 3 * 8192)
DOCUMENTS = 4 * 64 * 64
MIB = 2**20


@pytest.fixture
def problems(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import plan_checks

    return lambda plan: list(plan_checks.problems(plan, MODEL))


def plan(mesh, sent, remat="none", flops=1.0, slices=1, devices=16, scores=0):
    """sent: (kind, dtype) -> count, bytes."""
    collectives = [
        {"kind": kind, "dtype": dtype, "count": count, "bytes": size, "between_slices": False}
        for (kind, dtype), (count, size) in sent.items()
    ]
    batch = {"documents": 64, "token_slots": 10 * MIB}
    return {"mesh": mesh, "slices": slices, "devices": devices, "batch": batch, "remat": remat, "flops_ratio": flops,
            "collectives": collectives, "scores_bytes": scores}  # fmt: skip


RING = {"replica": 1, "data": 4, "ring": 4, "tensor": 1}
SCATTERED = {("reduce-scatter", "bf16"): (1400, 2 * WEIGHTS * 5 // 4)}
GATHERED = {("all-gather", "f32"): (1, DOCUMENTS)}


@pytest.mark.parametrize(
    ("mesh", "sent", "other"),
    [
        (RING, GATHERED | {("all-reduce", "bf16"): (100, MIB)}, {}),
        (RING, GATHERED, {"remat": "full", "flops": 1.24}),
        # Over depth, a quarter of the documents; then over the plane all of them.
        ({"replica": 1, "data": 4, "depth": 2}, {("all-gather", "f32"): (2, DOCUMENTS * 5 // 4)}, {}),
        # Parts that two replicas sum, and gathers of weights of which a device holds few.
        ({"replica": 2, "data": 128}, GATHERED | {("all-reduce", "bf16"): (100, 2 * WEIGHTS // 128)}, {"devices": 256}),
        (
            RING,
            GATHERED | {("all-reduce", "bf16"): (9, 32 * MIB), ("all-reduce", "s32"): (1, 40 * MIB)},
            {"devices": 256},
        ),
    ],
)
def test_a_plan_that_keeps_its_promises(problems, mesh, sent, other):
    assert problems(plan(mesh, SCATTERED | sent, **other)) == []


@pytest.mark.parametrize(
    ("sent", "other", "said"),
    [
        ({}, {"scores": 3 * MIB}, r"attention's scores go through memory: 3\.00 MiB"),
        ({}, {"flops": 1.11}, r"remat none: 1\.110 of the analytic FLOPs"),
        ({}, {"remat": "full", "flops": 1.5}, "remat full"),
        ({("reduce-scatter", "bf16"): (1400, 2 * WEIGHTS)}, {}, "are to be reduce-scattered"),
        ({("all-reduce", "bf16"): (200, 2 * 200 * 64 * 128)}, {}, r"all-reduces of 3\.12 MiB floats"),  # k's gradients
        ({("all-reduce", "f32"): (1, 2 * WEIGHTS)}, {"devices": 256}, "above"),
        ({("all-reduce", "s32"): (1, 40 * MIB)}, {}, r"40\.00 MiB whole numbers"),
        ({("all-gather", "f32"): (2, DOCUMENTS)}, {}, "2 float32 all-gathers within a slice, not 1"),
        ({("all-gather", "f32"): (1, 2 * DOCUMENTS)}, {}, "the documents are 0.02 MiB"),
    ],
)
def test_what_is_wrong_is_said(problems, sent, other, said):
    (problem,) = problems(plan(RING, SCATTERED | GATHERED | sent, **other))
    assert re.search(said, problem)
